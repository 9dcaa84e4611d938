"""How long a collective takes, by who takes part, which links they share, and what the engine would run.

    Group (ranks, islands, machines, links, GPU kind) -> all_reduce, ... -> Transfer(time_s, algorithm, source)

Measured curves decide inside an island of a known kind. Everything else follows the structure of NCCL's tuner
(src/graph/tuning.cc, v2.30.7) on the `Link` that the group crosses, and is made sharp by `Group.calibration`.
Times are those of a CUDA graph: an eager call costs the host 20 to 45 us, however small the message.
"""

from placement.collectives.curves import Line, line_time_s
from placement.collectives.experts import ExpertBackend, Routing, moe_combine, moe_dispatch
from placement.collectives.group import Calibration, CollectiveError, Engine, Factors, Group, Op, Transfer
from placement.collectives.operations import (
    CollectiveCurve,
    all_gather,
    all_reduce,
    all_to_all,
    collective_curve,
    reduce_scatter,
    send_recv,
)

__all__ = [
    "Calibration",
    "CollectiveCurve",
    "CollectiveError",
    "Engine",
    "ExpertBackend",
    "Factors",
    "Group",
    "Line",
    "Op",
    "Routing",
    "Transfer",
    "all_gather",
    "all_reduce",
    "all_to_all",
    "collective_curve",
    "line_time_s",
    "moe_combine",
    "moe_dispatch",
    "reduce_scatter",
    "send_recv",
]
