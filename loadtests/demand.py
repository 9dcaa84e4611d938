"""The fields of a scenario that say how many requests arrive when, and how long they are."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Rate = Annotated[float, Field(ge=0, le=1e6, description="Requests per second.")]
Seconds = Annotated[float, Field(ge=0, le=1e7)]
Duration = Annotated[float, Field(gt=0, le=1e7)]
Tokens = Annotated[int, Field(ge=1, le=10_000_000)]
Cv = Annotated[float, Field(ge=0, le=100, description="Of the gaps: 0 even, 1 Poisson, more is bursts (Gamma).")]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Constant(Section):
    """Evenly spaced."""

    kind: Literal["constant"]
    rate: Rate


class Poisson(Section):
    """At random, independent of each other."""

    kind: Literal["poisson"]
    rate: Rate


class Gamma(Section):
    """Gaps from a Gamma distribution."""

    kind: Literal["gamma"]
    rate: Rate
    cv: Cv


class Step(Section):
    """One rate until `at_s`, another from then on."""

    kind: Literal["step"]
    before: Rate
    after: Rate
    at_s: Seconds
    cv: Cv = 1.0


class Ramp(Section):
    """From one rate to another in a straight line."""

    kind: Literal["ramp"]
    before: Rate
    after: Rate
    start_s: Seconds = 0.0
    end_s: Duration
    cv: Cv = 1.0

    @field_validator("end_s")
    @classmethod
    def _after_start(cls, end_s: float, info: ValidationInfo) -> float:
        start_s = info.data.get("start_s", 0.0)
        if end_s <= start_s:
            raise ValueError(f"give a time after start_s ({start_s:g})")
        return end_s


class Spike(Section):
    """One rate, and for a while another."""

    kind: Literal["spike"]
    base: Rate
    peak: Rate
    at_s: Seconds
    length_s: Duration
    cv: Cv = 1.0


class Square(Section):
    """Half a period one rate, half a period another."""

    kind: Literal["square"]
    low: Rate
    high: Rate
    period_s: Duration
    cv: Cv = 1.0


class Diurnal(Section):
    """A sine that begins at its lowest: `mean * (1 - swing)`."""

    kind: Literal["diurnal"]
    mean: Rate
    swing: float = Field(ge=0, le=1, description="Share of the mean that the rate moves up and down.")
    period_s: Duration = 86_400.0
    cv: Cv = 1.0


class Client(Section):
    """One client of ServeGen's rate model: a rate for each window, and how bursty it is."""

    rates: tuple[Rate, ...] = Field(min_length=1, strict=False)
    cv: Cv = 1.0


class ServeGen(Section):
    """The sum of clients whose rates change from window to window, as in alibaba/ServeGen."""

    kind: Literal["servegen"]
    window_s: Duration = 600.0
    clients: tuple[Client, ...] = Field(min_length=1, strict=False)


class Trace(Section):
    """Recorded requests, played when they were recorded."""

    kind: Literal["trace"]
    file: str = Field(min_length=1, description="A CSV with arrival_s,input_tokens,output_tokens[,class].")
    from_s: Seconds = Field(default=0.0, description="Begin here in the recording.")
    scale: float = Field(default=1.0, gt=0, le=1000, description="Times as many requests; time is never compressed.")


Arrivals = Annotated[
    Constant | Poisson | Gamma | Step | Ramp | Spike | Square | Diurnal | ServeGen | Trace, Field(discriminator="kind")
]


class Fixed(Section):
    """All of one length."""

    kind: Literal["fixed"]
    tokens: Tokens


class Uniform(Section):
    """Any length between two, equally likely."""

    kind: Literal["uniform"]
    least: Tokens
    most: Tokens

    @field_validator("most")
    @classmethod
    def _not_below(cls, most: int, info: ValidationInfo) -> int:
        least = info.data.get("least", 1)
        if most < least:
            raise ValueError(f"give at least `least` ({least})")
        return most


class Lognormal(Section):
    """Lengths whose logarithm is normal, cut at `least` and `most`."""

    kind: Literal["lognormal"]
    median: Annotated[float, Field(ge=1, le=1e7)]
    sigma: float = Field(ge=0, le=5, description="Standard deviation of the logarithm.")
    least: Tokens = 1
    most: Tokens


Length = Annotated[Fixed | Uniform | Lognormal, Field(discriminator="kind")]


def kinds_of(union: Any) -> tuple[str, ...]:
    """The values of `kind` that tell the sections of `Arrivals` or `Length` apart."""
    sections = get_args(get_args(union)[0])
    return tuple(kind for section in sections for kind in get_args(section.model_fields["kind"].annotation))


class Lengths(Section):
    """Tokens of prompts and of answers; drawn independently (in real traces they are hardly correlated)."""

    input: Length
    output: Length
