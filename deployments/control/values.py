"""What the values of the control API are made of: pools, reasons, names, and how each is checked."""

import re
from collections.abc import Callable, Mapping
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from placement import Shape, ShapeError

MAX_REPLICAS = 4096  # of one pool
MAX_POOLS = 64
MAX_REASON_CHARACTERS = 500
MAX_HOLDER_CHARACTERS = 200
_LEASE_NAME = re.compile("[A-Za-z0-9._-]{1,64}")


def _pools(value: object) -> object:
    """Pools with shapes in canonical form and without empty pools; anything but a mapping is left to the type."""
    if not isinstance(value, Mapping):
        return value
    pools: dict[str, int] = {}
    for text, replicas in value.items():
        try:
            shape = str(Shape.parse(text))
        except (ShapeError, TypeError) as error:
            raise ValueError(str(error) if isinstance(error, ShapeError) else "give shapes as text") from error
        if isinstance(replicas, bool) or not isinstance(replicas, int) or not 0 <= replicas <= MAX_REPLICAS:
            raise ValueError(f"give {text} a whole number of replicas from 0 to {MAX_REPLICAS}, not {replicas!r}")
        if shape in pools:
            raise ValueError(f"give {shape} once")
        pools[shape] = replicas
    if len(pools) > MAX_POOLS:
        raise ValueError(f"give at most {MAX_POOLS} shapes, not {len(pools)}")
    return {shape: replicas for shape, replicas in sorted(pools.items()) if replicas}


def _one_line(max_characters: int, purpose: str) -> Callable[[str], str]:
    def checked(text: str) -> str:
        # It is shown in terminals of other people: control characters could rewrite what is on them.
        if not text.strip() or not text.isprintable() or len(text) > max_characters:
            raise ValueError(f"give one line of at most {max_characters} printable characters that {purpose}")
        return text.strip()

    return checked


def _lease_name(text: str) -> str:
    if not _LEASE_NAME.fullmatch(text):
        raise ValueError("give up to 64 letters, digits, dots, hyphens and underscores")
    return text


Pools = Annotated[Mapping[str, int], BeforeValidator(_pools)]
Reason = Annotated[str, AfterValidator(_one_line(MAX_REASON_CHARACTERS, "says why"))]
Holder = Annotated[str, AfterValidator(_one_line(MAX_HOLDER_CHARACTERS, "says who"))]
LeaseName = Annotated[str, AfterValidator(_lease_name)]
Seconds = Annotated[float, Field(ge=0)]


class Wire(BaseModel):
    """A value that is frozen, and refuses names it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
