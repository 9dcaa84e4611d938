"""Engine arguments of a configuration, held against the vLLM that is installed, without importing it.

Importing vLLM takes seconds and can fail on a machine without its libraries. Its argument names, their types and the
names of its parsers are literals in its source, so that is parsed instead.
"""

import ast
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.config_messages import closest, field_path, refused

_SHAPE = "it follows from models[].shape"
_OWN = "Archipelago sets it from the layout"
_NO_ADAPTERS = "requests cannot name adapters yet; merge one into its model, and serve that"
GENERATES = "a fleet generates text, and nothing else"
# Arguments a user of `vllm serve` knows, and the field that takes their place here.
_MOVED: Mapping[str, str] = {
    "model": "use models[].source",
    "model_weights": "use models[].source",
    "served_model_name": "use models[].name",
    "tensor_parallel_size": _SHAPE,
    "pipeline_parallel_size": _SHAPE,
    "data_parallel_size": _SHAPE,
    "data_parallel_size_local": _SHAPE,
    "enable_expert_parallel": _SHAPE,
    "data_parallel_rank": _OWN,
    "data_parallel_start_rank": _OWN,
    "data_parallel_address": _OWN,
    "data_parallel_rpc_port": _OWN,
    "data_parallel_backend": _OWN,
    "data_parallel_hybrid_lb": _OWN,
    "data_parallel_external_lb": _OWN,
    "data_parallel_multi_port_external_lb": _OWN,
    "distributed_executor_backend": _OWN,
    "worker_cls": _OWN,
    "worker_extension_cls": _OWN,
    "device_ids": _OWN,
    "nnodes": _OWN,
    "node_rank": _OWN,
    "master_addr": _OWN,
    "master_port": _OWN,
    "prefill_context_parallel_size": "context parallelism is not supported yet",
    "enable_elastic_ep": "Archipelago repartitions by itself",
    "elastic_ep_max_dp_size": "Archipelago repartitions by itself",
    "otlp_traces_endpoint": "use telemetry.otlp_endpoint",
    "shutdown_timeout": "use limits.drain_timeout_s",
    "host": "use endpoint.host",
    "port": "use endpoint.port",
    "api_server_count": "use endpoint.ingresses",
    "chat_template": "use models[].chat_template",
    "tool_call_parser": "use models[].tool_call_parser",
    "enable_auto_tool_choice": "it follows from models[].tool_call_parser",
    "reasoning_parser": "use models[].reasoning_parser",
    "lora_modules": _NO_ADAPTERS,
    "task": GENERATES,
}


@dataclass(frozen=True, slots=True)
class _Rule:
    accepted: str
    accepts: Callable[[Any], bool]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_int(value) or isinstance(value, float)


# One engine prefills for another by these: a request goes to the one and then to the other, which no router does here.
_DISAGGREGATING = ("NixlConnector", "NixlPullConnector", "NixlPushConnector", "MooncakeConnector", "MoRIIOConnector")


def _keeps_prefill_and_decode(transfer: Any) -> bool:
    """Whether each replica does both for its requests, by this `kv_transfer_config`; all replicas get the same one."""
    if not isinstance(transfer, Mapping):
        return transfer is None
    extra = transfer.get("kv_connector_extra_config")
    parts = extra.get("connectors") if isinstance(extra, Mapping) else None  # those of a MultiConnector
    return (
        transfer.get("kv_role") == "kv_both"
        and transfer.get("kv_connector") not in _DISAGGREGATING
        and all(map(_keeps_prefill_and_decode, parts if isinstance(parts, list) else ()))
    )


_POSITIVE = _Rule("give an integer of at least 1", lambda value: _is_int(value) and value >= 1)
_DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")
_RULES: Mapping[str, _Rule] = {
    "max_model_len": _POSITIVE,
    "max_num_seqs": _POSITIVE,
    "max_num_batched_tokens": _POSITIVE,
    "max_num_queued_reqs": _POSITIVE,
    "max_num_queued_tokens": _POSITIVE,
    "block_size": _POSITIVE,
    "kv_cache_memory_bytes": _POSITIVE,
    "num_gpu_blocks_override": _POSITIVE,
    "seed": _Rule("give an integer of at least 0", lambda value: _is_int(value) and value >= 0),
    "gpu_memory_utilization": _Rule(
        # What CUDA itself takes is more than a few hundredths: vLLM accepts such a share, but never starts with it.
        "give a number from 0.1 to 1",
        lambda value: _is_number(value) and 0.1 <= value <= 1,
    ),
    "dtype": _Rule(f"give one of {', '.join(_DTYPES)}", lambda value: value in _DTYPES),
    "enable_lora": _Rule(f"{_NO_ADAPTERS}; give false", lambda value: value is False),
    "runner": _Rule(f"{GENERATES}; give auto or generate", lambda value: value in ("auto", "generate")),
    "convert": _Rule(f"{GENERATES}; give auto or none", lambda value: value in ("auto", "none")),
    "kv_transfer_config": _Rule(
        "prefill and decode of a request share a replica; give kv_role kv_both, and a connector that is none of "
        f"{', '.join(_DISAGGREGATING)}",
        _keeps_prefill_and_decode,
    ),
    # With the other one a worker opens memory of the ingress, which is in another process tree, often on another node.
    "mm_processor_cache_type": _Rule(
        "ingresses and replicas share no memory; give lru", lambda value: value in ("lru", None)
    ),
}
# vLLM annotates most arguments with these alone; what has another annotation is left to vLLM.
_ANNOTATIONS: Mapping[str, _Rule] = {
    "bool": _Rule("true or false", lambda value: isinstance(value, bool)),
    "int": _Rule("an integer", _is_int),
    "float": _Rule("a number", _is_number),
    "str": _Rule("a string", lambda value: isinstance(value, str)),
    "None": _Rule("null", lambda value: value is None),
}


def find_vllm() -> Path | None:
    """The folder of the installed vLLM, without importing it; None when there is none."""
    spec = importlib.util.find_spec("vllm")
    folders = spec.submodule_search_locations if spec else None
    return Path(folders[0]) if folders else None


def read_arguments(vllm: Path) -> dict[str, str]:
    """Every argument of `AsyncEngineArgs` and its annotation, as source text."""
    tree = ast.parse((vllm / "engine" / "arg_utils.py").read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    return {
        field.target.id: ast.unparse(field.annotation)
        for name in ("EngineArgs", "AsyncEngineArgs")
        for field in classes[name].body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if not field.target.id.startswith("_")
    }


def read_parsers(vllm: Path, *, kind: str) -> tuple[str, ...]:
    """The names of vLLM's parsers of a `kind`, which is "tool_parsers" or "reasoning"."""
    tables = {"tool_parsers": "_TOOL_PARSERS_TO_REGISTER", "reasoning": "_REASONING_PARSERS_TO_REGISTER"}
    table = assigned(vllm / kind / "__init__.py").get(tables[kind])
    if table is None:
        raise LookupError(f"{vllm / kind} has no {tables[kind]}: not a vLLM this version of Archipelago knows")
    return tuple(ast.literal_eval(table))


def assigned(path: Path) -> dict[str, ast.expr]:
    """What the module at `path` assigns to names, without importing it."""
    found: dict[str, ast.expr] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            found[ast.unparse(target)] = node.value
    return found


def argument_problems(field: str, engine: Mapping[str, Any], known: Mapping[str, str] | None) -> dict[str, str]:
    """The arguments in `engine` that vLLM or a fleet refuses, or that are not the user's to set, each with its line.

    `field` is the path of the arguments in the configuration; `known` comes from `read_arguments`, None without vLLM.
    """
    problems = {name: _problem(field_path(field, name), name, value, known) for name, value in engine.items()}
    return {name: problem for name, problem in problems.items() if problem}


def _problem(path: str, name: str, value: object, known: Mapping[str, str] | None) -> str | None:
    if name in _MOVED:
        return f"{path}: not accepted here; {_MOVED[name]}"
    if known is not None and name not in known:
        return f"{path}: unknown name; {closest(name.replace('-', '_'), sorted(set(known) - set(_MOVED)))}"
    rule = _rule(name, known or {})
    return None if rule is None or rule.accepts(value) else refused(path, value, rule.accepted)


def _rule(name: str, known: Mapping[str, str]) -> _Rule | None:
    if name in _RULES:
        return _RULES[name]
    parts = known.get(name, "").split(" | ")
    if not all(part in _ANNOTATIONS for part in parts):
        return None
    rules = [_ANNOTATIONS[part] for part in parts]
    accepted = " or ".join(rule.accepted for rule in rules)
    return _Rule(f"give {accepted}", lambda value: any(rule.accepts(value) for rule in rules))
