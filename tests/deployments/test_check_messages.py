import re
from typing import Any

import pytest
from check_builders import problems, problems_of_models

E = "models[0].engine"
WHOLE_REQUESTS = (
    "prefill and decode of a request share a replica; give kv_role kv_both, and a connector that is none of "
    "NixlConnector, NixlPullConnector, NixlPushConnector, MooncakeConnector, MoRIIOConnector"
)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "shape: no shape": (
        {"shape": "2x2"},
        "models[0].shape: '2x2' is not a shape: a shape has the parts tp, pp, ep and dp, each at most once and "
        "followed by a number above 0, such as tp4, tp2pp2 or tp2ep4dp2. Or give 'auto'.",
    ),
    "shape: stages": (
        {"shape": "pp5"},
        "models[0].shape: 'pp5' is not accepted; pp5 is more stages than the 4 layers of tiny-llama.",
    ),
    "shape: experts of a dense model": (
        {"shape": "tp2ep2"},
        "models[0].shape: 'tp2ep2' is not accepted; ep2 needs a mixture of experts; tiny-llama is a dense model.",
    ),
    "shape: data parallel dense model": (
        {"shape": "dp2"},
        "models[0].shape: 'dp2' is not accepted; dp2 on a dense model only ties copies together; "
        "use 2 replicas of tiny-llama.",
    ),
    "shape: group larger than an island": (
        {"shape": "tp4"},
        "models[0].shape: 'tp4' is not accepted; tp4 needs 4 free GPUs of at least 1.0 GiB in one island; "
        "the largest free island has 2 (island-0). Nearest: tp2pp2",
    ),
    "replicas": (
        {"shape": "tp2", "replicas": 3},
        "models[0].replicas: 3 is not accepted; 2 fit. For the next one, tp2 needs 2 free GPUs of at least 1.0 GiB; "
        "the 2 islands have 0. Nearest: 2 more free GPUs in island-0",
    ),
    "memory": (
        {"source": "bench-100m", "shape": "tp1", "cluster": {"kind": "simulated", "gpu_memory_gib": 0.5}},
        "models[0].shape: 'tp1' is not accepted; on a GPU it takes 376 MiB of weights, 64 MiB of KV cache for one "
        "request of 2048 tokens and 198 MiB of activations, but vLLM may use 492 MiB of 512 MiB; give tp2",
    ),
    "source: no such directory": (
        {"source": "/nowhere/model"},
        "models[0].source: '/nowhere/model' is not accepted; there is no /nowhere/model; give a directory with a "
        "config.json",
    ),
    "source: no id": (
        {"source": "a/b/c", "shape": "tp1"},
        "models[0].source: 'a/b/c' is not accepted; give a directory, a Hugging Face id such as org/name, or one of "
        "tiny-llama, tiny-moe, bench-100m",
    ),
    "source: misspelt made model": (
        {"source": "tiny-lama", "shape": "tp1"},
        "models[0].source: 'tiny-lama' is not accepted; it is no model in the local Hugging Face cache; give org/name, "
        "or one of tiny-llama, tiny-moe, bench-100m",
    ),
    "port": (
        {"busy": 8000},
        "endpoint.port: 8000 is not accepted; nothing can listen on it at 127.0.0.1 now; "
        "give a free port, and an address of this machine",
    ),
    "control port": (
        {"busy": 8001},
        "control.port: 8001 is not accepted; nothing can listen on it at 127.0.0.1 now; "
        "give a free port, and an address of this machine",
    ),
    "one port for both": (
        {"endpoint": {"port": 8001}},
        "endpoint.port: 8001 is not accepted; it is control.port too; give another one",
    ),
    "tool parser": (
        {"tool_call_parser": "hermse"},
        "models[0].tool_call_parser: 'hermse' is not accepted; did you mean hermes?",
    ),
    "reasoning parser": (
        {"reasoning_parser": "qwen-3"},
        "models[0].reasoning_parser: 'qwen-3' is not accepted; did you mean qwen3?",
    ),
    "chat template": (
        {"chat_template": "nowhere.jinja"},
        "models[0].chat_template: 'nowhere.jinja' is not accepted; give an existing file, or a Jinja template",
    ),
    "engine: unknown": (
        {"engine": {"max_modle_len": 9}},
        f"{E}.max_modle_len: unknown name; did you mean max_model_len?",
    ),
    "engine: dashes": (
        {"engine": {"max-model-len": 9}},
        f"{E}.max-model-len: unknown name; did you mean max_model_len?",
    ),
    "engine: shape": (
        {"engine": {"tensor_parallel_size": 2}},
        f"{E}.tensor_parallel_size: not accepted here; it follows from models[].shape",
    ),
    "engine: experts": (
        {"engine": {"enable_expert_parallel": True}},
        f"{E}.enable_expert_parallel: not accepted here; it follows from models[].shape",
    ),
    "engine: model": ({"engine": {"model": "x"}}, f"{E}.model: not accepted here; use models[].source"),
    "engine: name": (
        {"engine": {"served_model_name": "x"}},
        f"{E}.served_model_name: not accepted here; use models[].name",
    ),
    "engine: executor": (
        {"engine": {"distributed_executor_backend": "mp"}},
        f"{E}.distributed_executor_backend: not accepted here; Archipelago sets it from the layout",
    ),
    "engine: port": ({"engine": {"port": 80}}, f"{E}.port: not accepted here; use endpoint.port"),
    "engine: parser": (
        {"engine": {"tool_call_parser": "hermes"}},
        f"{E}.tool_call_parser: not accepted here; use models[].tool_call_parser",
    ),
    "engine: tracing": (
        {"engine": {"otlp_traces_endpoint": "http://collector:4317"}},
        f"{E}.otlp_traces_endpoint: not accepted here; use telemetry.otlp_endpoint",
    ),
    "engine: adapters": (
        {"engine": {"enable_lora": True}},
        f"{E}.enable_lora: true is not accepted; requests cannot name adapters yet; merge one into its model, and "
        "serve that; give false",
    ),
    "engine: names of adapters": (
        {"engine": {"lora_modules": ["a=/a"]}},
        f"{E}.lora_modules: not accepted here; requests cannot name adapters yet; merge one into its model, and "
        "serve that",
    ),
    "engine: pooling": (
        {"engine": {"runner": "pooling"}},
        f"{E}.runner: 'pooling' is not accepted; a fleet generates text, and nothing else; give auto or generate",
    ),
    "engine: conversion": (
        {"engine": {"convert": "embed"}},
        f"{E}.convert: 'embed' is not accepted; a fleet generates text, and nothing else; give auto or none",
    ),
    "engine: task": (
        {"engine": {"task": "embed"}},
        f"{E}.task: not accepted here; a fleet generates text, and nothing else",
    ),
    "engine: prefill elsewhere": (
        {"engine": {"kv_transfer_config": {"kv_connector": "NixlConnector", "kv_role": "kv_both"}}},
        f"{E}.kv_transfer_config: {{'kv_connector': 'NixlConnector', 'kv_role': 'kv_both'}} is not accepted; "
        f"{WHOLE_REQUESTS}",
    ),
    "engine: prefill only": (
        {"engine": {"kv_transfer_config": {"kv_connector": "LMCacheMPConnector", "kv_role": "kv_producer"}}},
        f"{E}.kv_transfer_config: {{'kv_connector': 'LMCacheMPConnector', 'kv_role': 'kv_producer'}} is not accepted; "
        f"{WHOLE_REQUESTS}",
    ),
    "engine: prefill elsewhere, among others": (
        {
            "engine": {
                "kv_transfer_config": {
                    "kv_connector_extra_config": {
                        "connectors": [
                            {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"},
                            {"kv_connector": "MooncakeConnector", "kv_role": "kv_both"},
                        ]
                    },
                    "kv_connector": "MultiConnector",
                    "kv_role": "kv_both",
                }
            }
        },
        f"{E}.kv_transfer_config: {{'kv_connector_extra_config': {{'connectors': [{{'kv_connector': "
        f"'OffloadingCon... is not accepted; {WHOLE_REQUESTS}",
    ),
    "engine: multi-modal cache in shared memory": (
        {"engine": {"mm_processor_cache_type": "shm"}},
        f"{E}.mm_processor_cache_type: 'shm' is not accepted; ingresses and replicas share no memory; give lru",
    ),
    "engine: length": (
        {"engine": {"max_model_len": 2049}},
        f"{E}.max_model_len: 2049 is not accepted; tiny-llama has 2048 positions; give as many or fewer",
    ),
    "engine: length type": (
        {"engine": {"max_model_len": "2k"}},
        f"{E}.max_model_len: '2k' is not accepted; give an integer of at least 1",
    ),
    "engine: dtype": (
        {"engine": {"dtype": "fp8"}},
        f"{E}.dtype: 'fp8' is not accepted; give one of auto, half, float16, bfloat16, float, float32",
    ),
    "engine: utilisation": (
        {"engine": {"gpu_memory_utilization": 90}},
        f"{E}.gpu_memory_utilization: 90 is not accepted; give a number from 0.1 to 1",
    ),
    "engine: seqs": (
        {"engine": {"max_num_seqs": True}},
        f"{E}.max_num_seqs: true is not accepted; give an integer of at least 1",
    ),
    "engine: seed": ({"engine": {"seed": -1}}, f"{E}.seed: -1 is not accepted; give an integer of at least 0"),
    "engine: bool": ({"engine": {"enforce_eager": 1}}, f"{E}.enforce_eager: 1 is not accepted; give true or false"),
    "engine: optional text": (
        {"engine": {"revision": 8}},
        f"{E}.revision: 8 is not accepted; give a string or null",
    ),
    "engine: kv cache too small": (
        {"shape": "tp2", "engine": {"kv_cache_memory_bytes": 1024}},
        f"{E}.kv_cache_memory_bytes: 1024 is not accepted; on a GPU of tp2 one request of 2048 tokens takes 2097152 "
        "bytes and there is room for 1010179031; give a number between",
    ),
    "engine: kv cache too large": (
        {"shape": "tp2", "engine": {"kv_cache_memory_bytes": 2**31}},
        f"{E}.kv_cache_memory_bytes: 2147483648 is not accepted; on a GPU of tp2 one request of 2048 tokens takes "
        "2097152 bytes and there is room for 1010179031; give a number between",
    ),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_each_mistake_has_one_line(changes: dict[str, Any], message: str) -> None:
    assert problems(**changes) == [message]


ONE = {"source": "tiny-llama", "shape": "tp1", "name": "one"}
TWO = {"source": "tiny-moe", "shape": "tp1"}
CLASHES: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "the port that follows is that of another": (
        [ONE | {"port": 8002}, TWO],
        {},
        "models[1].port: 8002 is not accepted; without one it follows endpoint.port, and it is models[0].port too; "
        "give another one",
    ),
    "the port that follows is none": (
        [ONE, TWO],
        {"endpoint": {"port": 65535}},
        "models[1].port: 65536 is not accepted; without one it follows endpoint.port, and ports end at 65535; "
        "give an integer from 1 to 65535",
    ),
    "the port of another": (
        [ONE | {"port": 8002}, TWO | {"port": 8002}],
        {},
        "models[1].port: 8002 is not accepted; it is models[0].port too; give another one",
    ),
    "the port of the first": (
        [ONE, TWO | {"port": 8000}],
        {},
        "models[1].port: 8000 is not accepted; it is endpoint.port too; give another one",
    ),
    "a port of its own that is that of the control API": (
        [ONE | {"port": 8001}],
        {},
        "models[0].port: 8001 is not accepted; it is control.port too; give another one",
    ),
    "a port that is taken": (
        [ONE, TWO | {"port": 8002}],
        {"busy": 8002},
        "models[1].port: 8002 is not accepted; nothing can listen on it at 127.0.0.1 now; "
        "give a free port, and an address of this machine",
    ),
    "the name of another": (
        [ONE, TWO | {"port": 8002, "name": "one"}],
        {},
        "models[1].name: 'one' is not accepted; models[0].name is 'one'; give another one",
    ),
    "a name that is the same in the names of applications": (
        [ONE | {"name": "acme/one"}, TWO | {"port": 8002, "name": "acme-one"}],
        {},
        "models[1].name: 'acme-one' is not accepted; models[0].name is 'acme/one', and / counts as - here; "
        "give another one",
    ),
}


@pytest.mark.parametrize(("models", "sections", "message"), CLASHES.values(), ids=CLASHES)
def test_what_models_may_not_share(models: list[dict[str, Any]], sections: dict[str, Any], message: str) -> None:
    assert problems_of_models(*models, **sections) == [message]


OF_THE_MODEL = {
    name: case for name, case in BAD.items() if case[1].startswith("models[0].") and "island" not in case[1]
}


@pytest.mark.parametrize(("changes", "message"), OF_THE_MODEL.values(), ids=OF_THE_MODEL)
def test_a_mistake_of_the_second_model_has_its_index(changes: dict[str, Any], message: str) -> None:
    second = {"source": "tiny-llama", "port": 8002, **changes}
    sections = {"cluster": second.pop("cluster")} if "cluster" in second else {}
    assert problems_of_models(ONE, second, **sections) == [message.replace("models[0]", "models[1]")]


def test_a_name_like_no_other() -> None:
    (line,) = problems(engine={"zzzzzz": 1})
    assert re.fullmatch(
        r"models\[0\]\.engine\.zzzzzz: unknown name; none of the \d+ names that are accepted is like it", line
    )
