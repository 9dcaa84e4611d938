"""Images and sounds on their way to replicas: what a request is sent with is all that a replica needs."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from link_builders import Fleet
from transformers import AutoTokenizer, Qwen2AudioProcessor, WhisperFeatureExtractor
from vllm.multimodal.cache import (
    MultiModalProcessorOnlyCache,
    engine_receiver_cache_from_config,
    processor_cache_from_config,
)
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.serial_utils import MsgpackDecoder
from wire_builders import until

from deployments.engine import shard_config
from deployments.fleet_engine import FleetEngine, frontend_config
from deployments.tiny_models import cache_root, hf_config, make_model
from placement import Shape

SOUND = np.sin(np.arange(3200) / 10).astype(np.float32), 16_000
PROMPT = "<|audio_bos|><|AUDIO|><|audio_eos|> Which island is it?"
ENGINE_ARGS = {"dtype": "float32", "max_model_len": 512, "served_model_name": "tiny-audio"}


@pytest.fixture(scope="module")
def listening_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The directory of a model that takes sounds, without weights."""
    path: Path = tmp_path_factory.mktemp("tiny-audio")
    tokenizer = AutoTokenizer.from_pretrained(make_model("tiny-llama", cache_root(os.environ)))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]})
    Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=16), tokenizer).save_pretrained(path)
    config = {
        "architectures": ["Qwen2AudioForConditionalGeneration"],
        "model_type": "qwen2_audio",
        "audio_token_index": tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
        "text_config": hf_config("tiny-llama") | {"model_type": "qwen2", "vocab_size": len(tokenizer)},
        "audio_config": {
            "model_type": "qwen2_audio_encoder",
            "d_model": 32,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "num_mel_bins": 16,
        },
        "dtype": "float32",
    }
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


async def requests_of_two_replicas(model: str) -> list[EngineCoreRequest]:
    """What replicas are sent when the same sound comes twice, and the first of them dies between."""
    _, config = frontend_config({"model": model, **ENGINE_ARGS})
    fleet = Fleet("a", "b")
    engine = FleetEngine(config, fleet.link, fleet.traffic, speculative=False)
    fleet.update()
    await until(lambda: len(fleet.link.ready) == len(fleet.replicas))

    async def ask(request_id: str) -> None:
        prompt: Any = {"prompt": PROMPT, "multi_modal_data": {"audio": [SOUND]}}
        async for _ in engine.generate(prompt, SamplingParams(max_tokens=4), request_id):
            pass

    def sent(replica: str) -> list[EngineCoreRequest]:
        decoder = MsgpackDecoder(EngineCoreRequest)
        return [decoder.decode(frames) for batch in fleet[replica].batches for frames in batch.requests]

    asking = [asyncio.create_task(ask("first"))]
    await until(lambda: bool(sent("a") or sent("b")))
    first, second = ("a", "b") if sent("a") else ("b", "a")
    fleet[first].die()
    await until(lambda: bool(sent(second)))
    asking.append(asyncio.create_task(ask("second")))
    await until(lambda: len(sent(second)) > 1)
    for each in asking:
        each.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    engine.shutdown()
    return [*sent(first), *sent(second)]


def test_a_replica_needs_nothing_but_the_request_to_hear_a_sound(listening_model: str) -> None:
    requests = asyncio.run(requests_of_two_replicas(listening_model))
    assert [request.request_id.partition("-")[0] for request in requests] == ["first", "first", "second"]
    for request in requests:
        assert request.mm_features is not None
        assert [feature.data is None for feature in request.mm_features] == [False]


@pytest.mark.parametrize("given", [{}, {"mm_processor_cache_gb": 2}])
def test_only_an_ingress_keeps_what_it_has_made_of_media(given: dict[str, Any], listening_model: str) -> None:
    no_group: Any = None
    arguments = ENGINE_ARGS | given
    assert engine_receiver_cache_from_config(shard_config(listening_model, arguments, Shape(), no_group)) is None
    _, ingress = frontend_config({"model": listening_model, **arguments})
    assert isinstance(processor_cache_from_config(ingress), MultiModalProcessorOnlyCache)
    assert ingress.model_config.get_multimodal_config().mm_processor_cache_gb == given.get("mm_processor_cache_gb", 4)


def test_what_is_let_in_counts_as_no_more_than_the_model_reads(listening_model: str) -> None:
    async def scenario() -> None:
        _, config = frontend_config({"model": listening_model, **ENGINE_ARGS})
        fleet = Fleet("a")
        FleetEngine(config, fleet.link, fleet.traffic, speculative=False).shutdown()
        assert fleet.traffic.max_model_len == ENGINE_ARGS["max_model_len"]

    asyncio.run(scenario())
