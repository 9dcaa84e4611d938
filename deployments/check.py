"""Everything that can be found wrong with a configuration before anything is started.

All of it is reported at once: what cannot be checked because something else is wrong is left out, never guessed. Only
files are read, and two ports are tried; a model is neither made nor downloaded.
"""

import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from deployments import engine_args
from deployments.config import (
    ClusterConfig,
    Config,
    ModelConfig,
    SimulatedCluster,
    SimulatedEngineConfig,
)
from deployments.config_messages import ConfigError, closest, refused
from deployments.model_source import Source, resolve_source
from deployments.placing import Placed, parse_shape, place_replicas, simulated_cluster
from deployments.simulation.planned import limits_of
from placement import Layout, ModelConfigError, ModelSpec, Shape
from placement.clusters.machines import gpu_kind, gpu_kinds

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A configuration without known mistakes, and what was learnt from checking it.

    `model` is None for a Hugging Face id that is not in the local cache; `shape` is None for `auto` where it cannot be
    decided yet; `layouts` has one layout for each replica, and is None when the cluster is only discovered later.
    `notes` says what was decided and what could not be checked, one sentence each.
    """

    config: Config
    source: Source
    model: ModelSpec | None
    shape: Shape | None
    layouts: tuple[Layout, ...] | None
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
    sound = _check_engine(config.model, found)
    found.problems += _iter_template_problems(config.model)
    found.problems += _iter_port_problems(config, port_is_free)
    found.problems += _iter_simulation_problems(config)
    source = found.of(lambda: resolve_source(sound, environ))
    model = found.of(lambda: _read_model(sound, source)) if source else None
    if model:
        found.problems += _iter_length_problems(sound, model, environ)
    shape, placed = found.of(lambda: _place(sound, model, config.cluster)) or (None, None)
    simulated = sound.simulated
    note = found.of(lambda: _check_simulated_engine(sound, simulated, model, shape)) if simulated else None
    if found.problems or source is None:
        raise ConfigError(found.problems)
    if note is not None:
        found.notes.append(note)
    found.notes += _iter_unchecked(source, config.cluster, placed)
    return Checked(
        config=config,
        source=source,
        model=model,
        shape=shape,
        layouts=placed.layouts if placed else None,
        notes=(*found.notes, *(placed.notes if placed else ())),
    )


def port_is_free(host: str, port: int) -> bool:
    """Whether this process could listen there now: false as well for an address that this machine does not have."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return True
    except (OSError, UnicodeError):  # a host name that no resolver takes is a UnicodeError
        return False


def _check_engine(model: ModelConfig, found: _Findings) -> ModelConfig:
    """`model` with only those engine arguments that nothing is wrong with, so that the other checks can go on."""
    vllm = engine_args.find_vllm()
    if vllm is None:
        found.notes.append(
            "models[0].engine: vLLM is not installed here, so the names of its arguments are not checked"
        )
    else:
        found.problems += _iter_parser_problems(model, vllm)
    known = engine_args.read_arguments(vllm) if vllm else None
    problems = engine_args.argument_problems("models[0].engine", model.engine, known)
    found.problems += problems.values()
    sound = {name: value for name, value in model.engine.items() if name not in problems}
    return model.model_copy(update={"engine": sound})


def _iter_parser_problems(model: ModelConfig, vllm: Path) -> Iterator[str]:
    for name, kind, chosen in (
        ("tool_call_parser", "tool_parsers", model.tool_call_parser),
        ("reasoning_parser", "reasoning", model.reasoning_parser),
    ):
        known = engine_args.read_parsers(vllm, kind=kind)
        if chosen is not None and chosen not in known:
            yield refused(f"models[0].{name}", chosen, closest(chosen, known))


def _iter_template_problems(model: ModelConfig) -> Iterator[str]:
    template = model.chat_template
    # As vLLM tells the two apart.
    if template is not None and not set("{}\n") & set(template) and not Path(template).is_file():
        yield refused("models[0].chat_template", template, "give an existing file, or a Jinja template")


def _iter_port_problems(config: Config, is_free: Callable[[str, int], bool]) -> Iterator[str]:
    for name, listens in (("endpoint.port", config.endpoint), ("control.port", config.control)):
        if not is_free(listens.host, listens.port):
            at = f"nothing can listen on it at {listens.host} now"
            yield refused(name, listens.port, f"{at}; give a free port, and an address of this machine")
    if config.control.port == config.endpoint.port:
        yield refused("control.port", config.control.port, "it is endpoint.port too; give another one")


def _check_simulated_engine(
    config: ModelConfig, simulated: SimulatedEngineConfig, model: ModelSpec | None, shape: Shape | None
) -> str:
    """What to tell of it. Raises `ConfigError` for a GPU the planner does not know, and one that is too small."""
    if gpu_kind(simulated.gpu) is None:
        accepted = f"give one of {', '.join(sorted(gpu_kinds()))}"
        raise ConfigError([refused("models[0].simulated.gpu", simulated.gpu, accepted)])
    if model and shape:
        try:
            limits_of(model, shape, simulated.gpu, config.engine)
        except ValueError as error:
            raise ConfigError([f"models[0].simulated: {shape} on {simulated.gpu}: {error}"]) from error
    return (
        f"models[0].simulated: no model runs; tokens are invented, and steps take as long as the planner predicts for "
        f"{simulated.gpu}, divided by {simulated.time_scale:g}"
    )


def _iter_simulation_problems(config: Config) -> Iterator[str]:
    is_run = isinstance(config.cluster, SimulatedCluster) and config.model.simulated is None
    if is_run and "kv_cache_memory_bytes" not in config.model.engine:
        # vLLM's CPU worker would reserve gpu_memory_utilization of the whole machine, once for each simulated GPU.
        yield (
            "models[0].engine.kv_cache_memory_bytes: missing; on a simulated cluster give the bytes of KV cache for "
            "each GPU, such as 67108864"
        )


def _read_model(config: ModelConfig, source: Source) -> ModelSpec | None:
    """The sizes of the model as the engine will see them: in its dtype, and with the overrides of its config."""
    if source.hf_config is None:
        return None
    overrides = config.engine.get("hf_overrides")
    hf_config = {**source.hf_config, **(overrides if isinstance(overrides, dict) else {})}
    dtype = config.engine.get("dtype", "auto")
    if dtype != "auto":
        hf_config["torch_dtype"] = dtype
    try:
        return ModelSpec.from_hf_config(hf_config, name=config.name)
    except ModelConfigError as error:
        raise ConfigError([refused("models[0].source", config.source, f"its config.json says: {error}")]) from error


def _iter_length_problems(config: ModelConfig, model: ModelSpec, environ: Mapping[str, str]) -> Iterator[str]:
    length = config.engine.get("max_model_len")
    is_forced = environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN") == "1"
    if isinstance(length, int) and length > model.max_position_tokens and not is_forced:
        accepted = f"{config.name} has {model.max_position_tokens} positions; give as many or fewer"
        yield refused("models[0].engine.max_model_len", length, accepted)


def _place(config: ModelConfig, model: ModelSpec | None, cluster: ClusterConfig) -> tuple[Shape | None, Placed | None]:
    """The shape as far as it is known, and the replicas when the cluster is. Raises `ConfigError`."""
    shape = parse_shape(config.shape, model)
    if not isinstance(cluster, SimulatedCluster) or (shape is None and model is None):
        return shape, None
    placed = place_replicas(config, shape, model, simulated_cluster(cluster))
    return placed.shape, placed


def _iter_unchecked(source: Source, cluster: ClusterConfig, placed: Placed | None) -> Iterator[str]:
    if source.hf_config is None:
        yield f"models[0].source: {source.location} is not in the local Hugging Face cache, so it is not checked"
    if not isinstance(cluster, SimulatedCluster):
        yield "cluster: memory and placement are checked when the GPUs are known"
    elif placed is None:
        yield "models[0].shape: auto is decided when the model's config is known"
