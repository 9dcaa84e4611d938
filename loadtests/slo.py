"""What a request must reach to be good, in general and by class."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The slowest answer that is good; None asks for nothing."""

    ttft_s: float | None = None
    tpot_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """What is asked of every request, of those of a class, and of which share of all arrivals."""

    limits: Limits
    classes: Mapping[str, Limits]
    attainment: float | None = None

    def of(self, class_name: str | None) -> Limits:
        """The limits of a class: its own ones, and the general ones where it has none."""
        own = self.classes.get(class_name or "", self.limits)
        return Limits(
            ttft_s=self.limits.ttft_s if own.ttft_s is None else own.ttft_s,
            tpot_s=self.limits.tpot_s if own.tpot_s is None else own.tpot_s,
        )

    @property
    def tightest_ttft_s(self) -> float | None:
        """The smallest TTFT asked of anybody."""
        asked = [limits.ttft_s for limits in (self.limits, *self.classes.values()) if limits.ttft_s is not None]
        return min(asked, default=None)


def slo_of(run: Mapping[str, Any]) -> Slo:
    """The SLO as the header of a records file has it."""
    given = run.get("slo") or {}
    classes = {name: _limits(limits) for name, limits in (given.get("classes") or {}).items()}
    return Slo(limits=_limits(given), classes=classes, attainment=given.get("attainment"))


def _limits(given: Mapping[str, Any]) -> Limits:
    return Limits(ttft_s=given.get("ttft_s"), tpot_s=given.get("tpot_s"))
