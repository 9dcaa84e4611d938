"""Small scenarios, each with one right answer that the cost model itself confirms (the tests run both sides).

In all of them something changes at `CHANGE_S`; `right` are the pools a good policy ends with, the initial ones where
the right answer is to do nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from autoscaling.capacity.site import site_of
from autoscaling.capacity.times import times_of
from autoscaling.observation import Pools
from autoscaling.simulation.scenario import Scenario
from autoscaling.simulation.synthetic import Load, Profile, constant, made, spike, square, step
from autoscaling.simulation.traces import Trace
from placement import ModelSpec, Shape, Slo, cluster_of

CHANGE_S = 600.0
_DURATION_S = 3000.0
_SPREAD = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Micro:
    """One scenario. `model` is a hub id, `machines` so many of the preset `machine`."""

    what: str
    model: str
    machine: str
    machines: int
    shapes: tuple[Shape, ...]
    initial: Pools = field(hash=False)
    right: Pools = field(hash=False)
    slo: Slo
    requests_per_s: Profile
    input_tokens: Profile
    output_tokens: Profile
    max_gpus: int

    def trace(self, seed: int, name: str = "micro") -> Trace:
        """Its requests."""
        load = Load(
            requests_per_s=self.requests_per_s,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            duration_s=_DURATION_S,
            input_spread=_SPREAD,
            output_spread=_SPREAD,
        )
        return made(load, seed, name=name)

    def scenario(self, find_model: Callable[[str], ModelSpec]) -> Scenario:
        """Its fleet; `find_model` makes the model of a hub id."""
        site = site_of(find_model(self.model), cluster_of(self.machine, self.machines), shapes=self.shapes)
        return Scenario(site=site, slo=self.slo, initial=self.initial, max_gpus=self.max_gpus, times=times_of(site))


def _slo(ttft_s: float, tpot_s: float) -> Slo:
    return Slo(ttft_s=ttft_s, tpot_s=tpot_s, percentile=0.95)


_TP1, _TP2, _TP4, _TP8 = (Shape(tp=width) for width in (1, 2, 4, 8))
_WIDE_EP = Shape(ep=16, dp=16)


def _dense(
    what: str,
    initial: Pools,
    right: Pools,
    slo: Slo,
    requests_per_s: Profile,
    input_tokens: Profile,
    *,
    machines: int = 4,
    max_gpus: int = 32,
) -> Micro:
    return Micro(
        what=what,
        model="meta-llama/Llama-3.1-70B",
        machine="dgx-h100",
        machines=machines,
        shapes=(_TP2, _TP4, _TP8),
        initial=initial,
        right=right,
        slo=slo,
        requests_per_s=requests_per_s,
        input_tokens=input_tokens,
        output_tokens=constant(200),
        max_gpus=max_gpus,
    )


MICROS: Mapping[str, Micro] = {
    "rate-doubles": _dense(
        "twice the requests of the same lengths: more replicas",
        {_TP4: 2},
        {_TP4: 3},
        _slo(2.0, 0.05),
        step(10.0, 20.0, at_s=CHANGE_S),
        constant(1000),
    ),
    "inputs-8x": _dense(
        "prompts eight times as long and a tight TTFT: wider groups, as more of the same are never fast enough",
        {_TP4: 1},
        {_TP8: 2},
        _slo(1.2, 0.05),
        constant(1.6),
        step(1000, 8000, at_s=CHANGE_S),
    ),
    "load-falls": _dense(
        "less load and a tight TPOT: fewer and wider",
        {_TP4: 4},
        {_TP8: 1},
        _slo(2.0, 0.022),
        step(9.0, 6.5, at_s=CHANGE_S),
        constant(1000),
    ),
    "budget-exhausted": _dense(
        "no GPUs left and a loose TPOT: narrower groups answer more in all",
        {_TP8: 1},
        {_TP4: 2},
        _slo(2.0, 0.1),
        step(12.0, 18.5, at_s=CHANGE_S),
        constant(1000),
        machines=1,
        max_gpus=8,
    ),
    "context-grows": Micro(
        what="the KV cache of one GPU no longer holds enough of longer requests: two GPUs hold ten times as much",
        model="deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",
        machine="dgx-h100",
        machines=2,
        shapes=(_TP1, _TP2),
        initial={_TP1: 1},
        right={_TP2: 2},
        slo=_slo(3.0, 0.05),
        requests_per_s=constant(4.0),
        input_tokens=step(400, 3000, at_s=CHANGE_S),
        output_tokens=constant(150),
        max_gpus=16,
    ),
    "spike": _dense(
        "a minute of twice the requests is over before a replica has started: nothing",
        {_TP4: 2},
        {_TP4: 2},
        _slo(2.0, 0.05),
        spike(10.0, 22.0, from_s=CHANGE_S, for_s=60.0),
        constant(1000),
    ),
    "experts-4x": Micro(
        what="four times the requests, bound by decoding: experts over more GPUs",
        model="deepseek-ai/DeepSeek-V3",
        machine="dgx-h200",
        machines=4,
        shapes=(_TP8, _WIDE_EP),
        initial={_TP8: 1},
        right={_WIDE_EP: 1},
        slo=_slo(2.0, 0.05),
        requests_per_s=step(6.5, 26.0, at_s=CHANGE_S),
        input_tokens=constant(500),
        output_tokens=constant(500),
        max_gpus=32,
    ),
    "oscillating": _dense(
        "lengths that go up and down faster than a repartition pays back: hold what serves both",
        {_TP8: 2},
        {_TP8: 2},
        _slo(1.2, 0.05),
        constant(1.6),
        square(1000, 8000, period_s=120.0),
    ),
}
