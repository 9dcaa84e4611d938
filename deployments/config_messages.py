"""What is wrong with a configuration, in one line each: the field, the value, and what would be accepted.

What is accepted is read from the JSON schema of the configuration, so a message and the reference of all fields
(`reference`) cannot disagree.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_MAX_SHOWN = 80  # characters of a refused value
_YAML_NAMES = {None: "null", True: "true", False: "false"}
_MAX_NAMES = 80  # all parsers are worth showing, all engine arguments are not
Schema = Mapping[str, Any]


class ConfigError(ValueError):
    """A configuration that cannot be used. `problems` has one line for each mistake; `str()` has all of them."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(tuple(problems))
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)


@contextmanager
def about(section: str) -> Iterator[None]:
    """For what reads one model and speaks of it as `models[0]`: its problems are those of `section`."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError([problem.replace("models[0]", section, 1) for problem in error.problems]) from error


def field_path(section: str, part: int | str) -> str:
    """The path of a field or list entry of `section`, as a user would write it; on one line whatever its name."""
    if isinstance(part, int):
        return f"{section}[{part}]"
    name = part if part.isprintable() and part else repr(part)
    return f"{section}.{name}" if section else name


def refused(field: str, value: object, accepted: str) -> str:
    """The line for a value that a field does not take; `accepted` is an instruction: "give ..."."""
    return f"{field}: {shown(value)} is not accepted; {accepted}"


def closest(name: str, known: Sequence[str]) -> str:
    """What to give instead of an unknown name: the closest known one, else all of them unless they are too many."""
    if close := get_close_matches(name, known, n=1):
        return f"did you mean {close[0]}?"
    if len(known) > _MAX_NAMES:
        return f"none of the {len(known)} names that are accepted is like it"
    return f"give one of {', '.join(known)}"


def shown(value: object) -> str:
    """A value as it appears in a message: as YAML writes it, and never more than a line."""
    text = _YAML_NAMES[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def problems_of(error: ValidationError, schema: Schema) -> list[str]:
    """One line for each thing pydantic found; `schema` is the JSON schema of the model that was validated."""
    # A default that could not be computed follows from another field, which has a line of its own.
    details = [detail for detail in error.errors() if detail["type"] != "default_factory_not_called"]
    return [_problem(detail, schema) for detail in details]


def _problem(detail: ErrorDetails, schema: Schema) -> str:
    path, node, parent = _walk(detail["loc"], schema)
    match detail["type"]:
        case "missing":
            return f"{path}: missing; give {_accepted(node, schema)}"
        case "union_tag_not_found":
            return f"{path}.kind: missing; give {_accepted(node, schema).removeprefix('a mapping with kind ')}"
        case "union_tag_invalid":
            kinds = _accepted(node, schema).removeprefix("a mapping with kind ")
            return refused(f"{path}.kind", detail["input"].get("kind"), f"give {kinds}")
        case "extra_forbidden":
            known = list(parent.get("properties", ()))
            return f"{path}: unknown name; {closest(str(detail['loc'][-1]), known)}"
        case "invalid_key":
            return f"{path}: {shown(detail['loc'][-1])} is not accepted as a name; give text"
        case "value_error":
            return refused(path, detail["input"], str(detail["ctx"]["error"]))
        case _:
            return refused(path, detail["input"], f"give {_accepted(node, schema)}")


def _walk(location: Sequence[int | str], schema: Schema) -> tuple[str, Schema, Schema]:
    """The path of a location as a user writes it, the schema of the value there, and that of what holds it."""
    path, node, parent = "", schema, schema
    for part in location:
        node = _resolved(node, schema)
        if "oneOf" in node:  # pydantic names the kind that was chosen, which is not part of the path
            node = {"$ref": node["discriminator"]["mapping"][part]}
            continue
        path = field_path(path, part)
        parent, node = node, node["items"] if "items" in node else node.get("properties", {}).get(part)
        if node is None:  # a name the schema does not have, or a place inside a free mapping
            return path, {}, parent
    return path, node, parent


def _resolved(node: Schema, schema: Schema) -> Schema:
    """Follow references, also that of a section which may be left out (`anyOf` it and null)."""
    while sections := [option["$ref"] for option in (node, *node.get("anyOf", ())) if "$ref" in option]:
        node = schema["$defs"][sections[0].rpartition("/")[2]]
    return node


def _accepted(node: Schema, schema: Schema) -> str:
    """What a field takes, as the object of a sentence: "an integer from 1 to 65535"."""
    node = _resolved(node, schema)
    if "const" in node:
        return repr(node["const"])
    if "oneOf" in node:
        return "a mapping with kind " + " or ".join(repr(kind) for kind in node["discriminator"]["mapping"])
    if "anyOf" in node:
        return " or ".join(_accepted(option, schema) for option in node["anyOf"])
    if node.get("type") == "array":
        return "a list"
    if node.get("type") == "string":
        return "a non-empty string" if node.get("minLength") else "a string"
    names = {"integer": "an integer", "number": "a number", "object": "a mapping", "null": "null"}
    return names.get(node.get("type", ""), "a JSON value") + _range(node)


def _range(node: Schema) -> str:
    low, above, high = node.get("minimum"), node.get("exclusiveMinimum"), node.get("maximum")
    match low, above, high:
        case None, None, None:
            return ""
        case None, _, None:
            return f" above {above:g}"
        case None, _, _:
            return f" above {above:g} and at most {high:g}"
        case _, _, None:
            return f" of at least {low:g}"
        case _:
            return f" from {low:g} to {high:g}"


def reference(model: type[BaseModel]) -> str:
    """Every field of a configuration, one paragraph each: path, what it takes, default, description."""
    schema = model.model_json_schema()
    return "\n".join(_iter_reference(schema, "", schema))


def _iter_reference(node: Schema, prefix: str, schema: Schema) -> Iterator[str]:
    required = node.get("required", ())
    for name, field in node.get("properties", {}).items():
        path = f"{prefix}{name}"
        sections = list(_sections(_resolved(field, schema), schema))
        if not sections:
            default = f"default {shown(field['default'])}" if "default" in field else "optional"
            taken = f"{_accepted(field, schema)}; {'required' if name in required else default}"
            yield f"{path}  ({taken})\n    {field['description']}\n"
        for suffix, section in sections:
            yield f"{path}{suffix}: {section['description']}\n"
            yield from _iter_reference(section, f"{path}{suffix}.", schema)


def _sections(node: Schema, schema: Schema) -> Iterator[tuple[str, Schema]]:
    """The mappings with fields of their own that a field holds, with what they add to its path."""
    if node.get("type") == "array":
        yield "[]", _resolved(node["items"], schema)
    elif "properties" in node:
        yield "", node
    for option in node.get("oneOf", ()):
        yield "", _resolved(option, schema)
