"""The replicas of a model on a known cluster: which shape, does it fit the memory, where does each one go.

`section` is where the model is in the configuration, such as `models[1]`: messages begin with it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from deployments.config import ModelConfig, SimulatedCluster
from deployments.config_messages import ConfigError, refused
from placement import (
    Choice,
    Cluster,
    Gpu,
    Infeasible,
    Layout,
    Lengths,
    MemoryUse,
    ModelSpec,
    Node,
    Shape,
    ShapeError,
    Slo,
    Workload,
    choose_shape,
    memory_use,
    misfits,
    place,
    plan,
    spec_of,
)
from placement.layout import Place
from placement.models.precision import kv_bytes_per_element
from placement.planning.candidates import shapes

AUTO = "auto"
_DEFAULT_UTILISATION = 0.92  # vLLM's gpu_memory_utilization
# With these the weights take less room than the model's own config says; how much less only vLLM knows.
_SHRINKING = ("quantization", "quantization_config", "cpu_offload_gb", "offload_backend")
USUAL_REQUESTS = Workload(input_tokens=Lengths(mean_tokens=1024), output_tokens=Lengths(mean_tokens=256))
_READING_ALONG = Slo(ttft_s=2.0, tpot_s=0.05)  # 20 tokens/s, about twice as fast as people read
_GIB = 2**30
_FREE: Mapping[str, Sequence[Layout]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """One layout for each replica. `notes` says how the shape was chosen and what could not be checked."""

    shape: Shape
    layouts: tuple[Layout, ...]
    notes: tuple[str, ...]


def simulated_cluster(cluster: SimulatedCluster) -> Cluster:
    """What the planner sees of a simulated cluster; node and island names are those its Ray nodes are labelled with."""
    gpu = Gpu(name="simulated", memory_bytes=int(cluster.gpu_memory_gib * _GIB))
    return Cluster(
        nodes=tuple(
            Node(name=f"node-{index}", island=f"island-{index}", gpus=cluster.gpus_per_island, gpu=gpu)
            for index in range(cluster.islands)
        )
    )


def parse_shape(section: str, text: str, model: ModelSpec | None) -> Shape | None:
    """The configured shape, None for `auto`. Raises `ConfigError` when it is none, or `model` cannot be cut so."""
    if text == AUTO:
        return None
    try:
        shape = Shape.parse(text)
    except ShapeError as error:
        raise ConfigError([f"{section}.shape: {error} Or give 'auto'."]) from error
    reasons = misfits(shape, model) if model else ()
    if reasons:
        raise ConfigError([refused(f"{section}.shape", text, reason) for reason in reasons])
    return shape


def place_replicas(
    section: str,
    config: ModelConfig,
    shape: Shape | None,
    model: ModelSpec | None,
    cluster: Cluster,
    held: Mapping[str, Sequence[Layout]] = _FREE,
) -> Placed:
    """Decide the shape unless it is given, check memory, and place every replica on `cluster`.

    `shape` comes from `parse_shape`; `held` is what other models, by their names, have of the cluster. Without `model`
    memory is not checked. Raises `ConfigError` when something does not fit, and when neither `shape` nor `model` is
    given.
    """
    room = _Room(cluster=cluster, held=held)
    if model is None:
        if shape is None:
            accepted = f"the config.json of {config.source} is not on this machine; download it, or give degrees"
            raise ConfigError([refused(f"{section}.shape", AUTO, accepted)])
        notes = [f"memory: the size of {config.source} is not known"]
        return _place_all(section, shape, config.replicas, room, 0, notes)
    need = _Need.of(config.engine, model)
    shrinking = [name for name in _SHRINKING if config.engine.get(name)]
    notes = [f"memory: what {section}.engine.{name} saves is not known" for name in shrinking]
    if shape is None:
        chosen = need.chosen(model, room, config.replicas)
        if isinstance(chosen, Infeasible):
            raise ConfigError([refused(f"{section}.shape", AUTO, f"{chosen}{room.standing}")])
        shape, reason = chosen
        notes.append(f"{section}.shape: {reason}")
    min_memory_bytes = 0 if shrinking else _smallest_fit(section, shape, need, model, cluster).memory_bytes
    return _place_all(section, shape, config.replicas, room, min_memory_bytes, notes)


def shapes_that_hold(config: ModelConfig, model: ModelSpec, cluster: Cluster) -> dict[Shape, int]:
    """Every shape that `model` can be cut into and `cluster` has the GPUs for, and the GPU memory it needs in bytes.

    0 bytes where every GPU of the cluster will do.
    """
    need = _Need.of(config.engine, model)
    holding = {}
    for shape in shapes(model, gpus=cluster.gpus, island_gpus=cluster.widest_island_gpus):
        gpu = next((gpu for gpu in cluster.gpu_kinds if need.on(gpu, shape, model).fits), None)
        if gpu is not None:
            holding[shape] = 0 if gpu == cluster.gpu_kinds[0] else gpu.memory_bytes
    return holding


@dataclass(frozen=True, slots=True, kw_only=True)
class _Room:
    """A cluster, and what other models have of it."""

    cluster: Cluster
    held: Mapping[str, Sequence[Layout]]

    @property
    def taken(self) -> frozenset[Place]:
        return frozenset(seat for layouts in self.held.values() for layout in layouts for seat in layout.places)

    @property
    def left(self) -> Cluster:
        """The cluster without the GPUs that are taken."""
        taken = Counter(node for node, _ in self.taken)
        nodes = self.cluster.nodes
        return Cluster(
            nodes=tuple(
                replace(node, gpus=node.gpus - taken[node.name]) for node in nodes if node.gpus > taken[node.name]
            )
        )

    @property
    def standing(self) -> str:
        """Who has the rest, as the end of a message; empty where nobody has."""
        if not self.held:
            return ""
        holders = (
            f"{model} holds {sum(layout.shape.gpus for layout in layouts)}" for model, layouts in self.held.items()
        )
        return f". GPUs left: {self.left.gpus} of {self.cluster.gpus}; {', '.join(holders)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Need:
    """What a replica must hold: one request of full length, without which vLLM does not start, or a given KV cache.

    `kv_cache_bytes` is per GPU, None when vLLM takes what is left within `utilisation` of a GPU's memory.
    """

    context_tokens: int
    kv_bytes_per_element: float
    utilisation: float
    kv_cache_bytes: int | None

    @classmethod
    def of(cls, engine: Mapping[str, Any], model: ModelSpec) -> "_Need":
        given = engine.get("kv_cache_memory_bytes")
        return cls(
            context_tokens=engine.get("max_model_len") or model.max_position_tokens,
            kv_bytes_per_element=kv_bytes_per_element(model, str(engine.get("kv_cache_dtype", "auto"))),
            # vLLM does not look at gpu_memory_utilization when it is told the size of the KV cache.
            utilisation=1.0 if given else engine.get("gpu_memory_utilization") or _DEFAULT_UTILISATION,
            kv_cache_bytes=given,
        )

    def on(self, gpu: Gpu, shape: Shape, model: ModelSpec) -> MemoryUse:
        return memory_use(
            model,
            shape,
            gpu,
            context_tokens=self.context_tokens,
            kv_bytes_per_element=self.kv_bytes_per_element,
            utilisation=self.utilisation,
        )

    def chosen(self, model: ModelSpec, room: _Room, replicas: int) -> tuple[Shape, str] | Infeasible:
        """A shape for what is left and why, by its speed where that is known: the smallest that fits elsewhere."""
        left = room.left
        if left.nodes and all(spec_of(gpu) for gpu in left.gpu_kinds):
            return self.planned(model, left, replicas)
        choice = self.choose(model, room)
        return choice if isinstance(choice, Infeasible) else (choice.shape, choice.reason)

    def planned(self, model: ModelSpec, cluster: Cluster, replicas: int) -> tuple[Shape, str] | Infeasible:
        """The planner's choice and its reason: fast enough to read along, where the cluster can be that fast."""
        for slo in (_READING_ALONG, None):
            found = plan(
                model,
                cluster,
                USUAL_REQUESTS,
                slo,
                kv_bytes_per_element=self.kv_bytes_per_element,
                utilisation=self.utilisation,
                longest_tokens=self.context_tokens,
            )
            if found.options:
                break
        if found.infeasible is not None:
            return found.infeasible
        chosen = found.economical(replicas)
        assert chosen is not None  # there are options where nothing binds
        return chosen.shape, (
            f"{chosen.shape} is the smallest replica that nearly gives the most output per GPU: "
            f"{chosen.tokens_per_s_per_gpu:.0f} tokens/s predicted, TPOT {chosen.load.tpot_s * 1e3:.1f} ms"
        )

    def choose(self, model: ModelSpec, room: _Room) -> Choice | Infeasible:
        return choose_shape(
            model,
            room.cluster,
            context_tokens=self.context_tokens,
            kv_bytes_per_element=self.kv_bytes_per_element,
            utilisation=self.utilisation,
            taken=room.taken,
        )


def _smallest_fit(section: str, shape: Shape, need: _Need, model: ModelSpec, cluster: Cluster) -> Gpu:
    """The smallest kind of GPU in `cluster` that holds `shape`. Raises `ConfigError`."""
    uses = [(gpu, need.on(gpu, shape, model)) for gpu in cluster.gpu_kinds]
    fitting = [(gpu, use) for gpu, use in uses if use.fits]
    if not fitting:
        choice = need.choose(model, _Room(cluster=cluster, held=_FREE))
        raise ConfigError([_too_big(section, shape, *uses[-1], need.context_tokens, choice)])
    wanted_bytes = need.kv_cache_bytes or 0
    for gpu, use in fitting:
        if use.kv_bytes <= (wanted_bytes or use.kv_bytes) <= _kv_room_bytes(use):
            return gpu
    least_bytes, most_bytes = fitting[-1][1].kv_bytes, _kv_room_bytes(fitting[-1][1])
    accepted = (
        f"on a GPU of {shape} one request of {need.context_tokens} tokens takes {least_bytes} bytes and there is room "
        f"for {most_bytes}; give a number between"
    )
    raise ConfigError([refused(f"{section}.engine.kv_cache_memory_bytes", wanted_bytes, accepted)])


def _kv_room_bytes(use: MemoryUse) -> int:
    return use.available_bytes - use.weights_bytes - use.activation_bytes


def _too_big(
    section: str, shape: Shape, gpu: Gpu, use: MemoryUse, context_tokens: int, choice: Choice | Infeasible
) -> str:
    nearest = "a smaller max_model_len, or larger GPUs" if isinstance(choice, Infeasible) else str(choice.shape)
    return refused(
        f"{section}.shape",
        str(shape),
        f"on a GPU it takes {_size(use.weights_bytes)} of weights, {_size(use.kv_bytes)} of KV cache for one request "
        f"of {context_tokens} tokens and {_size(use.activation_bytes)} of activations, but vLLM may use "
        f"{_size(use.available_bytes)} of {_size(gpu.memory_bytes)}; give {nearest}",
    )


def _size(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.1f} GiB" if size_bytes >= _GIB else f"{size_bytes / 2**20:.0f} MiB"


def _place_all(
    section: str, shape: Shape, replicas: int, room: _Room, min_memory_bytes: int, notes: Sequence[str]
) -> Placed:
    layouts: list[Layout] = []
    for _ in range(replicas):
        taken = room.taken.union(*(layout.places for layout in layouts))
        placed = place(shape, room.cluster, taken, min_memory_bytes=min_memory_bytes)
        if isinstance(placed, Infeasible):
            raise ConfigError([_no_room(section, shape, replicas, layouts, placed) + room.standing])
        layouts.append(placed)
    return Placed(shape=shape, layouts=tuple(layouts), notes=tuple(notes))


def _no_room(section: str, shape: Shape, replicas: int, placed: Sequence[Layout], infeasible: Infeasible) -> str:
    if not placed:
        return refused(f"{section}.shape", str(shape), str(infeasible))
    return refused(f"{section}.replicas", replicas, f"{len(placed)} fit. For the next one, {infeasible}")
