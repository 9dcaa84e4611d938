"""Typed reading of a Hugging Face `config.json`, where the same thing has several names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ACCEPTED = "Accepted is the content of the Hugging Face config.json of a decoder-only model."


class ModelConfigError(ValueError):
    """A model config lacks a field, or holds a value no model can have. The message names the field."""


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of one config; every method raises `ModelConfigError` for a value of the wrong kind."""

    config: Mapping[str, Any]
    model: str

    def positive(self, *names: str) -> int:
        """The first of `names` that is present; raises `ModelConfigError` when none is."""
        value = self.optional(*names)
        if value < 1:
            raise ModelConfigError(f"{self.model}: the config needs {' or '.join(names)}, 1 or more. {ACCEPTED}")
        return value

    def optional(self, *names: str) -> int:
        """As `positive`, but 0 when none of `names` is present."""
        for name in names:
            value = self.config.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ModelConfigError(f"{self.model}: {name} is {value!r}; it must be a whole number, 0 or more.")
            return value
        return 0

    def flag(self, name: str, *, default: bool = False) -> bool:
        value = self.config.get(name)
        return default if value is None else bool(value)

    def text(self, name: str) -> str:
        return str(self.config.get(name) or "")

    def list(self, name: str) -> Sequence[Any]:
        """The list called `name`; empty when it is absent or something else."""
        value = self.config.get(name)
        return value if isinstance(value, Sequence) and not isinstance(value, str) else ()

    def mapping(self, name: str) -> Mapping[str, Any]:
        """The object called `name`; empty when it is absent or something else."""
        value = self.config.get(name)
        return value if isinstance(value, Mapping) else {}

    def inner(self, name: str) -> "Fields":
        return Fields(self.mapping(name), self.model)

    def per_layer(self, name: str, layers: int) -> Sequence[Any]:
        """The list called `name` with one item for each layer; empty when it is absent."""
        values = self.list(name)
        if values and len(values) != layers:
            raise ModelConfigError(f"{self.model}: {name} has {len(values)} items for {layers} layers.")
        return values

    def refused(self, name: str, value: object, accepted: str) -> ModelConfigError:
        return ModelConfigError(f"{self.model}: {name} holds {value!r}; known are {accepted}.")
