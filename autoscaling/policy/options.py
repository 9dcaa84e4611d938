"""What could be done: few options, each with the number of replicas that it takes and no other.

More or fewer replicas of each pool, each shape alone, and the present pools with replicas of one other shape.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from autoscaling.decision import Kind
from autoscaling.observation import Demand, Pools, gpus_of, pools_of
from autoscaling.policy.bounds import Bounds
from autoscaling.policy.estimates import Estimates
from autoscaling.policy.outlook import Outlook
from placement import Shape

_SHAPES_LOOKED_AT = 3  # those that need fewest GPUs; the rest would not win


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Pools that could be the next target."""

    kind: Kind
    pools: Pools = field(hash=False)

    def only_gives_up(self, current: Pools) -> bool:
        """Whether it is the present shapes with fewer replicas."""
        return self.kind == "replicas" and gpus_of(self.pools) < gpus_of(current)


def kind_of(before: Pools, after: Pools) -> Kind:
    """Whether a change only moves numbers of replicas one way, or cuts the model differently.

    A shape that comes or goes is a repartition: what may take so long to come back is not given up like a replica.
    """
    if pools_of(before) == pools_of(after):
        return "hold"
    if not (before and after):
        return "replicas"
    up = any(replicas > before.get(shape, 0) for shape, replicas in after.items())
    down = any(replicas > after.get(shape, 0) for shape, replicas in before.items())
    return "repartition" if (up and down) or set(before) != set(after) else "replicas"


def options(
    current: Pools, shapes: Sequence[Shape], outlook: Outlook, estimates: Estimates, eased: Estimates, limits: Bounds
) -> tuple[Candidate, ...]:
    """Everything worth a price, hold first. `shapes` are those that may serve, the present ones among them.

    `eased` are the estimates for fewer replicas.
    """
    need = tuple(asked.demand for asked in outlook.need)
    recent = tuple(asked.demand for asked in outlook.recent)
    lasting = tuple(asked.demand for asked in outlook.lasting)
    worthwhile = _worthwhile(shapes, current, need, estimates, limits)
    found: list[Pools] = [pools_of(current)]
    for shape in current:
        found += _more(shape, current, need, estimates, limits)
        found += _fewer(shape, current, recent, eased, limits)
    for shape in worthwhile:
        found += _alone(shape, (need, lasting), estimates, limits)
        if shape not in current:
            found += _beside(shape, current, need, estimates, limits)
    distinct = {tuple(pools.items()): pools for pools in found}
    every = (Candidate(kind=kind_of(current, pools), pools=pools) for pools in distinct.values())
    candidates = [one for one in every if limits.repartition or one.kind != "repartition"]
    # Bounds that are farther away than one change may go are approached step by step.
    in_steps = not any(limits.allow(one.pools) and limits.allow_change(current, one.pools) for one in candidates)
    return tuple(
        one
        for one in candidates
        if one.kind == "hold" or limits.allow(one.pools) or (in_steps and limits.are_nearer(one.pools, current))
    )


def _worthwhile(
    shapes: Sequence[Shape], current: Pools, need: Sequence[Demand], estimates: Estimates, limits: Bounds
) -> tuple[Shape, ...]:
    """The present shapes, and those that serve the need with fewest GPUs; where none can, those that serve most."""
    able: dict[Shape, int] = {}
    others = [shape for shape in shapes if shape not in current and limits.most(shape, {})]
    for shape in others:
        replicas = estimates.needed(shape, need, most=limits.most(shape, {}))
        if replicas is not None:
            able[shape] = replicas * shape.gpus
    if able:
        ranked = sorted(able, key=lambda shape: (able[shape], shape.gpus, str(shape)))
    else:
        ranked = sorted(
            others, key=lambda shape: (estimates.worst_load({shape: limits.most(shape, {})}, need), str(shape))
        )
    return (*current, *ranked[:_SHAPES_LOOKED_AT])


def _more(
    shape: Shape, current: Pools, need: Sequence[Demand], estimates: Estimates, limits: Bounds
) -> Iterator[Pools]:
    """As many replicas as are needed and one more, or as many as there may be; one, where no number would do."""
    others, present = _without(current, shape), current[shape]
    most = _at_most(shape, current, limits)
    needed = estimates.needed(shape, need, others, most=limits.most(shape, others))
    if needed is None:
        wanted: tuple[int, ...] = (present + 1, most)
    else:
        wanted = (needed, needed + 1) if needed > present else ()
    for replicas in (*wanted, limits.fewest(shape, others)):
        if present < min(replicas, most):
            yield _with(others, shape, min(replicas, most))


def _fewer(
    shape: Shape, current: Pools, recent: Sequence[Demand], estimates: Estimates, limits: Bounds
) -> Iterator[Pools]:
    """As few replicas as serve all that was asked lately, and one less."""
    others, present = _without(current, shape), current[shape]
    needed = estimates.needed(shape, recent, others, most=present)
    if needed is None:
        needed = present  # it goes only where there is too much
    stoppable = present if limits.max_change_gpus is None else limits.max_change_gpus // shape.gpus
    allowed = min(present, limits.most(shape, others))
    fewest = max(min(max(needed, limits.fewest(shape, others)), allowed), present - stoppable)
    for replicas in dict.fromkeys((fewest, allowed if allowed < present else present - 1)):
        if fewest <= replicas < present:
            yield _with(others, shape, replicas)


def _alone(shape: Shape, asked: Sequence[Sequence[Demand]], estimates: Estimates, limits: Bounds) -> Iterator[Pools]:
    """A fleet of `shape` for each set of demands, as large as it may be where that is not enough."""
    most = limits.most(shape, {})
    for demands in asked:
        needed = estimates.needed(shape, demands, most=most) if most else None
        replicas = most if needed is None else max(needed, limits.fewest(shape, {}))
        yield _with({}, shape, replicas)


def _beside(
    shape: Shape, current: Pools, need: Sequence[Demand], estimates: Estimates, limits: Bounds
) -> Iterator[Pools]:
    """Replicas of another shape next to those that there are."""
    most = _at_most(shape, current, limits)
    needed = estimates.needed(shape, need, current, most=most) if most else 0
    if needed != 0:  # nothing is needed next to what keeps the SLO
        yield _with(current, shape, most if needed is None else needed)


def _at_most(shape: Shape, current: Pools, limits: Bounds) -> int:
    """Replicas of `shape` that may be there after one change."""
    present = current.get(shape, 0)
    room = limits.most(shape, _without(current, shape))
    return room if limits.max_change_gpus is None else min(room, present + limits.max_change_gpus // shape.gpus)


def _without(pools: Pools, shape: Shape) -> Pools:
    return {kind: replicas for kind, replicas in pools.items() if kind != shape}


def _with(others: Pools, shape: Shape, replicas: int) -> Pools:
    return pools_of({**others, shape: replicas})
