"""Where a model comes from, and what is known of it before anything is started or downloaded."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deployments import hub, tiny_models
from deployments.config import ModelConfig
from deployments.config_messages import ConfigError, refused
from placement.given import HubError

_FIELD = "models[0].source"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """`location` is what vLLM is given: a directory, or a Hugging Face id.

    `made` is the name to pass to `make_model` before `location` exists, None for a model not made locally.
    `hf_config` is the content of `config.json`, None for a Hugging Face id that is not in the local cache.
    `embeds` is whether Sentence Transformers have it embed, whatever its architecture could do.
    """

    location: str
    made: str | None = None
    hf_config: Mapping[str, Any] | None = None
    embeds: bool = False


def resolve_source(model: ModelConfig, environ: Mapping[str, str]) -> Source:
    """Find what `model.source` means: a model made locally, else a directory, else a Hugging Face id.

    Makes and downloads nothing. Raises `ConfigError` when it is none of them, or its `config.json` cannot be read.
    """
    source = model.source
    if source in tiny_models.MADE_MODELS:
        path = tiny_models.model_path(source, tiny_models.cache_root(environ))
        return Source(location=str(path), made=source, hf_config=tiny_models.hf_config(source))
    folder = _folder(source)
    if folder is not None:
        return _read(source, str(folder), folder / hub.CONFIG)
    if not _HUB_ID.fullmatch(source):
        raise _not_accepted(source, "give a directory, a Hugging Face id such as org/name, or one of")
    cached = _cached_config(source, model.engine.get("revision"), environ)
    if cached is not None:
        return _read(source, source, cached)
    if "/" not in source and get_close_matches(source, tiny_models.MADE_MODELS, n=1, cutoff=0.8):
        raise _not_accepted(source, "it is no model in the local Hugging Face cache; give org/name, or one of")
    return Source(location=source)


def download_config(model: ModelConfig, environ: Mapping[str, str]) -> None:
    """Put the `config.json` of a Hugging Face model into the local cache, where `resolve_source` finds it.

    A few kilobytes, without the weights. Raises `ConfigError` when the hub does not give it.
    """
    try:
        _fetch(model, environ)
    except HubError as error:
        why = f"its config.json cannot be downloaded ({error}); give another Hugging Face id, a directory, or one of"
        raise _not_accepted(model.source, why) from error


def find_config(source: str, environ: Mapping[str, str]) -> Mapping[str, Any] | None:
    """The `config.json` of a model made locally or of a Hugging Face id, downloaded if need be; None if neither.

    Raises `HubError` when the hub does not give it.
    """
    try:
        model = ModelConfig(source=source)
        found = resolve_source(model, environ).hf_config
        if found is None:
            _fetch(model, environ)
            found = resolve_source(model, environ).hf_config
    except (ConfigError, ValidationError):
        return None
    return found


def _fetch(model: ModelConfig, environ: Mapping[str, str]) -> None:
    revision, token = _text(model.engine.get("revision")), _text(model.engine.get("hf_token"))
    hub.fetch(model.source, environ, revision=revision, token=token)


def _folder(source: str) -> Path | None:
    """The directory that `source` means, whether or not it is there; None when it cannot be one.

    Absolute, because the engine runs in another working directory.
    """
    try:
        folder = Path(source).expanduser().absolute()
        is_there = folder.exists()
    except (OSError, RuntimeError):  # too long for a path; ~name of a user who does not exist
        return None
    return folder if is_there or source.startswith(("/", ".", "~")) else None


def _not_accepted(source: str, accepted: str) -> ConfigError:
    return ConfigError([refused(_FIELD, source, f"{accepted} {', '.join(tiny_models.MADE_MODELS)}")])


def _read(source: str, location: str, path: Path) -> Source:
    """The model whose `config.json` is at `path`."""
    return Source(location=location, hf_config=_read_config(source, path), embeds=_pools(path.with_name(hub.MODULES)))


def _read_config(source: str, path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        why = f"{path} cannot be read ({error.strerror})" if path.parent.is_dir() else f"there is no {path.parent}"
        why = "it is a file" if path.parent.is_file() else why
        accepted = f"{why}; give a directory with a config.json"
        raise ConfigError([refused(_FIELD, source, accepted)]) from error
    except ValueError as error:
        raise ConfigError([refused(_FIELD, source, f"{path} must be JSON ({error})")]) from error
    if not isinstance(config, dict):
        raise ConfigError([refused(_FIELD, source, f"{path} must hold a JSON object")])
    return config


def _pools(path: Path) -> bool:
    """Whether the `modules.json` at `path`, if there is one, has vLLM pool (vllm/transformers_utils/config.py:949)."""
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    kinds = [module.get("type") for module in modules if isinstance(module, dict)] if isinstance(modules, list) else []
    return any(isinstance(kind, str) and kind.endswith(".Pooling") for kind in kinds)


def _cached_config(repo: str, revision: object, environ: Mapping[str, str]) -> Path | None:
    """`config.json` of a Hugging Face model in the local cache, which is where vLLM will look first."""
    from huggingface_hub import try_to_load_from_cache  # 0.2 s that only Hugging Face models need

    try:
        found = try_to_load_from_cache(repo, hub.CONFIG, cache_dir=hub.cache_folder(environ), revision=_text(revision))
    except ValueError as error:
        raise _not_accepted(repo, f"{error}; give a Hugging Face id such as org/name, or one of") from error
    return Path(found) if isinstance(found, str) else None


def _text(argument: object) -> str | None:
    return argument if isinstance(argument, str) else None
