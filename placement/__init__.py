"""Where the shards of a model go, and how fast they will be. Pure: no Ray, no clock, no network.

    config.json --> ModelSpec --+
                                +--> misfits      can the model be cut into this shape at all?
    "tp2pp2" -----> Shape ------+--> memory_use   does the busiest GPU hold it?
                                |
    nodes --------> Cluster ----+--> place        which rank goes to which island, node and slot?
                                |
                                +--> predict      how fast is it, and where does each step's time go?
    requests, ----> Workload ---+
    SLO                         +--> plan         which shape, how many replicas, where, and why not the others?

Where no answer exists the result is `Infeasible`: the constraint that binds, with its numbers, and the nearest change.
"""

from placement.clusters.hardware import Cluster, ClusterError, Gpu, Link, Links, Node
from placement.clusters.machines import cluster_of, spec_of
from placement.cost.prediction import Prediction, Question, predict
from placement.layout import Infeasible, Layout, LayoutError, Seat, place
from placement.models.memory import KvRoom, MemoryUse, kv_room, memory_use
from placement.models.model import ModelConfigError, ModelSpec
from placement.models.precision import with_precision
from placement.planning.option import Option
from placement.planning.plan import Plan, plan
from placement.planning.search import Choice, choose_shape
from placement.shape import Shape, ShapeError, misfits
from placement.workload import Lengths, Slo, Workload, WorkloadError

__all__ = [
    "Choice",
    "Cluster",
    "ClusterError",
    "Gpu",
    "Infeasible",
    "KvRoom",
    "Layout",
    "LayoutError",
    "Lengths",
    "Link",
    "Links",
    "MemoryUse",
    "ModelConfigError",
    "ModelSpec",
    "Node",
    "Option",
    "Plan",
    "Prediction",
    "Question",
    "Seat",
    "Shape",
    "ShapeError",
    "Slo",
    "Workload",
    "WorkloadError",
    "choose_shape",
    "cluster_of",
    "kv_room",
    "memory_use",
    "misfits",
    "place",
    "plan",
    "predict",
    "spec_of",
    "with_precision",
]
