"""The fleet's control API as the autoscaler uses it: what runs, what shall run, and who may say so.

Only the fields that are needed are read, so a control API that says more is understood. A field that is missing is an
error: what runs is never guessed.
"""

import ssl
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from autoscaling.live.asked import AskedAnswer, AskedAnswers, AskedFreeze, MaybeFreeze
from autoscaling.observation import Fleet, Pools, pools_of
from placement import Cluster, Gpu, Node, Shape, ShapeError

MOST_REASON_CHARACTERS = 500  # the control API takes no longer ones
# In these the target is not reached yet; "degraded" is what the hardware allows, which lasts.
_CHANGING = frozenset({"starting", "repartitioning", "rolling-back"})


class FleetError(Exception):
    """The control API did not do what was asked. The message is a sentence for the user."""


class AwayError(FleetError):
    """There was no answer, or none of the control API's; whether it did what was asked is not known."""


class RefusedError(FleetError):
    """It said no, and why; nothing was done."""


class ConflictError(RefusedError):
    """It said no because something else happened first: another target, a change in progress, another autoscaler."""


class HardwareError(FleetError):
    """What the GPUs are is not known, so nothing can be priced."""


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Seat(_View):
    node: str


class _Replica(_View):
    shape: str
    phase: str
    seats: tuple[_Seat, ...]


class FleetView(_View):
    """One model's fleet, as the control API shows it. `start_s` are measured times to start a replica, by shape."""

    model: str
    version: int
    phase: str
    desired_pools: Mapping[str, int]
    shortfall: str | None = None
    replicas: tuple[_Replica, ...]
    repartition: Mapping[str, Any] | None = None
    start_s: Mapping[str, float] = {}

    @property
    def starts_s(self) -> Mapping[Shape, float]:
        """`start_s`, by shapes. Raises `AwayError` for a name that is none."""
        try:
            return {Shape.parse(name): length_s for name, length_s in self.start_s.items()}
        except ShapeError as error:
            raise AwayError(f"The control API has a shape that is none: {error}") from error


class _NodeView(_View):
    name: str
    island: str
    gpus: int
    free_gpus: int
    draining: bool
    gpu: str | None = None
    gpu_memory_bytes: int | None = None
    machine: str | None = None


class _ClusterView(_View):
    nodes: tuple[_NodeView, ...]


class Overview(_View):
    """Everything at one moment."""

    cluster: _ClusterView
    fleets: tuple[FleetView, ...]

    def fleet(self, model: str) -> FleetView | None:
        """The fleet of a model; None where it is not served."""
        return next((view for view in self.fleets if view.model == model), None)


class _Accepted(_View):
    version: int


class _Lease(_View):
    holder: str
    expires_in_s: float


class _Problem(_View):
    type: str
    status: int
    detail: str


Answer = TypeVar("Answer", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Pools to ask for. It is refused unless the fleet still has version `if_version` and `lease` is `holder`'s."""

    pools: Pools
    reason: str
    if_version: int
    lease: str | None = None
    holder: str | None = None


class FleetClient:
    """Asks one control API. Every method raises `FleetError`; no message and no `repr` has the token.

    Args:
        url: where the API is, such as http://127.0.0.1:8001.
        token: a secret of it; one of the role `operate`, in every mode but `advise`.
        timeout_s: for an answer.
        transport: what carries the requests; None is the network.
        tls: what to trust for https; None is what the system trusts.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout_s: float = 10.0,
        transport: httpx.BaseTransport | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        if not token.isascii() or not token.isprintable() or not token or " " in token:
            raise RefusedError("token: empty, or with characters that a token does not have; give it as it was made.")
        self._url, self._timeout_s = url.rstrip("/"), timeout_s
        # A proxy of the environment is for the way out of here; it would be shown the token.
        headers = {"Authorization": f"Bearer {token}"}
        self._http = httpx.Client(
            headers=headers, timeout=timeout_s, transport=transport, trust_env=False, verify=tls or True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def overview(self) -> Overview:
        """The cluster and all fleets."""
        return self._ask(Overview, "GET", "/v1/fleet")

    def set_pools(self, model: str, target: Target) -> int:
        """Say what a fleet shall be; returns the version that it has then. Saying it again changes nothing."""
        body: dict[str, Any] = {
            "pools": {str(shape): replicas for shape, replicas in target.pools.items()},
            "reason": _one_line(target.reason),
            "if_version": target.if_version,
        }
        if target.lease is not None:
            body["lease"] = {"name": target.lease, "holder": target.holder}
        return self._ask(_Accepted, "PUT", f"/v1/fleet/{quote(model, safe='')}/pools", json=body).version

    def hold_lease(self, name: str, holder: str, ttl_s: float) -> float:
        """Take the lease or hold it on; returns the seconds it is held for. `ConflictError`: another holds it."""
        body = {"holder": holder, "ttl_s": ttl_s}
        return self._ask(_Lease, "PUT", f"/v1/leases/{quote(name, safe='')}", json=body).expires_in_s

    def release_lease(self, name: str, holder: str) -> None:
        """Let another take it at once instead of when it expires."""
        self._request("DELETE", f"/v1/leases/{quote(name, safe='')}", params={"holder": holder})

    def post_decisions(self, model: str, document: Mapping[str, Any]) -> None:
        """Show people what was decided about a model."""
        self._request("PUT", f"/v1/decisions/{quote(model, safe='')}", json=document)

    def answers(self) -> tuple[AskedAnswer, ...]:
        """What people have answered to proposals, and nobody has taken yet."""
        return self._ask(AskedAnswers, "GET", "/v1/approvals").approvals

    def freeze_asked(self) -> AskedFreeze | None:
        """Whether somebody asks to freeze, or to allow changes."""
        return self._ask(MaybeFreeze, "GET", "/v1/freeze").freeze

    def freeze_taken(self, number: int) -> None:
        """Nobody needs to take that any more."""
        self._request("DELETE", f"/v1/freeze/{number}")

    def _ask(self, answer: type[Answer], method: str, path: str, **request: Any) -> Answer:
        response = self._request(method, path, **request)
        try:
            return answer.model_validate_json(response.content)
        except ValidationError as error:
            raise AwayError(f"{self._url} answered, but not as the control API of this version would.") from error

    def _request(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            response = self._http.request(method, self._url + path, **request)
        except httpx.TimeoutException as error:
            raise AwayError(f"{self._url} did not answer within {self._timeout_s:g} s.") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise AwayError(f"{self._url} cannot be reached ({error}).") from error
        if response.is_success:
            return response
        try:
            sentence = _Problem.model_validate_json(response.content).detail
        except ValidationError as error:
            raise AwayError(
                f"{self._url} answered {response.status_code}, but not as the control API of this version would."
            ) from error
        if response.is_server_error:
            raise AwayError(sentence)
        raise (ConflictError if response.status_code == HTTPStatus.CONFLICT else RefusedError)(sentence)


def fleet_of(view: FleetView, overview: Overview, hardware: Cluster | None) -> Fleet:
    """The fleet of one model, with the GPUs that it may use: those that are free and those that it holds.

    `hardware` says what the GPUs are: of a node of the same name, else of its first node; None for what the control API
    says of them. Raises `HardwareError` where that is nothing.
    """
    try:
        return Fleet(
            version=view.version,
            desired=_pools(view.desired_pools),
            serving=_pools(Counter(replica.shape for replica in view.replicas if replica.phase == "serving")),
            starting=_pools(Counter(replica.shape for replica in view.replicas if replica.phase == "starting")),
            changing=view.repartition is not None or view.phase in _CHANGING,
            cluster=_usable(view, overview.cluster.nodes, hardware),
            shortfall=view.shortfall,
        )
    except ShapeError as error:
        raise AwayError(f"The control API has a shape that is none: {error}") from error


def cluster_of(overview: Overview, hardware: Cluster | None) -> Cluster:
    """All GPUs that will stay, whoever holds them; `hardware` is as for `fleet_of`."""
    return _cluster({node.name: node.gpus for node in overview.cluster.nodes}, overview.cluster.nodes, hardware)


def _usable(view: FleetView, nodes: tuple[_NodeView, ...], hardware: Cluster | None) -> Cluster:
    held = Counter(seat.node for replica in view.replicas for seat in replica.seats)
    return _cluster({node.name: min(node.gpus, node.free_gpus + held[node.name]) for node in nodes}, nodes, hardware)


def _cluster(gpus: Mapping[str, int], nodes: tuple[_NodeView, ...], hardware: Cluster | None) -> Cluster:
    known = {node.name: node for node in hardware.nodes} if hardware else {}
    like = replace(hardware.nodes[0], machine="") if hardware else None
    return Cluster(
        nodes=tuple(
            replace(
                known.get(node.name) or like or _own(node), name=node.name, island=node.island, gpus=gpus[node.name]
            )
            for node in nodes
            if gpus[node.name] and not node.draining
        )
    )


def _own(node: _NodeView) -> Node:
    """A node as the control API says it is."""
    if node.gpu is None or not node.gpu_memory_bytes:
        raise HardwareError(
            f"The control API does not know what GPUs node {node.name} has; say it with `cluster` in the settings of "
            "the model."
        )
    gpu = Gpu(name=node.gpu, memory_bytes=node.gpu_memory_bytes)
    return Node(name=node.name, island=node.island, gpus=node.gpus, gpu=gpu, machine=node.machine or "")


def _pools(replicas: Mapping[str, int]) -> Pools:
    return pools_of({Shape.parse(name): count for name, count in replicas.items()})


def _one_line(text: str) -> str:
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= MOST_REASON_CHARACTERS else line[: MOST_REASON_CHARACTERS - 3] + "..."
