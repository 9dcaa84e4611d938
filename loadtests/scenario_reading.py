"""Reads a scenario: one that is shipped, by its name, or a file. A mistake is one line with the field and the value."""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from loadtests.demand import Arrivals, Length, Trace, kinds_of
from loadtests.scenario import Scenario

_YAML_NAMES = {None: "null", True: "true", False: "false"}
SHIPPED = Path(__file__).parent / "scenarios"
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_KINDS = {"arrivals": kinds_of(Arrivals), "input": kinds_of(Length), "output": kinds_of(Length)}
_MAX_SHOWN = 80


Problem = tuple[str, str]  # the path of a field, "" for the scenario as a whole, and what is wrong there


class ScenarioError(ValueError):
    """A scenario that cannot be run; the message has a line for each mistake. `problems` are those of its fields."""

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


def shipped_names() -> list[str]:
    """The scenarios that come with the project."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def read_scenario(name: str, environ: Mapping[str, str]) -> Scenario:
    """The scenario called `name`, or in the file `name`; `${NAME}` stands for an environment variable.

    Raises ScenarioError.
    """
    path = SHIPPED / f"{name}.yaml" if name in shipped_names() else Path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        known = ", ".join(shipped_names())
        raise ScenarioError(f"{name}: no such scenario; give a YAML file or one of {known}") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ScenarioError(f"{name} cannot be read ({reason}); give a YAML file") from error
    try:
        given = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ScenarioError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    return parse_scenario(given, path, environ)


def parse_scenario(given: Any, path: Path, environ: Mapping[str, str]) -> Scenario:
    """A scenario from the plain values of its file; paths in it are relative to the file. Raises ScenarioError."""
    if not isinstance(given, dict):
        raise ScenarioError(f"{path}: must be a mapping of fields, is {_shown(given)}")
    problems: list[Problem] = []
    filled = _filled(given, "", environ, problems)
    if problems:
        raise _refused(path, problems)
    try:
        scenario = Scenario.model_validate({"name": path.stem, **filled})
    except ValidationError as error:
        raise _refused(path, [_problem(detail) for detail in error.errors()]) from error
    changes: dict[str, Any] = {}
    if isinstance(scenario.arrivals, Trace):
        trace_path = _resolved(scenario.arrivals.file, path.parent)
        changes["arrivals"] = scenario.arrivals.model_copy(update={"file": trace_path})
    if scenario.check_text:
        changes["check_text"] = _resolved(scenario.check_text, path.parent)
    return scenario.model_copy(update=changes)


def _resolved(given: str, folder: Path) -> str:
    """A path in a scenario is relative to the scenario's own folder."""
    return str(folder / Path(given).expanduser())


def _refused(path: Path, problems: Sequence[Problem]) -> ScenarioError:
    lines = (": ".join(part for part in (str(path), *problem) if part) for problem in problems)
    return ScenarioError("\n".join(lines), problems)


def _filled(value: Any, where: str, environ: Mapping[str, str], problems: list[Problem]) -> Any:
    """The value with its variables put in; what they hold is read as YAML, so that a number is a number."""
    if isinstance(value, dict):
        return {
            key: _filled(each, f"{where}.{key}" if where else str(key), environ, problems)
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [_filled(each, f"{where}[{index}]", environ, problems) for index, each in enumerate(value)]
    if not isinstance(value, str):
        return value
    for name in _VARIABLE.findall(value):
        if name not in environ:
            problems.append((where, f"{value} stands for the environment variable {name}; set it"))
            return value
    if whole := _VARIABLE.fullmatch(value):
        try:
            return yaml.safe_load(environ[whole[1]])
        except yaml.YAMLError:
            problems.append((where, f"{value} is {_shown(environ[whole[1]])}, which is not YAML; set {whole[1]} anew"))
            return value
    return _VARIABLE.sub(lambda found: environ[found[1]], value)


def _problem(detail: ErrorDetails) -> Problem:
    name = str(detail["loc"][-1]) if detail["loc"] else ""
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        kind = detail["input"].get("kind") if isinstance(detail["input"], dict) else detail["input"]
        accepted = ", ".join(map(repr, _KINDS[name]))
        return f"{_path(detail)}.kind", f"{_shown(kind)} is not accepted; give one of {accepted}"
    return _path(detail), _what(detail, name)


def _what(detail: ErrorDetails, name: str) -> str:
    """What is wrong with the field of this name, "" for the scenario as a whole."""
    refused = f"{_shown(detail['input'])} is not accepted"
    match detail["type"]:
        case "missing":
            return "missing; give it"
        case "extra_forbidden":
            known = _all_fields()
            close = [] if name in known else get_close_matches(name, known, n=1)
            return "no field of this section" + (f"; did you mean {close[0]}?" if close else "")
        case "value_error":
            message = str(detail["ctx"]["error"])
            return f"{refused}; {message}" if name else message
        case "invalid_key":
            return "no field of this section; the names of fields are words"
        case "string_pattern_mismatch":
            return f"{refused}; it must match {detail['ctx']['pattern']}"
        case "model_type" | "dict_type" | "model_attributes_type":
            return f"{refused}; it must be a mapping of fields"
        case _:
            accepted = detail["msg"].removeprefix("Input should be ").removeprefix("Value should ")
            return f"{refused}; it must be {accepted}"


def _path(detail: ErrorDetails) -> str:
    """Where the mistake is, as a user would write it. pydantic puts the chosen kind into the path; no user does."""
    path, before = "", ""
    for part in detail["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in _KINDS.get(before, ()):
            path += f".{part}" if path else part
        before = str(part)
    return path


def _all_fields() -> list[str]:
    definitions = Scenario.model_json_schema()
    sections = [definitions, *definitions["$defs"].values()]
    return sorted({name for section in sections for name in section.get("properties", ())})


def _shown(value: object) -> str:
    text = _YAML_NAMES[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."
