"""Limits for a pipeline: does the result of a run keep them, one by one."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, create_model

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
_DURATION = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join(_UNITS)})")
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")
_RANKS = ("mean", "p50", "p90", "p95", "p99", "max")
_LATENCIES = ("ttft", "tpot", "e2e", "event_gap", "longest_stall")
_WHOLE_RUN = ("lag", "worst_minute")  # not known by class


class GateError(Exception):
    """The limits or the result cannot be read; the message says where and what would be accepted."""


def _seconds(given: object) -> float:
    found = _DURATION.fullmatch(given.strip()) if isinstance(given, str) else None
    if found is None:
        raise ValueError(f"{given!r} is no duration; give a number with its unit: 500ms, 2s")
    return float(found[1]) * _UNITS[found[2]]


def _share(given: object) -> float:
    if isinstance(given, str) and (found := _SHARE.fullmatch(given.strip())):
        given = round(float(found[1]) / 100, 12)  # 99.9 / 100 is more than 0.999
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 <= given <= 1:
        raise ValueError(f"{given!r} is no share; give one like 99% or 0.99")
    return float(given)


_Seconds = Annotated[float, BeforeValidator(_seconds)]
_Share = Annotated[float, BeforeValidator(_share)]
_Count = Annotated[int, Field(ge=0, strict=True)]
_Rate = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a limit is a limit of: where the value stands among the figures, which way is good, how both are written."""

    path: tuple[str, ...]
    kind: Literal["duration", "share", "count", "rate"]
    at_least: bool = False


RULES: Mapping[str, Rule] = {
    "attainment": Rule(path=("attainment",), kind="share", at_least=True),
    "worst_minute": Rule(path=("worst_minute",), kind="share", at_least=True),
    "failed": Rule(path=("failed",), kind="share"),
    "lost_streams": Rule(path=("lost_streams",), kind="count"),
    "damaged_streams": Rule(path=("damaged_streams",), kind="count"),
    **{
        name: Rule(path=(name,), kind="rate", at_least=True)
        for name in ("requests_per_s", "output_tokens_per_s", "good_requests_per_s", "good_output_tokens_per_s")
    },
    **{
        f"{name}_{rank}": Rule(path=(f"{name}_s", rank), kind="duration")
        for name in (*_LATENCIES, "lag")
        for rank in _RANKS
    },
}
_TYPES: Mapping[str, Any] = {"duration": _Seconds, "share": _Share, "count": _Count, "rate": _Rate}


def _fields(names: Mapping[str, Rule]) -> dict[str, Any]:
    return {name: (_TYPES[rule.kind] | None, None) for name, rule in names.items()}


_STRICT = ConfigDict(extra="forbid", frozen=True)
_ClassLimits: Any = create_model(
    "ClassLimits",
    __config__=_STRICT,
    **_fields({name: rule for name, rule in RULES.items() if not name.startswith(_WHOLE_RUN)}),
)
_Limits: Any = create_model("Limits", __config__=_STRICT, classes=(dict[str, _ClassLimits], {}), **_fields(RULES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One limit and what the run had; a value that nothing was measured for keeps no limit."""

    name: str
    limit: str
    value: str
    ok: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Numbers in base units by the names of `RULES`: for all requests, and for those of a class."""

    general: Mapping[str, float]
    classes: Mapping[str, Mapping[str, float]]


def read_limits(path: Path) -> Limits:
    """Limits from a YAML file.

    Raises:
        GateError: it cannot be read, names something unknown, or names no limit at all.
    """
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GateError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GateError(f"{path} is not YAML: {error}") from error
    if not isinstance(given, dict) or not given:
        raise GateError(f"{path} names no limit; write one a line, for example `ttft_p99: 2s`")
    try:
        read = _Limits.model_validate(given).model_dump(exclude_none=True)
    except ValidationError as error:
        raise GateError("\n".join(f"{path}: {_told(problem)}" for problem in error.errors())) from error
    return Limits(classes=read.pop("classes"), general=read)


def _told(problem: Any) -> str:
    place, name = ".".join(map(str, problem["loc"])), str(problem["loc"][-1])
    if problem["type"] != "extra_forbidden":
        message = problem["msg"].removeprefix("Value error, ")
        return f"{place}: {problem['input']!r}: {message}" if message == problem["msg"] else f"{place}: {message}"
    near = difflib.get_close_matches(name, RULES, n=3)
    return f"{place}: no such limit; " + (f"did you mean {', '.join(near)}?" if near else f"one of {', '.join(RULES)}")


def check(document: Mapping[str, Any], limits: Limits) -> list[Check]:
    """Hold a result against limits.

    A run that is not valid fails, and so does one with failed requests unless `failed` says how many may: percentiles
    of the answers that came say nothing about those that did not.

    Raises:
        GateError: a class has limits and no requests.
    """
    invalid = "; ".join(document["invalid"])
    checks = [Check(name="valid", limit="yes", value=f"no: {invalid}" if invalid else "yes", ok=not invalid)]
    whole = document["all"]
    if whole is None:
        return checks
    known = _with_shares(whole) | {"lag_s": document["lag_s"], "worst_minute": _worst_minute(document)}
    checks += [_check(name, limit, known) for name, limit in ({"failed": 0.0} | dict(limits.general)).items()]
    rows = {row["name"]: _with_shares(row) for row in document["by_class"]}
    for class_name, own in limits.classes.items():
        if class_name not in rows:
            raise GateError(f"classes.{class_name}: the run has no such class; it has {', '.join(rows) or 'none'}")
        checks += [_check(name, limit, rows[class_name], f"{class_name}: ") for name, limit in own.items()]
    return checks


def _with_shares(row: Mapping[str, Any]) -> dict[str, Any]:
    """Shares from counts: those in a result are rounded, and may come to lie on the other side of a limit."""
    arrivals = row["arrivals"]
    return {**row, "attainment": row["good"] / arrivals, "failed": (arrivals - row["ok"]) / arrivals}


def _worst_minute(document: Mapping[str, Any]) -> float:
    found: float = min(each["good"] / each["arrivals"] for each in document["by_minute"] if each["arrivals"])
    return found


def _check(name: str, limit: float, row: Mapping[str, Any], prefix: str = "") -> Check:
    rule = RULES[name]
    value: Any = row
    for key in rule.path:
        value = value and value[key]
    sign = "≥" if rule.at_least else "≤"
    kept = value is not None and (value >= limit if rule.at_least else value <= limit)
    shown = "nothing measured" if value is None else _written(value, rule)
    return Check(name=prefix + name, limit=f"{sign} {_written(limit, rule)}", value=shown, ok=kept)


def _written(value: float, rule: Rule) -> str:
    if rule.kind == "duration":
        return f"{value:.6g} s" if value >= 1 else f"{value * 1000:.6g} ms"
    return f"{value * 100:.6g} %" if rule.kind == "share" else f"{value:.6g}"
