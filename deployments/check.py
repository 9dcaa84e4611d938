"""Everything that can be found wrong with a configuration before anything is started.

All of it is reported at once: what cannot be checked because something else is wrong is left out, never guessed. Only
files are read, and ports are tried; a model is neither made nor downloaded. The models are placed in their order, each
on what those before it leave.
"""

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from deployments import engine_args, hub
from deployments.access.checking import iter_access_notes, iter_access_problems
from deployments.architectures import read_architectures
from deployments.config import (
    MAX_PORT,
    ClusterConfig,
    Config,
    ModelConfig,
    RayCluster,
    SimulatedCluster,
    SimulatedEngineConfig,
)
from deployments.config_messages import ConfigError, about, closest, refused, shown
from deployments.model_source import Source, resolve_source
from deployments.placing import Placed, parse_shape, place_replicas, simulated_cluster
from deployments.simulation.planned import limits_of
from placement import Layout, ModelConfigError, ModelSpec, Shape
from placement.clusters.machines import gpu_kind, gpu_kinds

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedModel:
    """One model, and what was learnt from checking it. `section` is where it is in the configuration: `models[1]`.

    `spec` is None for a Hugging Face id that is not in the local cache; `shape` is None for `auto` where it cannot be
    decided yet; `layouts` has one layout for each replica, and is None when the cluster is only discovered later.
    """

    section: str
    config: ModelConfig
    port: int
    source: Source
    spec: ModelSpec | None
    shape: Shape | None
    layouts: tuple[Layout, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A configuration without known mistakes. `notes` says what was decided and what could not be checked."""

    config: Config
    models: tuple[CheckedModel, ...]
    notes: tuple[str, ...]


@dataclass(slots=True)
class _Findings:
    """What the parts of a check report to."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def of(self, part: Callable[[], T]) -> T | None:
        """What `part` returns, or None and its problems."""
        try:
            return part()
        except ConfigError as error:
            self.problems += error.problems
            return None


def check(config: Config, *, environ: Mapping[str, str], port_is_free: Callable[[str, int], bool]) -> Checked:
    """Check a configuration as a whole. Raises `ConfigError` with one line for every problem."""
    found = _Findings()
    found.problems += _iter_name_problems(config.models)
    found.problems += _iter_port_problems(config, port_is_free)
    found.problems += iter_access_problems(config, environ)
    found.notes += iter_access_notes(config)
    models: list[CheckedModel] = []
    for index, (model, port) in enumerate(zip(config.models, config.ports, strict=True)):
        held = {one.config.name: one.layouts for one in models if one.layouts}
        one = _check_model(f"models[{index}]", model, port, config.cluster, environ, held, found)
        if one is not None:
            models.append(one)
    if found.problems:
        raise ConfigError(found.problems)
    if not isinstance(config.cluster, SimulatedCluster):
        found.notes.append("cluster: memory and placement are checked when the GPUs are known")
    return Checked(config=config, models=tuple(models), notes=tuple(found.notes))


def _check_model(
    section: str,
    model: ModelConfig,
    port: int,
    cluster: ClusterConfig,
    environ: Mapping[str, str],
    held: Mapping[str, Sequence[Layout]],
    found: _Findings,
) -> CheckedModel | None:
    """One model, on what others leave of the cluster; None where what it is served from is not known."""
    sound = _check_engine(section, model, found)
    found.problems += _iter_template_problems(section, model)
    found.problems += _iter_simulation_problems(section, model, cluster)
    source = found.of(lambda: _source(section, sound, environ))
    spec = found.of(lambda: _read_spec(section, sound, source)) if source else None
    if spec:
        found.problems += _iter_length_problems(section, sound, spec, environ)
    shape, placed = found.of(lambda: _place(section, sound, spec, cluster, held)) or (None, None)
    if source is None:
        return None
    if simulated := sound.simulated:
        note = found.of(lambda: _check_simulated_engine(section, sound, simulated, spec, shape))
        found.notes += [note] if note else []
    found.notes += _iter_unchecked(section, source, cluster, placed)
    found.notes += placed.notes if placed else ()
    layouts = placed.layouts if placed else None
    return CheckedModel(
        section=section, config=model, port=port, source=source, spec=spec, shape=shape, layouts=layouts
    )


def port_is_free(host: str, port: int) -> bool:
    """Whether this process could listen there now: false as well for an address that this machine does not have."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return True
    except (OSError, UnicodeError):  # a host name that no resolver takes is a UnicodeError
        return False


def _iter_name_problems(models: Sequence[ModelConfig]) -> Iterator[str]:
    first: dict[str, int] = {}
    for index, model in enumerate(models):
        other = first.setdefault(model.name.replace("/", "-"), index)  # as in the names of Serve applications
        if other != index:
            name = models[other].name
            clash = "" if name == model.name else ", and / counts as - here"
            accepted = f"models[{other}].name is {shown(name)}{clash}; give another one"
            yield refused(f"models[{index}].name", model.name, accepted)


def _check_engine(section: str, model: ModelConfig, found: _Findings) -> ModelConfig:
    """`model` with only those engine arguments that nothing is wrong with, so that the other checks can go on."""
    vllm = engine_args.find_vllm()
    if vllm is None:
        found.notes.append(
            f"{section}.engine: vLLM is not installed here, so the names of its arguments are not checked"
        )
    else:
        found.problems += _iter_parser_problems(section, model, vllm)
    known = engine_args.read_arguments(vllm) if vllm else None
    problems = engine_args.argument_problems(f"{section}.engine", model.engine, known)
    found.problems += problems.values()
    sound = {name: value for name, value in model.engine.items() if name not in problems}
    return model.model_copy(update={"engine": sound})


def _iter_parser_problems(section: str, model: ModelConfig, vllm: Path) -> Iterator[str]:
    for name, kind, chosen in (
        ("tool_call_parser", "tool_parsers", model.tool_call_parser),
        ("reasoning_parser", "reasoning", model.reasoning_parser),
    ):
        known = engine_args.read_parsers(vllm, kind=kind)
        if chosen is not None and chosen not in known:
            yield refused(f"{section}.{name}", chosen, closest(chosen, known))


def _iter_template_problems(section: str, model: ModelConfig) -> Iterator[str]:
    template = model.chat_template
    # As vLLM tells the two apart.
    if template is not None and not set("{}\n") & set(template) and not Path(template).is_file():
        yield refused(f"{section}.chat_template", template, "give an existing file, or a Jinja template")


def _iter_port_problems(config: Config, is_free: Callable[[str, int], bool]) -> Iterator[str]:
    claims = [("control.port", config.control.host, config.control.port, "")]
    for index, (model, port) in enumerate(zip(config.models, config.ports, strict=True)):
        is_given = model.port is not None
        field = "endpoint.port" if index == 0 and not is_given else f"models[{index}].port"
        origin = "" if index == 0 or is_given else "without one it follows endpoint.port, and "
        claims.append((field, config.endpoint.host, port, origin))
    taken: dict[int, str] = {}
    for field, host, port, origin in claims:
        other = taken.setdefault(port, field)
        if port > MAX_PORT:
            yield refused(field, port, f"{origin}ports end at {MAX_PORT}; give an integer from 1 to {MAX_PORT}")
        elif other != field:
            yield refused(field, port, f"{origin}it is {other} too; give another one")
        # On a cluster that runs its head listens, and what it serves already may be what is to change.
        elif not isinstance(config.cluster, RayCluster) and not is_free(host, port):
            at = f"{origin}nothing can listen on it at {host} now"
            yield refused(field, port, f"{at}; give a free port, and an address of this machine")


def _check_simulated_engine(
    section: str, config: ModelConfig, simulated: SimulatedEngineConfig, spec: ModelSpec | None, shape: Shape | None
) -> str:
    """What to tell of it. Raises `ConfigError` for a GPU the planner does not know, and one that is too small."""
    if gpu_kind(simulated.gpu) is None:
        accepted = f"give one of {', '.join(sorted(gpu_kinds()))}"
        raise ConfigError([refused(f"{section}.simulated.gpu", simulated.gpu, accepted)])
    if spec and shape:
        try:
            limits_of(spec, shape, simulated.gpu, config.engine)
        except ValueError as error:
            raise ConfigError([f"{section}.simulated: {shape} on {simulated.gpu}: {error}"]) from error
    return (
        f"{section}.simulated: no model runs; tokens are invented, and steps take as long as the planner predicts for "
        f"{simulated.gpu}, divided by {simulated.time_scale:g}"
    )


def _iter_simulation_problems(section: str, model: ModelConfig, cluster: ClusterConfig) -> Iterator[str]:
    is_run = isinstance(cluster, SimulatedCluster) and model.simulated is None
    if is_run and "kv_cache_memory_bytes" not in model.engine:
        # vLLM's CPU worker would reserve gpu_memory_utilization of the whole machine, once for each simulated GPU.
        yield (
            f"{section}.engine.kv_cache_memory_bytes: missing; on a simulated cluster give the bytes of KV cache for "
            "each GPU, such as 67108864"
        )


def _source(section: str, model: ModelConfig, environ: Mapping[str, str]) -> Source:
    with about(section):
        source = resolve_source(model, environ)
    if pooling := _pooling(model, source):
        why = f"vLLM takes it for embedding, ranking or classifying by its {pooling}, and {engine_args.GENERATES}"
        accepted = f"{why}; give a model that generates, or engine.runner generate where it can"
        raise ConfigError([refused(f"{section}.source", model.source, accepted)])
    return source


def _pooling(config: ModelConfig, source: Source) -> str | None:
    """What would have vLLM pool with a model, None where it generates, by itself or because it is told to."""
    if source.hf_config is None or config.engine.get("runner") == "generate":
        return None
    if source.embeds:
        return hub.MODULES
    names, vllm = _overridden(config, source.hf_config).get("architectures"), engine_args.find_vllm()
    known = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return read_architectures(vllm).first_pooling(known) if vllm else None


def _read_spec(section: str, config: ModelConfig, source: Source) -> ModelSpec | None:
    """The sizes of the model as the engine will see them: in its dtype, and with the overrides of its config."""
    if source.hf_config is None:
        return None
    hf_config = _overridden(config, source.hf_config)
    dtype = config.engine.get("dtype", "auto")
    if dtype != "auto":
        hf_config["torch_dtype"] = dtype
    try:
        return ModelSpec.from_hf_config(hf_config, name=config.name)
    except ModelConfigError as error:
        raise ConfigError([refused(f"{section}.source", config.source, f"its config.json says: {error}")]) from error


def _overridden(config: ModelConfig, hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` of a model as the engine will read it."""
    overrides = config.engine.get("hf_overrides")
    return {**hf_config, **(overrides if isinstance(overrides, dict) else {})}


def _iter_length_problems(
    section: str, config: ModelConfig, spec: ModelSpec, environ: Mapping[str, str]
) -> Iterator[str]:
    length = config.engine.get("max_model_len")
    is_forced = environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN") == "1"
    if isinstance(length, int) and length > spec.max_position_tokens and not is_forced:
        accepted = f"{config.name} has {spec.max_position_tokens} positions; give as many or fewer"
        yield refused(f"{section}.engine.max_model_len", length, accepted)


def _place(
    section: str,
    config: ModelConfig,
    spec: ModelSpec | None,
    cluster: ClusterConfig,
    held: Mapping[str, Sequence[Layout]],
) -> tuple[Shape | None, Placed | None]:
    """The shape as far as it is known, and the replicas when the cluster is. Raises `ConfigError`."""
    shape = parse_shape(section, config.shape, spec)
    if not isinstance(cluster, SimulatedCluster) or (shape is None and spec is None):
        return shape, None
    placed = place_replicas(section, config, shape, spec, simulated_cluster(cluster), held)
    return placed.shape, placed


def _iter_unchecked(section: str, source: Source, cluster: ClusterConfig, placed: Placed | None) -> Iterator[str]:
    if source.hf_config is None:
        yield f"{section}.source: {source.location} is not in the local Hugging Face cache, so it is not checked"
    if isinstance(cluster, SimulatedCluster) and placed is None:
        yield f"{section}.shape: auto is decided when the model's config is known"
