"""What is wrong with the autoscaler's settings, in one line each: the field, the value, and what would be accepted."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

_MAX_SHOWN = 80  # characters of a refused value
_YAML_NAMES = {None: "null", True: "true", False: "false"}


class SettingsError(ValueError):
    """Settings that cannot be used. `problems` has one line for each mistake; `str()` has all of them."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(tuple(problems))
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)


class PartError(ValueError):
    """What is wrong with a part of what is validated, at the path `part` in it; the message says what is accepted."""

    def __init__(self, part: str, value: object, accepted: str) -> None:
        super().__init__(accepted)
        self.part, self.value = part, value


def shown(value: object) -> str:
    """A value as it appears in a message: as YAML writes it, and never more than a line."""
    text = _YAML_NAMES[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def refused(field: str, value: object, accepted: str) -> str:
    """The line for a value that a field does not take; `accepted` is an instruction: "give ..."."""
    return f"{field}: {shown(value)} is not accepted; {accepted}"


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line for each thing that pydantic found in what was to be a `model`."""
    return [_problem(detail, model) for detail in error.errors()]


def _problem(detail: ErrorDetails, model: type[BaseModel]) -> str:
    path = _path(detail["loc"])
    match detail["type"]:
        case "missing":
            fields, missing = _section(model, detail["loc"][:-1]).model_fields.items(), detail["loc"][-1]
            description = next(field.description or "" for name, field in fields if missing in (name, field.alias))
            first = description.partition(". ")[0]
            return f"{path}: missing; give {first[:1].lower()}{first[1:].rstrip('.')}"
        case "extra_forbidden":
            known = [field.alias or name for name, field in _section(model, detail["loc"][:-1]).model_fields.items()]
            close = get_close_matches(str(detail["loc"][-1]), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"give one of {', '.join(known)}"
            return f"{path}: unknown name; {hint}"
        case "value_error":
            error = detail["ctx"]["error"]
            if isinstance(error, PartError):
                return refused(f"{path}.{error.part}", error.value, str(error))
            text = str(error)
            # What names the field itself says all there is to say, as the quantities of the planner do.
            return text.rstrip(".") if text.startswith(f"{path}:") else refused(path, detail["input"], text)
        case "model_type" | "dict_type" | "model_attributes_type":
            return refused(path or "settings", detail["input"], "give a mapping")
        case "tuple_type":
            return refused(path, detail["input"], "give a list")
        case "bool_type":
            return refused(path, detail["input"], "give true or false")
        case "greater_than" | "greater_than_equal" | "less_than_equal":
            return refused(path, detail["input"], f"give a number {detail['msg'].removeprefix('Input should be ')}")
        case _:
            return refused(path, detail["input"], f"give {detail['msg'].removeprefix('Input should be ')}")


def _path(location: Sequence[int | str]) -> str:
    path = ""
    for part in location:
        name = part if isinstance(part, int) or part.isprintable() else repr(part)
        path += f"[{name}]" if isinstance(part, int) else f".{name}" if path else str(name)
    return path


def _section(model: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel]:
    """The section of the settings at `location`."""
    for part in location:
        if isinstance(part, str) and (inner := _model_in(model.model_fields[part])):
            model = inner
    return model


def _model_in(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a field holds, alone, in a list, or unless it is null."""
    kinds = [field.annotation, *get_args(field.annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def reference(model: type[BaseModel]) -> str:
    """Every field of the settings, one paragraph each: path, default, description."""
    return "\n".join(_iter_reference(model, ""))


def _iter_reference(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        section, name = _model_in(field), field.alias or name
        if section is None:
            yield f"{prefix}{name}  ({_default(field)})\n    {field.description}\n"
            continue
        path = f"{prefix}{name}[]" if "tuple" in str(field.annotation) else f"{prefix}{name}"
        yield f"{path}: {field.description}\n"
        yield from _iter_reference(section, f"{path}.")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default: Any = field.default
    if default is PydanticUndefined or default is None:
        return "optional"
    if isinstance(default, Mapping) or default == ():
        return "default: none"
    return f"default {shown(default)}"
