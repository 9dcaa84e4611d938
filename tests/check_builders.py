"""Configurations with one thing changed, for the tests of `deployments.check`."""

import json
from typing import Any

import pytest

from deployments.check import Checked, CheckedModel, check
from deployments.config import parse_config
from deployments.config_messages import ConfigError

ENVIRON = {"HOME": "/home/nobody"}
KV_CACHE = 2**26


def checked(source: str = "tiny-llama", *, environ: dict[str, str] = ENVIRON, busy: int = 0, **changes: Any) -> Checked:
    """Check one model on the default simulated cluster; `changes` are sections, or fields of the model."""
    sections: dict[str, Any] = {
        name: changes.pop(name) for name in ("cluster", "endpoint", "control", "limits") if name in changes
    }
    return checked_models(changes | {"source": source}, environ=environ, busy=busy, **sections)


def checked_models(
    *models: dict[str, Any], environ: dict[str, str] = ENVIRON, busy: int = 0, **sections: Any
) -> Checked:
    """Check several models, by default on the simulated cluster of two islands of two GPUs."""
    sized = [model | {"engine": {"kv_cache_memory_bytes": KV_CACHE} | model.get("engine", {})} for model in models]
    config = parse_config(json.dumps({"models": sized, **sections}))
    return check(config, environ=environ, port_is_free=lambda host, port: port != busy)


def checked_model(source: str = "tiny-llama", **changes: Any) -> CheckedModel:
    """What `checked` finds of the one model."""
    (model,) = checked(source, **changes).models
    return model


def problems(source: str = "tiny-llama", **changes: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        checked(source, **changes)
    return str(caught.value).splitlines()


def problems_of_models(*models: dict[str, Any], **sections: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        checked_models(*models, **sections)
    return str(caught.value).splitlines()
