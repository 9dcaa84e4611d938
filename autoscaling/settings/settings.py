"""The autoscaler's settings: one YAML document that says where to look, what to keep, and how far it may go.

    prometheus: {url: http://prometheus:9090}
    mode: advise
    models:
      - model: llama-70b  # as clients ask for it
        source: meta-llama/Llama-3.1-70B  # what the planner reads its sizes from
        cluster: 4x dgx-h100  # what the GPUs and the links between them are
        slo: {ttft: 500ms, tpot: 40ms, percentile: p95}
        gpus: {min: 4, max: 32}

Only `models` is needed. `archipelago autoscale --fields` describes every field.
"""

from collections.abc import Mapping
from itertools import product
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from autoscaling.schedule import ALWAYS, Scheduled, Window
from autoscaling.settings.fields import DAYS, Clock, Days, Latency, Length, Positive, Section, Shapes, Share, Url, Zone
from autoscaling.settings.messages import PartError, SettingsError, problems_of, shown
from placement import Slo
from placement.promised import USUAL_SHARE
from placement.yaml_reading import YamlError, read_yaml

Mode = Literal["advise", "approve", "auto"]


class PrometheusSettings(Section):
    """Where the metrics are."""

    url: Url = Field(default="http://127.0.0.1:9090", description="Address of Prometheus.")
    token_env: str | None = Field(
        default=None, description="Environment variable with a bearer token. Default: none is sent."
    )
    user: str | None = Field(default=None, min_length=1, description="Name for basic authentication, not a token.")
    password_env: str | None = Field(default=None, description="Environment variable with the password of user.")
    ca: str | None = Field(
        default=None, description="PEM file with the authorities that may vouch for it. Default: those of the system."
    )
    timeout_s: Positive = Field(default=5.0, description="Longest wait for an answer; a slower one counts as blind.")
    scrape_interval_s: Positive = Field(default=15.0, description="How often it scrapes; what is older is stale.")

    @model_validator(mode="after")
    def _says_once_who_asks(self) -> Self:
        if (self.user is None) != (self.password_env is None):
            raise ValueError("give user and password_env together")
        if self.user is not None and self.token_env is not None:
            raise ValueError("give token_env, or user and password_env, not both")
        return self


class ControlSettings(Section):
    """Where the control API is."""

    url: Url = Field(description="Address of the control API, such as http://127.0.0.1:8001.")
    token_env: str = Field(
        default="ARCHIPELAGO_CONTROL_TOKEN",
        description="Environment variable with a token of it; but in mode advise, of the role operate.",
    )
    ca: str | None = Field(
        default=None, description="PEM file with the authorities that may vouch for it. Default: those of the system."
    )


class ApprovalSettings(Section):
    """How proposals are handled in mode `approve`."""

    expires_s: Positive = Field(default=900.0, description="A proposal that nobody answers is withdrawn after this.")
    rejected_s: Length = Field(default=3600.0, description="What was rejected is not proposed again for this long.")


class SloSettings(Section):
    """What is promised to clients."""

    ttft: Latency | None = Field(default=None, description="Slowest first token, such as 500ms. Default: any.")
    tpot: Latency | None = Field(default=None, description="Slowest further token, such as 40ms. Default: any.")
    percentile: Share = Field(
        default=USUAL_SHARE, description="Share of the requests that keep both: p95, 95% or 0.95."
    )

    @model_validator(mode="after")
    def _promises_something(self) -> Self:
        if self.ttft is None and self.tpot is None:
            raise ValueError("give ttft, tpot or both")
        return self

    @property
    def slo(self) -> Slo:
        """As the planner takes it."""
        return Slo(ttft_s=self.ttft, tpot_s=self.tpot, percentile=self.percentile)


class GpuSettings(Section):
    """How many GPUs a model may hold."""

    min: int = Field(default=0, ge=0, description="It never holds fewer, however little is asked.")
    max: int | None = Field(default=None, ge=1, description="It never holds more. Default: all that are free.")

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.max is not None and self.min > self.max:
            raise ValueError(f"give a min of at most {self.max}, or a larger max")
        return self


class WindowSettings(Section):
    """A time of day; one that ends before it begins goes over midnight, one that ends when it begins lasts a day."""

    days: Days = Field(
        default=DAYS, description="Days on which it begins: mon, tue, wed, thu, fri, sat, sun. Default: all."
    )
    from_: Clock = Field(alias="from", description="When it begins: 22:00.")
    to: Clock = Field(description="When it ends: 06:00.")
    timezone: Zone = Field(default="UTC", description="Of these times: Europe/Berlin.")

    @property
    def window(self) -> Window:
        """As the policy takes it."""
        days = tuple(DAYS.index(day) for day in self.days)
        return Window(opens=self.from_, closes=self.to, days=days, zone=self.timezone)


class ScheduleSettings(WindowSettings):
    """Bounds that hold at a time of day beside those that always do."""

    gpus: GpuSettings = Field(default=GpuSettings(), description="How many GPUs it may hold meanwhile.")
    min_replicas: int = Field(default=0, ge=0, description="It has no fewer replicas meanwhile, whatever their shape.")

    @model_validator(mode="after")
    def _bounds_something(self) -> Self:
        if not (self.gpus.min or self.gpus.max or self.min_replicas):
            raise ValueError("give gpus with a min or a max, or min_replicas, to hold meanwhile")
        return self

    @property
    def scheduled(self) -> Scheduled:
        """As the policy takes it."""
        return Scheduled(
            window=self.window, min_gpus=self.gpus.min, max_gpus=self.gpus.max, min_replicas=self.min_replicas
        )


class ModelSettings(Section):
    """One model: what it is, what is promised, and how far the autoscaler may go with it."""

    model: str = Field(min_length=1, description="The name that clients ask for.")
    source: str = Field(
        min_length=1, description="The model for the planner: a hub id, a config.json, or a directory with one."
    )
    cluster: str | None = Field(
        default=None,
        min_length=1,
        description="The GPUs for the planner: a preset such as '4x dgx-h100', or a YAML or JSON file as `archipelago "
        "plan` takes. Nodes that it names as the control API does are as described there; others are like its first. "
        "Default: what the control API says of them; it must be given where GPUs are simulated.",
    )
    slo: SloSettings = Field(description="The SLO: slo: {ttft: 500ms, tpot: 40ms}.")
    gpus: GpuSettings = Field(default=GpuSettings(), description="How many GPUs it may hold.")
    min_replicas: int = Field(default=1, ge=1, description="It never has fewer replicas.")
    shapes: Shapes | None = Field(
        default=None, description="Shapes that it may be cut into: [tp2, tp4]. Default: what the planner finds good."
    )
    repartition: bool = Field(default=True, description="Whether it may be cut anew; else only replicas change.")
    forecast: bool = Field(default=True, description="Whether to plan ahead; else for the demand of now.")
    quantile: float = Field(
        default=0.9, ge=0.5, le=0.999, description="Quantile of the forecast that must be served within the SLO."
    )
    cooldown_s: Length | None = Field(
        default=None, description="Shortest time between two changes. Default: from the times that changes take."
    )
    down_after_s: Length | None = Field(
        default=None, description="How long fewer GPUs must have been enough. Default: from the times as well."
    )
    max_change_gpus: int | None = Field(
        default=None, ge=1, description="Most GPUs that one change may add or remove. Default: any number."
    )
    schedule: Annotated[tuple[ScheduleSettings, ...], Field(strict=False)] = Field(
        default=(),
        description="Bounds for times of the week. What they want at least is started before, so that it serves from "
        "their beginning; of several at a time the highest min and the lowest max hold, those above among them.",
    )
    windows: Annotated[tuple[WindowSettings, ...], Field(strict=False)] = Field(
        default=(), description="When changes are allowed. Default: always."
    )

    @model_validator(mode="after")
    def _schedule_leaves_room(self) -> Self:
        always = Scheduled(
            window=ALWAYS, min_gpus=self.gpus.min, max_gpus=self.gpus.max, min_replicas=self.min_replicas
        )
        _check({"": always} | {f"schedule[{at}].": one.scheduled for at, one in enumerate(self.schedule)})
        return self


def _check(bounds: Mapping[str, Scheduled]) -> None:
    """Raise `PartError` where more is wanted than is allowed at the same time. The names are what paths begin with."""
    for (lower, wants), (upper, allows) in product(bounds.items(), repeat=2):
        field, wanted = max(("gpus.min", wants.min_gpus), ("min_replicas", wants.min_replicas), key=itemgetter(1))
        if allows.max_gpus is None or wanted <= allows.max_gpus or not wants.window.may_overlap(allows.window):
            continue
        if not upper:
            raise PartError(f"{lower}{field}", wanted, f"give at most {allows.max_gpus}, which gpus.max is")
        other = ", or times of one time zone that do not overlap" if lower not in ("", upper) else ""
        accepted = f"give at least {wanted}, which {lower}{field} is at the same time{other}"
        raise PartError(f"{upper}gpus.max", allows.max_gpus, accepted)


class Settings(Section):
    """All settings of the autoscaler."""

    prometheus: PrometheusSettings = Field(default=PrometheusSettings(), description="Where the metrics are.")
    control: ControlSettings | None = Field(
        default=None, description="Where the control API is. Default: that of what is served from this directory."
    )
    mode: Mode = Field(
        default="advise",
        description="advise: write what it would do; approve: wait for `archipelago approve`; auto: do it.",
    )
    tick_s: Positive = Field(default=15.0, description="Time between two decisions.")
    directory: str = Field(
        default=".archipelago/autoscaler", min_length=1, description="Where the ledger and all that is learnt is kept."
    )
    freeze: bool = Field(default=False, description="Change nothing, in any mode; `archipelago freeze` does the same.")
    metrics_host: str = Field(
        default="127.0.0.1", min_length=1, description="Address for the autoscaler's own metrics; 0.0.0.0 for all."
    )
    metrics_port: int | None = Field(
        default=None, ge=1, le=65535, description="Port for the autoscaler's own metrics. Default: none are served."
    )
    settle_s: Positive = Field(
        default=300.0, description="How long the outcome of a change is measured before it is judged."
    )
    approval: ApprovalSettings = Field(default=ApprovalSettings(), description="How proposals are handled.")
    models: Annotated[tuple[ModelSettings, ...], Field(strict=False)] = Field(
        description="A list of models to watch, each with at least model, source and slo."
    )

    @field_validator("models")
    @classmethod
    def _are_different(cls, models: tuple[ModelSettings, ...]) -> tuple[ModelSettings, ...]:
        if not models:
            raise ValueError("give at least one")
        names = [model.model for model in models]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise ValueError(f"give each model once; {repeated} is there twice")
        return models


def read_settings(path: Path) -> Settings:
    """The settings in a file. Raises `SettingsError` with everything that is wrong with them."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SettingsError([f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8 text"]) from error
    except OSError as error:
        raise SettingsError([f"{path}: cannot be read ({error.strerror}); give an existing YAML file"]) from error
    return parse_settings(text, origin=str(path))


def parse_settings(text: str, *, origin: str = "settings") -> Settings:
    """Settings from YAML text. Raises `SettingsError`; `origin` names the text in it."""
    try:
        document = read_yaml(text)
    except YamlError as error:
        raise SettingsError([f"{origin}: {error}"]) from error
    if not isinstance(document, dict):
        held = "is empty" if document is None else f"holds {shown(document)}"
        raise SettingsError([f"{origin}: {held}; give a mapping with at least models"])
    try:
        return Settings.model_validate(document)
    except ValidationError as error:
        raise SettingsError(problems_of(error, Settings)) from error
