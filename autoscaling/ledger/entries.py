"""What the ledger holds: facts in the order they happened, and the entries that they add up to.

A decision is one fact; what became of it is more facts with the same number. So a line is never written twice, and
whatever the last line is when the power goes, the lines before it are true.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from autoscaling.decision import Cause, Decision, Expected, Kind, Option, Price
from autoscaling.observation import Pools, pools_of, spelled
from placement import Shape

State = Literal[
    "noted",  # nothing is to be done: a hold, or only advice
    "waiting",  # for a person to approve it
    "approved",  # by a person; not tried yet
    "rejected",  # by a person
    "expired",  # nobody answered in time
    "withdrawn",  # what is known now speaks for something else
    "trying",  # the control API is being asked; after a crash nobody knows whether it heard
    "acted",  # the control API took the target
    "failed",  # it did not, or could not be reached
]
Verdict = Literal["as predicted", "better", "worse", "inconclusive", "superseded"]
OPEN: frozenset[State] = frozenset({"waiting", "approved", "trying"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What pools bring at some demand. Times are at the percentile of the SLO; None where they are not known."""

    requests_per_s: float
    gpus: float
    attainment: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a change brought, once it had settled.

    `predicted` is for the demand that really came; `without` is what the pools before would have had at that demand.
    `is_regretted`: it did worse than those. `why` is a sentence. A superseded change was never measured.
    """

    verdict: Verdict
    why: str
    predicted: Figures | None = None
    realised: Figures | None = None
    without: Figures | None = None
    is_regretted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """How far off the cost model was when a change was decided: by how much more of the requests kept the SLO than it
    said of the pools that served, and the demand that this was seen at."""

    bias: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One decision and what became of it. `before` are the pools wanted until then, of fleet version `version`.

    `basis` is None where they had not served undisturbed for long enough to say.
    `since_s` is when it got its present state, `why` what there is to say of that; `by` is who approved or rejected it.
    """

    number: int
    at_s: float
    model: str
    mode: str
    version: int
    before: Pools
    decision: Decision
    state: State
    since_s: float
    basis: Basis | None = None
    why: str = ""
    by: str = ""
    outcome: Outcome | None = None

    @property
    def target(self) -> Pools:
        return self.decision.target

    @property
    def is_judged(self) -> bool:
        """Whether nothing more will be known of it."""
        return self.state not in {*OPEN, "acted"} or self.outcome is not None


def change_of(entry: Entry) -> str:
    """ "2 x tp4 -> 3 x tp4", or what is held."""
    if entry.decision.kind == "hold":
        return f"hold {spelled(entry.target)}" if entry.target else "hold"
    return f"{spelled(entry.before)} -> {spelled(entry.target)}"


def decision_fact(entry: Entry) -> dict[str, Any]:
    """The first fact of an entry."""
    return {
        "fact": "decision",
        "number": entry.number,
        "at_s": entry.at_s,
        "model": entry.model,
        "mode": entry.mode,
        "version": entry.version,
        "before": _pools_json(entry.before),
        "basis": entry.basis and asdict(entry.basis),
        "state": entry.state,
        "decision": decision_json(entry.decision),
    }


def state_fact(number: int, state: State, *, at_s: float, why: str, by: str) -> dict[str, Any]:
    """An entry is in another state from now on."""
    return {"fact": "state", "number": number, "at_s": at_s, "state": state, "why": why, "by": by}


def outcome_fact(number: int, outcome: Outcome, *, at_s: float) -> dict[str, Any]:
    """What a change brought."""
    return {"fact": "outcome", "number": number, "at_s": at_s, "outcome": asdict(outcome)}


def add_fact(entries: dict[int, Entry], fact: Mapping[str, Any]) -> None:
    """One more fact about `entries`, by number. A fact about a number whose decision is gone says nothing any more.

    Raises `KeyError`, `TypeError`, `ValueError` or `AttributeError` for what is no fact, and then changes nothing.
    """
    number = int(fact["number"])
    if fact["fact"] == "decision":
        entries[number] = _entry(fact)
    elif number in entries:
        entries[number] = after(entries[number], fact)


def after(entry: Entry, fact: Mapping[str, Any]) -> Entry:
    """An entry, one more fact known."""
    if fact["fact"] == "outcome":
        return replace(entry, outcome=_outcome(fact["outcome"]))
    if fact["fact"] != "state":
        raise ValueError(f"{fact['fact']!r} is no kind of fact")
    state = _one_of(State, fact["state"])
    by = str(fact["by"]) or entry.by
    return replace(entry, state=state, since_s=float(fact["at_s"]), why=str(fact["why"]), by=by)


def entry_json(entry: Entry) -> dict[str, Any]:
    """An entry as plain values: its decision, and what became of it so far."""
    fact = {key: value for key, value in decision_fact(entry).items() if key != "fact"}
    return fact | {
        "since_s": entry.since_s,
        "why": entry.why,
        "by": entry.by,
        "outcome": entry.outcome and asdict(entry.outcome),
    }


def decision_json(decision: Decision) -> dict[str, Any]:
    """Plain values; shapes by name."""
    return {
        "at_s": decision.at_s,
        "kind": decision.kind,
        "cause": decision.cause,
        "target": _pools_json(decision.target),
        "reason": decision.reason,
        "expected": decision.expected and asdict(decision.expected),
        "options": [
            {"kind": option.kind, "pools": _pools_json(option.pools), "price": asdict(option.price), "why": option.why}
            for option in decision.options
        ],
    }


def decision_from(document: Mapping[str, Any]) -> Decision:
    """What `decision_json` wrote. Raises as `add_fact` for anything else."""
    expected = document["expected"]
    return Decision(
        at_s=float(document["at_s"]),
        kind=_one_of(Kind, document["kind"]),
        cause=_one_of(Cause, document["cause"]),
        target=_pools_from(document["target"]),
        reason=str(document["reason"]),
        expected=Expected(**expected) if expected else None,
        options=tuple(
            Option(
                kind=_one_of(Kind, option["kind"]),
                pools=_pools_from(option["pools"]),
                price=Price(**option["price"]),
                why=str(option["why"]),
            )
            for option in document["options"]
        ),
    )


def _entry(fact: Mapping[str, Any]) -> Entry:
    at_s = float(fact["at_s"])
    return Entry(
        number=int(fact["number"]),
        at_s=at_s,
        model=str(fact["model"]),
        mode=str(fact["mode"]),
        version=int(fact["version"]),
        before=_pools_from(fact["before"]),
        decision=decision_from(fact["decision"]),
        state=_one_of(State, fact["state"]),
        since_s=at_s,
        basis=Basis(**fact["basis"]) if fact["basis"] else None,
    )


def _outcome(document: Mapping[str, Any]) -> Outcome:
    figures = {name: document[name] and Figures(**document[name]) for name in ("predicted", "realised", "without")}
    return Outcome(
        verdict=_one_of(Verdict, document["verdict"]),
        why=str(document["why"]),
        is_regretted=document["is_regretted"] is True,
        **figures,
    )


def _pools_json(pools: Pools) -> dict[str, int]:
    return {str(shape): replicas for shape, replicas in pools.items()}


def _pools_from(document: Mapping[str, int]) -> Pools:
    return pools_of({Shape.parse(name): int(replicas) for name, replicas in document.items()})


def _one_of(kinds: Any, value: Any) -> Any:
    if value not in get_args(kinds):
        raise ValueError(f"{value!r} is none of {', '.join(get_args(kinds))}")
    return value
