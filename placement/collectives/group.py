"""Who takes part in a collective, reduced to what decides its cost, and the answer: a time and how it came about."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from placement.clusters.hardware import Link, Links

Engine = Literal["vllm", "sglang", "trtllm", "nccl"]
Op = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]
Span = Literal["gpu", "island", "machine", "network"]

ENGINES: tuple[Engine, ...] = get_args(Engine)


class CollectiveError(ValueError):
    """A group or a message that cannot exist. The message names the field, the value and what is accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """What a measured level needs more (above 1) or less of than the model says: latency, and bandwidth."""

    latency: float = 1.0
    bandwidth: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.latency < float("inf") and 0 < self.bandwidth < float("inf")):
            raise CollectiveError(f"{self}: latency and bandwidth must both be above 0 and finite.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Two factors for each level of a cluster, from a few measured points (`placement.collectives.fitting`)."""

    island: Factors = Factors()
    machine: Factors = Factors()
    network: Factors = Factors()


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """`ranks` GPUs spread evenly over `islands` islands on `machines` machines.

    An uneven spread costs what its fullest island costs, so ranks per island and per machine are rounded up. An island
    of several machines (NVL72) counts as one machine here: no message of the group leaves it. `links` are those of the
    slowest member; `gpu` is its kind, such as "h100_sxm", and "" where it is not known. `network_gpus` is for how many
    GPUs' share of the network a machine's members send at once: 0 says one share for each member, more says that they
    also use NICs that idle neighbours leave free.
    """

    ranks: int
    islands: int = 1
    machines: int = 1
    links: Links
    gpu: str = ""
    network_gpus: int = 0
    calibration: Calibration = field(default=Calibration())

    def __post_init__(self) -> None:
        if not 1 <= self.machines <= self.islands <= self.ranks:
            raise CollectiveError(
                f"Group: ranks {self.ranks}, islands {self.islands} and machines {self.machines} must be whole numbers "
                "with 1 <= machines <= islands <= ranks (an island over several machines counts as one machine)."
            )
        if self.network_gpus < 0:
            raise CollectiveError(f"Group: network_gpus is {self.network_gpus}; it must be at least 0.")
        if self.machines < self.islands and self.links.machine is None:
            raise CollectiveError(
                f"Group: {self.islands} islands on {self.machines} machines, but links.machine is None; give its Link."
            )

    @property
    def span(self) -> Span:
        """The widest level that messages of this group cross."""
        if self.ranks == 1:
            return "gpu"
        if self.machines > 1:
            return "network"
        return "machine" if self.islands > 1 else "island"

    @property
    def inside(self) -> Span:
        """The level that joins the closest GPUs: islands of one GPU have no link inside, so their machine does."""
        return "machine" if self.islands == self.ranks and self.links.machine is not None else "island"

    def link(self, span: Span) -> tuple[Link, Factors]:
        """The link of a level and its calibration; that of the island where a level has none."""
        if span == "network":
            return self.links.network, self.calibration.network
        if span == "machine" and self.links.machine is not None:
            return self.links.machine, self.calibration.machine
        return self.links.island, self.calibration.island


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """How long it takes, by which algorithm, and where the numbers come from."""

    time_s: float
    algorithm: str
    source: str


NOTHING = Transfer(time_s=0.0, algorithm="none", source="one rank sends nothing")


def require_size(size_bytes: float) -> None:
    """Refuse a size that is negative or not a number."""
    if not 0 <= size_bytes < float("inf"):
        raise CollectiveError(f"size_bytes is {size_bytes}; it must be at least 0 and finite.")


def require_engine(engine: str) -> None:
    """Refuse an engine that has no rules here."""
    if engine not in ENGINES:
        raise CollectiveError(f"engine is {engine!r}; it must be one of {', '.join(ENGINES)}.")
