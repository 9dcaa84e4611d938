"""What one replica of a shape does for a workload: does it fit, how fast, how much, and where each step's time goes.

All shapes are computed together: every running-batch size from one request to what the KV cache holds, for every shape,
is one row of one vectorised evaluation. That is what lets a whole plan take milliseconds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from placement.clusters.terrain import AS_BUILT, Region, groups
from placement.collectives import Calibration, Engine, ExpertBackend
from placement.cost.constants import Constants
from placement.cost.residuals import NOTHING_LEARNT, Residuals, Spot, corrections, points_at
from placement.cost.serving import Demand, Served, with_running
from placement.cost.step import STEADY, Situation, lookup, situation_of
from placement.cost.work import Array, Traffic, Work, stack, work_of
from placement.models.memory import KvRoom, MemoryUse, kv_room, memory_use
from placement.models.model import ModelSpec
from placement.shape import Shape
from placement.workload import Workload

MAX_RUNNING = 1024  # of one data-parallel rank; more only lengthens the wait (vLLM's max_num_seqs is 256 to 1024)
_ASKED = 4  # sizes of batch at which measured points are asked
_BATCHES = 40  # sizes tried from 1 to the most, evenly spaced in logarithm


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A replica with `running` requests in steady state. Times are means; parts are seconds of one decode step.

    `prompt_busy` is the share of time spent on prompts; `requests_per_s` what the replica then answers. TPOT is what
    the formulas say times `measured_factor`: how far off measured points alike say they are (1 where there are none).
    """

    running: float
    ttft_s: float
    tpot_s: float
    queue_s: float
    requests_per_s: float
    prompt_busy: float
    measured_factor: float
    parts_s: Mapping[str, float] = field(hash=False)

    @property
    def communication_share(self) -> float:
        """Of a decode step."""
        total = sum(self.parts_s.values())
        sent = sum(self.parts_s[part] for part in ("all_reduce_s", "exchange_s", "send_s"))
        return sent / total if total else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One shape in one region. `loads` go from one running request to the most; empty when it does not fit."""

    shape: Shape
    region: Region
    memory: MemoryUse
    room: KvRoom
    loads: tuple[Load, ...]
    sources: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return bool(self.loads)

    @property
    def output_tokens_per_s(self) -> float:
        """The most one replica writes, whatever the latency."""
        return max((load.running / load.tpot_s for load in self.loads), default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Everything a prediction depends on beside shape and region.

    `links` are the factors of the cluster's own links, where they were measured. `longest_tokens` is the longest
    request that must find room, 0 for one of mean lengths.
    """

    model: ModelSpec
    workload: Workload
    constants: Constants
    engine: Engine = "vllm"
    exchange: ExpertBackend = "allgather_reducescatter"
    kv_bytes_per_element: float = 2.0
    utilisation: float = 0.9
    residuals: Residuals = NOTHING_LEARNT
    links: Calibration = AS_BUILT
    longest_tokens: int = 0

    @property
    def traffic(self) -> Traffic:
        return Traffic(
            input_tokens=self.workload.input_tokens.mean_tokens,
            output_tokens=self.workload.output_tokens.mean_tokens,
            kv_bytes_per_element=self.kv_bytes_per_element,
        )


def predict(question: Question, places: Sequence[tuple[Shape, Region]]) -> list[Prediction]:
    """One prediction for each shape and region, in order."""
    rooms = [_room(question, shape, region) for shape, region in places]
    fitting = [index for index, (_, room) in enumerate(rooms) if room.tokens >= _longest(question)]
    loads = _loads(question, [places[index] for index in fitting], [rooms[index][1] for index in fitting])
    by_index = dict(zip(fitting, loads, strict=True))
    return [
        Prediction(
            shape=shape,
            region=region,
            memory=memory,
            room=room,
            loads=by_index.get(index, ()),
            sources=_sources(question, region),
        )
        for index, ((shape, region), (memory, room)) in enumerate(zip(places, rooms, strict=True))
    ]


def work_in(question: Question, shape: Shape, region: Region) -> Work:
    """The work of one pass of `shape` in `region`."""
    return work_of(
        question.model,
        shape,
        region.kind,
        groups(shape, region, question.links),
        question.traffic,
        engine=question.engine,
        exchange=question.exchange,
        constants=question.constants,
    )


def factors_for(question: Question, regions: Sequence[Region]) -> dict[str, Array]:
    """The constants of the model in each of `regions`."""
    found = lookup([_situation(question, region) for region in regions])
    return found.factors(found.logarithms(question.constants))


def _longest(question: Question) -> float:
    """Tokens of one request that must fit."""
    mean = question.workload.input_tokens.mean_tokens + question.workload.output_tokens.mean_tokens
    return max(mean, question.longest_tokens)


def _room(question: Question, shape: Shape, region: Region) -> tuple[MemoryUse, KvRoom]:
    context = question.traffic.context_tokens
    memory = memory_use(
        question.model,
        shape,
        region.gpu,
        context_tokens=context,
        kv_bytes_per_element=question.kv_bytes_per_element,
        utilisation=question.utilisation,
    )
    room = kv_room(
        question.model,
        shape,
        region.gpu,
        context_tokens=context,
        kv_bytes_per_element=question.kv_bytes_per_element,
        utilisation=question.utilisation,
    )
    return memory, room


def _loads(
    question: Question, places: Sequence[tuple[Shape, Region]], rooms: Sequence[KvRoom]
) -> list[tuple[Load, ...]]:
    if not places:
        return []
    context = question.traffic.context_tokens
    most = [
        max(1.0, min(room.tokens / context, MAX_RUNNING) * shape.dp)
        for (shape, _), room in zip(places, rooms, strict=True)
    ]
    sizes = [_sizes(count) for count in most]
    repeats = [len(each) for each in sizes]
    running = np.concatenate(sizes)
    work = stack([work_in(question, shape, region) for shape, region in places], repeats)
    factors = factors_for(question, [region for _, region in places])
    repeated = {name: np.repeat(values, repeats) for name, values in factors.items()}
    demand = Demand(
        input_tokens=np.full(len(running), question.workload.computed_tokens),
        output_tokens=np.full(len(running), question.workload.output_tokens.mean_tokens),
        room_requests=np.repeat(most, repeats),
    )
    served = with_running(work, repeated, demand, running)
    measured = np.concatenate(_measured_factors(question, places, sizes))
    ends = np.cumsum(repeats)
    return [
        tuple(_load(served, index, measured[index]) for index in range(end - count, end))
        for end, count in zip(ends, repeats, strict=True)
    ]


def _measured_factors(
    question: Question, places: Sequence[tuple[Shape, Region]], running: Sequence[Array]
) -> list[Array]:
    """What measured points alike say of TPOT at each size of batch; asked at a few sizes, and straight in between."""
    workload = question.workload
    asked = [np.geomspace(sizes[0], sizes[-1], _ASKED) for sizes in running]
    points = points_at(
        [
            Spot(
                situation=_situation(question, region),
                model=question.model,
                shape=shape,
                clients=float(clients),
                input_tokens=workload.input_tokens.mean_tokens,
                output_tokens=workload.output_tokens.mean_tokens,
            )
            for (shape, region), sizes in zip(places, asked, strict=True)
            for clients in sizes
        ]
    )
    found = corrections(question.residuals, points, "tpot").reshape(len(places), _ASKED)
    return [
        np.interp(np.log(sizes), np.log(at), factors) for sizes, at, factors in zip(running, asked, found, strict=True)
    ]


def _sizes(most: float) -> Array:
    count = max(2, min(_BATCHES, math.ceil(4 * math.log2(max(most, 1.0))) + 1))
    return np.unique(np.geomspace(1.0, most, count)) if most > 1 else np.ones(1)


def _load(served: Served, index: int, measured_factor: float) -> Load:
    """Requests take as much longer as their tokens do."""
    return Load(
        running=float(served.running[index]),
        ttft_s=float(served.ttft_s[index]),
        tpot_s=float(served.tpot_s[index] * measured_factor),
        queue_s=float(served.queue_s[index]),
        requests_per_s=float(served.requests_per_s[index] / measured_factor),
        measured_factor=float(measured_factor),
        prompt_busy=float(served.prompt_busy[index]),
        parts_s={name: float(values[index]) for name, values in served.step._asdict().items()},
    )


def _situation(question: Question, region: Region) -> Situation:
    return situation_of(question.model, region.kind, question.engine, STEADY)


def _sources(question: Question, region: Region) -> tuple[str, ...]:
    """Where the numbers come from, one sentence each."""
    measured = question.constants.is_measured(region.kind.kind, question.engine)
    fitted = "fitted on it" if measured else "fitted on other GPUs, as this one was not measured"
    return (
        f"GPU: {region.kind.source} (datasheet)",
        f"engine overheads of {question.engine} on {region.kind.kind}: {fitted}",
        f"matrix products: {question.constants.gemm_source}",
        f"inside an island: {region.links.island.source}",
        f"between machines: {region.links.network.source}",
    )
