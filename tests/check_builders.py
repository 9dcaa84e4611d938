"""Configurations with one thing changed, for the tests of `deployments.check`."""

import json
from typing import Any

import pytest

from deployments.check import Checked, check
from deployments.config import parse_config
from deployments.config_messages import ConfigError

ENVIRON = {"HOME": "/home/nobody"}
KV_CACHE = 2**26


def checked(source: str = "tiny-llama", *, environ: dict[str, str] = ENVIRON, busy: int = 0, **changes: Any) -> Checked:
    """Check one model on the default simulated cluster; `changes` are sections, or fields of the model."""
    sections: dict[str, Any] = {
        name: changes.pop(name) for name in ("cluster", "endpoint", "control", "limits") if name in changes
    }
    engine = {"kv_cache_memory_bytes": KV_CACHE} | changes.pop("engine", {})
    document: dict[str, Any] = {"models": [changes | {"source": source, "engine": engine}], **sections}
    config = parse_config(json.dumps(document))
    return check(config, environ=environ, port_is_free=lambda host, port: port != busy)


def problems(source: str = "tiny-llama", **changes: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        checked(source, **changes)
    return str(caught.value).splitlines()
