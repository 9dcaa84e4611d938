"""A scenario: one YAML document that says which requests arrive when, what they must reach, and what is done meanwhile.

Here are only its fields and their own limits, with those of its requests in `demand.py`; `scenario_reading.py` reads
the file and words its mistakes, `schedule.py` makes the requests.
"""

import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, JsonValue, ValidationInfo, field_validator, model_validator

from loadtests.demand import Arrivals, Duration, Lengths, Seconds, Section, Trace

_SHAPE = re.compile(r"((tp|pp|ep|dp)[1-9][0-9]*)+")


def _url(url: str) -> str:
    """A URL that HTTP clients can read. Raises ValueError: they do so only when it is used."""
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")
        is_http = parts.scheme in ("http", "https")
        is_whole = is_http and bool(parts.hostname) and parts.port != 0 and url.split() == [url]
    except ValueError:
        is_whole = False
    if not is_whole:
        raise ValueError("give it like http://127.0.0.1:8000")
    return url


Url = Annotated[str, AfterValidator(_url)]


class Limits(Section):
    """The slowest answer that is good; null asks for nothing."""

    ttft_s: Duration | None = None
    tpot_s: Duration | None = None


class Slo(Limits):
    """What every request must reach, and which share of all arrivals must reach it."""

    percentile: float = Field(default=99.0, gt=0, le=100)


class RequestClass(Section):
    """A kind of request. A trace names the class of each row; otherwise they are drawn by their shares."""

    name: str = Field(min_length=1)
    share: float = Field(default=1.0, gt=0, le=1e6, description="Relative to the other classes.")
    lengths: Lengths | None = Field(default=None, description="Default: those of the scenario.")
    slo: Limits | None = Field(default=None, description="Default: that of the scenario.")


class Mix(Section):
    """Other shares of the classes, from some time on."""

    from_s: Seconds
    shares: dict[str, Annotated[float, Field(ge=0, le=1e6)]] = Field(min_length=1)

    @field_validator("shares")
    @classmethod
    def _some(cls, shares: dict[str, float]) -> dict[str, float]:
        if not sum(shares.values()):
            raise ValueError("give at least one share above 0")
        return shares


class ClosedLoop(Section):
    """Instead of arrivals: each client sends its next request when its last answer has ended."""

    clients: int = Field(ge=1, le=100_000)


class Repartition(Section):
    """A target for the control API. What is not named goes."""

    pools: dict[str, Annotated[int, Field(ge=0, le=10_000)]] = Field(min_length=1)
    model: str | None = Field(default=None, description="Default: the model under load.")

    @field_validator("pools")
    @classmethod
    def _shapes(cls, pools: dict[str, int]) -> dict[str, int]:
        for shape in pools:
            if not _SHAPE.fullmatch(shape):
                raise ValueError(f"{shape!r} is no shape; give names like tp2, tp4pp2 or tp8ep8")
        return pools


class DrainNode(Section):
    """Ask Ray to let nothing new start on a node, and to end it at the deadline."""

    node_id: str = Field(pattern="[0-9a-f]{56}", description="As `ray list nodes` shows it.")
    address: str = Field(default="auto", description="Of the Ray cluster.")
    deadline_s: Duration = 60.0


class Event(Section):
    """One thing that is done to the system during the run. Exactly one of the four."""

    at_s: Seconds
    kill_pid: int | None = Field(default=None, ge=2, description="The process gets SIGKILL.")
    repartition: Repartition | None = None
    drain_node: DrainNode | None = None
    command: tuple[str, ...] | None = Field(
        default=None, min_length=1, strict=False, description="A program, its words."
    )
    timeout_s: Duration = Field(default=600.0, description="Until it must have come to its end.")

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        if sum(each is not None for each in (self.kill_pid, self.repartition, self.drain_node, self.command)) != 1:
            raise ValueError("give exactly one of kill_pid, repartition, drain_node, command")
        return self


class Control(Section):
    """Archipelago's control API, for repartitions and for the GPUs of the fleet over time."""

    url: Url
    token_env: str = Field(default="ARCHIPELAGO_CONTROL_TOKEN", description="The environment variable with the token.")


class Scenario(Section):
    """One run."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    about: str = Field(default="", description="What it is for.")
    url: Url = Field(default="http://127.0.0.1:8000", description="The endpoint.")
    model: str | None = Field(default=None, description="Default: the first that /v1/models names.")
    endpoint: Literal["completions", "chat"] = Field(
        default="completions",
        description="completions: prompts of token ids, exactly as long as asked; chat: of words.",
    )
    arrivals: Arrivals | None = None
    closed_loop: ClosedLoop | None = None
    lengths: Lengths | None = Field(default=None, description="Default, with a trace: those of the trace.")
    duration_s: Duration = Field(description="How long requests arrive.")
    drain_s: Seconds = Field(default=60.0, description="How long those under way are then waited for.")
    timeout_s: Duration = Field(default=600.0, description="The longest that one request may take.")
    classes: tuple[RequestClass, ...] = Field(default=(), strict=False)
    mix: tuple[Mix, ...] = Field(default=(), strict=False, description="In the order of time.")
    slo: Slo = Slo()
    workers: int = Field(default=1, ge=1, le=256, description="Processes of the client: one for 10,000 events/s.")
    seed: int = Field(default=0, ge=0)
    max_lag_ms: Duration = Field(default=20.0, description="A run whose client lags more (p99) is invalid.")
    greedy: bool = Field(default=False, description="Ask for temperature 0, and keep a hash of each text.")
    check_text: str | None = Field(default=None, description="The records of a run whose texts these must equal.")
    ignore_eos: bool = Field(default=True, description="Answers are as long as asked (a parameter of vLLM's).")
    token_ids: bool = Field(default=True, description="Ask for token ids, to count them (a parameter of vLLM's).")
    api_key_env: str | None = Field(default=None, description="The environment variable with the API key.")
    events: tuple[Event, ...] = Field(default=(), strict=False)
    control: Control | None = None

    @field_validator("url")
    @classmethod
    def _without_version(cls, url: str) -> str:
        return url.rstrip("/").removesuffix("/v1")  # clients of OpenAI are given it with /v1

    @field_validator("check_text")
    @classmethod
    def _of_texts_that_repeat(cls, path: str | None, info: ValidationInfo) -> str | None:
        if path and not info.data.get("greedy", True):
            raise ValueError("it needs greedy: true in the scenario; sampled texts differ anyway")
        return path

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.arrivals is None) == (self.closed_loop is None):
            raise ValueError("give arrivals (an open loop) or closed_loop, one of the two")
        needs_lengths = self.lengths is None and not isinstance(self.arrivals, Trace)
        if needs_lengths and not (self.classes and all(each.lengths for each in self.classes)):
            raise ValueError("give lengths: input and output tokens")
        if self.control is None and any(event.repartition for event in self.events):
            raise ValueError("a repartition needs control: with the url of the control API")
        if len({each.name for each in self.classes}) < len(self.classes):
            raise ValueError("classes: every name may be there once")
        if unknown := {name for mix in self.mix for name in mix.shares} - {each.name for each in self.classes}:
            raise ValueError(f"mix: {', '.join(sorted(unknown))} is no class of this scenario; classes has the names")
        if list(self.mix) != sorted(self.mix, key=lambda mix: mix.from_s):
            raise ValueError("mix: give its entries in the order of from_s")
        return self

    @property
    def is_open(self) -> bool:
        """Whether requests arrive by a schedule that does not wait for answers."""
        return self.closed_loop is None

    def slo_json(self) -> dict[str, JsonValue]:
        """The SLO in the form in which records carry it."""
        classes = {each.name: each.slo.model_dump() for each in self.classes if each.slo}
        return {**self.slo.model_dump(), "attainment": self.slo.percentile / 100, "classes": classes}
