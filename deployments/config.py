"""The configuration file: one YAML document that says what to serve, on which cluster, and where.

Here are only its fields and their own limits. What can be said about a configuration as a whole, without starting
anything, is in `check.py`; how a mistake is worded, in `config_messages.py`.
"""

import itertools
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationError, field_validator

from deployments.access.fields import EdgeLimitsConfig, TlsConfig
from deployments.config_messages import ConfigError, problems_of, shown
from deployments.config_section import Section
from deployments.telemetry.fields import SloConfig, TelemetryConfig
from placement.yaml_reading import YamlError, read_yaml

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+-]*")
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):(?P<port>[1-9][0-9]{0,4})")
MAX_PORT = 65535


def _last_part(validated: dict[str, Any]) -> str:
    return Path(str(validated["source"])).name


class SimulatedEngineConfig(Section):
    """An engine that runs no model: its speed is what the planner predicts, its tokens are invented.

    For planning capacity and for testing large fleets.
    """

    gpu: str = Field(
        min_length=1, description="The kind of GPU whose speed is simulated, as the planner names it, such as h100_sxm."
    )
    time_scale: float = Field(
        default=1.0,
        gt=0,
        le=1e6,
        description="How many times faster than predicted everything happens; 10 is ten times.",
    )
    mean_answer_tokens: float | None = Field(
        default=None,
        ge=1,
        le=1e6,
        description="Mean length of answers, which then end by themselves (exponentially distributed, the same for the "
        "same prompt and seed). Default: they go on until max_tokens or max_model_len.",
    )


class ModelConfig(Section):
    """One model and how its replicas are cut."""

    source: str = Field(
        min_length=1,
        description="Where the model comes from: the name of a model made locally (tiny-llama, tiny-moe, bench-100m), "
        "a directory, or a Hugging Face id.",
    )
    name: str = Field(
        default_factory=_last_part,
        description="The name clients ask for. Default: the last part of `source`.",
    )
    shape: str = Field(
        default="auto",
        description="How one replica is cut: `auto`, or degrees such as tp4, tp2pp2 or tp2ep2.",
    )
    replicas: int = Field(default=1, ge=1, description="Number of replicas.")
    port: int | None = Field(
        default=None,
        ge=1,
        le=MAX_PORT,
        description="TCP port of this model's endpoint. Default: endpoint.port for the first model, and the ports "
        "after it for those that follow, but for control.port.",
    )
    engine: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Arguments of the vLLM engine, named as in vLLM's EngineArgs (max_model_len, dtype, ...). "
        "Those that follow from other fields here, such as tensor_parallel_size, are refused.",
    )
    tool_call_parser: str | None = Field(
        default=None,
        description="vLLM's parser for the tool calls of this model (hermes for the models made locally); "
        "also turns automatic tool choice on.",
    )
    reasoning_parser: str | None = Field(
        default=None, description="vLLM's parser that separates this model's reasoning from its answer."
    )
    chat_template: str | None = Field(
        default=None, description="A file with a Jinja chat template, or the template itself. Default: the model's own."
    )
    simulated: SimulatedEngineConfig | None = Field(
        default=None, description="Simulate the engine instead of running the model. Default: the model runs."
    )
    slo: SloConfig | None = Field(
        default=None, description="What its clients are promised. Default: what `telemetry` says for all models."
    )

    @field_validator("name")
    @classmethod
    def _is_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("give letters, digits and . _ : @ / + -, beginning with a letter or a digit")
        return name


class SimulatedCluster(Section):
    """GPUs that only exist for the scheduler: the models run on this machine's processor."""

    kind: Literal["simulated"] = Field(default="simulated", description="A cluster simulated on this machine.")
    islands: int = Field(default=2, ge=1, le=64, description="Number of islands; each is a Ray node of its own.")
    gpus_per_island: int = Field(default=2, ge=1, le=72, description="Simulated GPUs in each island.")
    gpu_memory_gib: float = Field(
        default=1.0, gt=0, le=1024, description="Memory the planner takes each simulated GPU to have, in GiB."
    )


class LocalCluster(Section):
    """The GPUs of this machine: Ray is started on it, and stopped with the deployment."""

    kind: Literal["local"] = Field(default="local", description="The GPUs of this machine.")


class RayCluster(Section):
    """A running Ray cluster; its GPUs and islands are discovered."""

    kind: Literal["ray"] = Field(default="ray", description="A Ray cluster that is running already.")
    address: str = Field(
        default="auto",
        description="`auto` for the cluster this machine belongs to, or host:port of its head (often port 6379).",
    )

    @field_validator("address")
    @classmethod
    def _is_address(cls, address: str) -> str:
        match = _ADDRESS.fullmatch(address)
        if address != "auto" and (match is None or int(match["port"]) > MAX_PORT):
            raise ValueError("give 'auto' or host:port")
        return address


ClusterConfig = SimulatedCluster | LocalCluster | RayCluster


class EndpointConfig(Section):
    """Where clients connect, who may, and what they may cost each other."""

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 for all.")
    port: int = Field(
        default=8000, ge=1, le=MAX_PORT, description="TCP port of the first model; the next one has the next port."
    )
    ingresses: int = Field(default=1, ge=1, le=64, description="Number of processes that speak HTTP with clients.")
    api_keys: str | None = Field(
        default=None,
        min_length=1,
        description="File of the keys that clients have to show, made by `archipelago keys`. It is read again when it "
        "changes. Default: nobody is asked for one.",
    )
    tls: TlsConfig | None = Field(default=None, description="Speak HTTPS with this certificate. Default: HTTP.")
    metrics_host: str | None = Field(
        default=None,
        min_length=1,
        description="Address that each ingress tells its own metrics at, without asking for a key. Default: 127.0.0.1 "
        "where the cluster is this machine, else endpoint.host.",
    )
    limits: EdgeLimitsConfig = Field(
        default_factory=EdgeLimitsConfig, description="What one client may cost the others, at each ingress."
    )


class ControlConfig(Section):
    """Where the control API listens: what reads and changes the fleet."""

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 for all.")
    port: int = Field(default=8001, ge=1, le=MAX_PORT, description="TCP port to listen on.")
    api_keys: str | None = Field(
        default=None,
        min_length=1,
        description="File of further keys, made by `archipelago keys add --role read` or `--role operate`. Default: "
        "only the token that `archipelago serve` makes is known.",
    )
    tls: TlsConfig | None = Field(default=None, description="Speak HTTPS with this certificate. Default: HTTP.")


class LimitsConfig(Section):
    """How long to wait before giving up."""

    start_timeout_s: float = Field(default=600.0, gt=0, description="Seconds for a replica to become ready.")
    drain_timeout_s: float = Field(
        default=30.0,
        ge=0,
        description="Seconds that requests in flight have to finish where they are when a replica is stopped; then "
        "they move to another one.",
    )
    hold_timeout_s: float = Field(
        default=300.0,
        ge=0,
        description="Seconds that a request which has lost its replica waits for another one before it fails.",
    )
    max_queued_requests: int = Field(
        default=256, ge=1, description="Requests that may wait on a replica; more are refused with 429 (batch at half)."
    )
    max_ttft_s: float = Field(
        default=30.0,
        gt=0,
        description="Seconds; a request that would wait longer for its first token everywhere is refused with 429.",
    )
    floor: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of a model's GPUs that keeps serving during a repartition; with 0 a full cluster may swap.",
    )
    step_timeout_s: int = Field(
        default=60, ge=1, description="Seconds one engine step may take before the replica counts as failed."
    )


class Config(Section):
    """A whole configuration file."""

    # YAML has lists where Python has tuples, which a strict field would refuse.
    models: Annotated[tuple[ModelConfig, ...], Field(strict=False)] = Field(
        description="The models to serve; each has an endpoint of its own."
    )
    cluster: Annotated[ClusterConfig, Field(discriminator="kind")] = Field(
        default_factory=SimulatedCluster, description="The GPUs to serve on. Default: a simulated cluster."
    )
    endpoint: EndpointConfig = Field(default_factory=EndpointConfig, description="Where clients connect.")
    control: ControlConfig = Field(default_factory=ControlConfig, description="Where the control API listens.")
    limits: LimitsConfig = Field(default_factory=LimitsConfig, description="How long to wait before giving up.")
    telemetry: TelemetryConfig = Field(
        default_factory=TelemetryConfig, description="What is told about requests, and what clients were promised."
    )

    @field_validator("models")
    @classmethod
    def _has_models(cls, models: tuple[ModelConfig, ...]) -> tuple[ModelConfig, ...]:
        if not models:
            raise ValueError("give at least one model")
        return models

    @property
    def model(self) -> ModelConfig:
        """The first model."""
        return self.models[0]

    @property
    def ports(self) -> tuple[int, ...]:
        """The port of each model, which is above the highest there is where too many follow from endpoint.port."""
        others = (port for port in itertools.count(self.endpoint.port + 1) if port != self.control.port)
        defaults = itertools.chain([self.endpoint.port], others)
        return tuple(
            default if model.port is None else model.port for model, default in zip(self.models, defaults, strict=False)
        )


def load_config(path: Path) -> Config:
    """Read a configuration file. Raises `ConfigError` with everything that is wrong with its fields."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8 text"]) from error
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read ({error.strerror}); give an existing YAML file"]) from error
    return parse_config(text, origin=str(path))


def parse_config(text: str, *, origin: str = "configuration") -> Config:
    """Read a configuration from YAML text. Raises `ConfigError`; `origin` names the text in it."""
    try:
        document = read_yaml(text)
    except YamlError as error:
        raise ConfigError([f"{origin}: {error}"]) from error
    if document is None:
        raise ConfigError([f"{origin}: is empty; give at least models with one source"])
    if not isinstance(document, dict):
        raise ConfigError([f"{origin}: holds {shown(document)}; give a mapping with at least models"])
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        raise ConfigError(problems_of(error, Config.model_json_schema())) from error
