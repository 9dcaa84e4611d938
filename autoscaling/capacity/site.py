"""What decisions about one model are priced with: the model, its GPUs, and the shapes that are worth a look."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from placement.clusters.hardware import Cluster, ClusterError
from placement.clusters.terrain import AS_BUILT, Region, regions
from placement.collectives import Calibration, Engine, ExpertBackend
from placement.cost import constants as fitted
from placement.cost import residuals as learnt
from placement.cost.prediction import Prediction, Question, predict
from placement.models.model import ModelSpec
from placement.planning.candidates import shapes as possible_shapes
from placement.shape import Shape, ShapeError, misfits
from placement.workload import Lengths, Workload

_MOST_SHAPES = 16  # each is priced at every tick
_TOLERANCE = 1.02  # a shape that is better by less than this does not count as better
# Short and long prompts and answers: a shape is left out only where another is as good for all of these.
_REFERENCES = ((512, 128), (2048, 512), (16384, 256), (1024, 2048))


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One model on one cluster, and the engine's settings as `placement.Question` takes them.

    `shapes` are the candidates, smallest first, each with the part of the cluster that it is priced on in `regions`.
    """

    model: ModelSpec
    cluster: Cluster
    shapes: tuple[Shape, ...]
    regions: tuple[Region, ...]
    constants: fitted.Constants
    residuals: learnt.Residuals
    engine: Engine
    exchange: ExpertBackend
    kv_bytes_per_element: float
    utilisation: float
    links: Calibration

    def region_of(self, shape: Shape) -> Region:
        """Where `shape` is priced. Raises `ShapeError` for one that is not a candidate."""
        if shape not in self.shapes:
            known = ", ".join(map(str, self.shapes))
            raise ShapeError(f"shape {shape} is not among those that {self.model.name} may take here: {known}.")
        return self.regions[self.shapes.index(shape)]

    def question(self, workload: Workload) -> Question:
        """What the cost model is asked about `workload` here."""
        return Question(
            model=self.model,
            workload=workload,
            constants=self.constants,
            residuals=self.residuals,
            engine=self.engine,
            exchange=self.exchange,
            kv_bytes_per_element=self.kv_bytes_per_element,
            utilisation=self.utilisation,
            links=self.links,
        )


def site_of(
    model: ModelSpec,
    cluster: Cluster,
    *,
    shapes: Iterable[Shape] | None = None,
    constants: fitted.Constants | None = None,
    residuals: learnt.Residuals | None = None,
    engine: Engine = "vllm",
    exchange: ExpertBackend = "allgather_reducescatter",
    kv_bytes_per_element: float = 2.0,
    utilisation: float = 0.9,
    links: Calibration = AS_BUILT,
) -> Site:
    """The site of `model` on `cluster`.

    Args:
        shapes: the only ones to consider, such as those that a configured engine allows; with none every shape that
            holds the model and is not outdone by one as small, at most 16.
        constants: None for those that come with the planner, as for `residuals`.

    Raises:
        ClusterError: a GPU that nothing is known of.
        ShapeError: the model cannot be cut into one of `shapes`, or no GPUs here hold it.
    """
    site = Site(
        model=model,
        cluster=cluster,
        shapes=(),
        regions=(),
        constants=constants or fitted.shipped(),
        residuals=residuals or learnt.shipped(),
        engine=engine,
        exchange=exchange,
        kv_bytes_per_element=kv_bytes_per_element,
        utilisation=utilisation,
        links=links,
    )
    given = tuple(dict.fromkeys(shapes or ()))
    found = _asked(site, given) if given else _worthwhile(site)
    ordered = sorted(found, key=lambda shape: (shape.gpus, str(shape)))
    return replace(site, shapes=tuple(ordered), regions=tuple(found[shape] for shape in ordered))


def _asked(site: Site, shapes: Sequence[Shape]) -> dict[Shape, Region]:
    """The first region that holds each shape."""
    for shape in shapes:
        if sentences := misfits(shape, site.model):
            raise ShapeError(" ".join(sentences))
    found = _holding(site, [(shape, region) for region in regions(site.cluster) for shape in shapes])
    for shape in shapes:
        if shape not in found:
            raise ShapeError(f"shape {shape} of {site.model.name}: no GPUs of the cluster have room for it.")
    return {shape: found[shape][0].region for shape in shapes}


def _worthwhile(site: Site) -> dict[Shape, Region]:
    """Shapes with powers of two as degrees, without those that another of no more GPUs outdoes everywhere."""
    found = _candidates(site, lambda shape: shape.pp & (shape.pp - 1) == 0) or _candidates(site, lambda shape: True)
    if not found:
        raise ClusterError(f"cluster: its {site.cluster.gpus} GPUs do not hold {site.model.name} in any shape.")
    kept = [
        shape for shape in found if not any(_outdoes(found[other], found[shape]) for other in found if other != shape)
    ]
    # The widest fan of sizes: the best of each size first, then the second best.
    by_size: dict[int, list[Shape]] = {}
    for shape in sorted(kept, key=lambda shape: -_output_per_gpu(found[shape])):
        by_size.setdefault(shape.gpus, []).append(shape)
    ranked = sorted(kept, key=lambda shape: (by_size[shape.gpus].index(shape), shape.gpus))
    return {shape: found[shape][0].region for shape in ranked[:_MOST_SHAPES]}


def _candidates(site: Site, is_wanted: Callable[[Shape], bool]) -> dict[Shape, list[Prediction]]:
    places = [
        (shape, region)
        for region in regions(site.cluster)
        for shape in possible_shapes(site.model, gpus=region.gpus, island_gpus=region.island_gpus)
        if is_wanted(shape)
    ]
    return _holding(site, places)


def _holding(site: Site, places: Sequence[tuple[Shape, Region]]) -> dict[Shape, list[Prediction]]:
    """Predictions of each shape for all references, in the first region where it holds the shortest."""
    found: dict[Shape, list[Prediction]] = {}
    for tokens_in, tokens_out in _REFERENCES:
        workload = Workload(input_tokens=Lengths(mean_tokens=tokens_in), output_tokens=Lengths(mean_tokens=tokens_out))
        fitting: dict[Shape, Prediction] = {}
        for prediction in predict(site.question(workload), places):
            if prediction.fits:
                fitting.setdefault(prediction.shape, prediction)
        for shape, prediction in fitting.items():
            found.setdefault(shape, []).append(prediction)
    return found


def _outdoes(ours: Sequence[Prediction], theirs: Sequence[Prediction]) -> bool:
    """Whether ours takes no more GPUs, holds as long contexts, and is as fast and as productive for every reference."""
    mine, other = ours[0].shape, theirs[0].shape
    if mine.gpus > other.gpus or len(ours) < len(theirs):
        return False
    pairs = list(zip(ours, theirs, strict=False))
    if not all(_as_good(one, two, _TOLERANCE) for one, two in pairs):
        return False
    # Of two that are alike the smaller stays, then the one with the plainer name.
    alike = all(_as_good(two, one, _TOLERANCE) for one, two in pairs) and mine.gpus == other.gpus
    return not alike or str(mine) < str(other)


def _as_good(ours: Prediction, theirs: Prediction, tolerance: float) -> bool:
    lone, other = ours.loads[0], theirs.loads[0]
    return (
        lone.ttft_s <= other.ttft_s * tolerance
        and lone.tpot_s <= other.tpot_s * tolerance
        and ours.room.tokens * ours.shape.dp * tolerance >= theirs.room.tokens * theirs.shape.dp
        and _output_per_gpu([ours]) * tolerance >= _output_per_gpu([theirs])
    )


def _output_per_gpu(predictions: Sequence[Prediction]) -> float:
    return max(prediction.output_tokens_per_s / prediction.shape.gpus for prediction in predictions)
