"""Where the shards of a model go. Pure: no Ray, no clock, no network; every function returns a value.

    config.json --> ModelSpec --+
                                +--> misfits      can the model be cut into this shape at all?
    "tp2pp2" -----> Shape ------+--> memory_use   does the busiest GPU hold it?
                                |
    nodes --------> Cluster ----+--> place        which rank goes to which island, node and slot?
                                |
                                +--> choose_shape the smallest shape for which all three say yes

Where no answer exists the result is `Infeasible`: the constraint that binds, with its numbers, and the nearest change.
"""

from placement.hardware import Cluster, ClusterError, Gpu, Node
from placement.layout import Infeasible, Layout, LayoutError, Seat, place
from placement.memory import MemoryUse, memory_use
from placement.model import ModelConfigError, ModelSpec
from placement.search import Choice, choose_shape
from placement.shape import Shape, ShapeError, misfits

__all__ = [
    "Choice",
    "Cluster",
    "ClusterError",
    "Gpu",
    "Infeasible",
    "Layout",
    "LayoutError",
    "MemoryUse",
    "ModelConfigError",
    "ModelSpec",
    "Node",
    "Seat",
    "Shape",
    "ShapeError",
    "choose_shape",
    "memory_use",
    "misfits",
    "place",
]
