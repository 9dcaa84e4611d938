"""What the policy may do with one model, and how patient it is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoscaling.schedule import Scheduled, Window
from placement import Shape, Slo

# A cheaper fleet must have been enough for this many cold starts: a replica given up too early costs one to have back.
_STARTS_BEFORE_LESS = 3.0
_LEAST_DOWN_AFTER_S = 300.0
_MOST_REGRETS = 3


class RulesError(ValueError):
    """Rules nobody can follow. The message names the field, the value and what is accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules of one model.

    Attributes:
        slo: what is kept for its percentile of the requests.
        shapes: candidates for another cut; shapes that run are candidates without being named.
        min_gpus: it never holds fewer GPUs. max_gpus: nor more; None for all that the cluster has.
        min_replicas: it never has fewer replicas.
        max_shapes: most shapes that serve at once, apart from the time of a change.
        repartition: whether other shapes are considered at all. forecast: else the demand of now is planned for.
        forecast_quantile: of the forecast demand that shall be served within the SLO.
        horizon_s: what a price is over; 0 for one cold start and ten minutes.
        payback_s: how long the demand is taken to last beyond the horizon, when GPU-seconds are compared.
        lookback_s: what was asked in so long a past, a repartition that only saves GPUs must serve as well. Requests
            that missed the SLO in it count against those that may.
        hysteresis: share of the GPU-seconds that such a repartition must save.
        up_after_s: demand must have been too much for so long, and still be near its peak.
        repartition_after_s: the same for a repartition, whether it cures or saves.
        down_after_s: fewer GPUs must have been enough for so long. cooldown_s: shortest time from a change to the next,
            but for replicas added after replicas were added. None derives either from the times that changes take.
        cooldown_factor: a cooldown also lasts so many times what the last change took.
        max_change_gpus: most GPUs that one change may start, and most that it may stop; None for any number.
        floor: share of the GPUs that keeps serving during a repartition; 0 allows a swap.
        schedule: bounds that hold at times beside those above.
        windows: changes only within these; always where there are none. frozen: no changes at all.
    """

    slo: Slo
    shapes: tuple[Shape, ...] = ()
    min_gpus: int = 0
    max_gpus: int | None = None
    min_replicas: int = 1
    max_shapes: int = 2
    repartition: bool = True
    forecast: bool = True
    forecast_quantile: float = 0.9
    horizon_s: float = 0.0
    payback_s: float = 1200.0
    lookback_s: float = 1200.0
    hysteresis: float = 0.1
    up_after_s: float = 60.0
    repartition_after_s: float = 120.0
    down_after_s: float | None = None
    cooldown_s: float | None = None
    cooldown_factor: float = 1.0
    max_change_gpus: int | None = None
    floor: float = 0.0
    schedule: tuple[Scheduled, ...] = ()
    windows: tuple[Window, ...] = ()
    frozen: bool = False

    def __post_init__(self) -> None:
        if self.max_gpus is not None and self.max_gpus < max(self.min_gpus, 1):
            raise RulesError(f"max_gpus is {self.max_gpus}; it must be at least 1 and min_gpus, {self.min_gpus}.")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= least):
                raise RulesError(f"{name} is {value}; it must be at least {least}.")
        for name in ("hysteresis", "floor"):
            if not 0 <= getattr(self, name) < 1:
                raise RulesError(f"{name} is {getattr(self, name)}; it must be from 0 to below 1.")
        if not 0.5 <= self.forecast_quantile < 1:
            raise RulesError(f"forecast_quantile is {self.forecast_quantile}; it must be from 0.5 to below 1.")

    def is_in_window(self, at_s: float) -> bool:
        """Whether changes are allowed at this time of day."""
        return not self.windows or any(window.is_open(at_s) for window in self.windows)

    def patience_s(self, start_s: float, regrets: int = 0) -> float:
        """How long fewer GPUs must have been enough, where a cold start takes `start_s`.

        It doubles each time that GPUs were given up too early, up to what a repartition looks back.
        """
        once_s = self.down_after_s
        if once_s is None:
            once_s = max(_LEAST_DOWN_AFTER_S, _STARTS_BEFORE_LESS * start_s)
        return max(once_s, min(once_s * (1 << min(regrets, _MOST_REGRETS)), self.lookback_s))

    def cooldown_after_s(self, took_s: float, start_s: float) -> float:
        """How long nothing may change after a change that took `took_s`."""
        return max(start_s if self.cooldown_s is None else self.cooldown_s, self.cooldown_factor * took_s)


_LEAST = {
    "min_gpus": 0,
    "min_replicas": 0,
    "max_shapes": 1,
    "horizon_s": 0,
    "payback_s": 0,
    "lookback_s": 0,
    "up_after_s": 0,
    "repartition_after_s": 0,
    "down_after_s": 0,
    "cooldown_s": 0,
    "cooldown_factor": 0,
    "max_change_gpus": 1,
}


def candidates(rules: Rules, running: Sequence[Shape]) -> tuple[Shape, ...]:
    """Shapes worth a look: those that run first."""
    return tuple(dict.fromkeys((*running, *(rules.shapes if rules.repartition or not running else ()))))
