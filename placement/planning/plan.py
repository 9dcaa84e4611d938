"""The planner: which shape, how many replicas of it, where they go, and why not the others.

Two questions are kept apart. *Partitioning*: the shapes that hold the model and meet the latency SLO. *Replication*:
how many replicas of each the rate needs. Options are ranked by what they cost (money where all prices are known, GPUs
otherwise) among those that meet the SLO; when none does, the answer is the closest one, what binds, and the nearest
change that helps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

from placement.clusters.hardware import Cluster
from placement.clusters.terrain import AS_BUILT, regions
from placement.collectives import Calibration, Engine, ExpertBackend
from placement.cost import constants as fitted
from placement.cost import residuals as learnt
from placement.cost.prediction import Prediction, Question, predict
from placement.layout import Infeasible, free_gpus, place_replicas
from placement.models.model import ModelSpec
from placement.models.precision import with_precision
from placement.planning.assurance import assured, best_assured
from placement.planning.candidates import shapes
from placement.planning.chance import expected_cost, spread_in
from placement.planning.option import Ground, Option, excess, sized, tail
from placement.planning.reasons import Reasons, asked_of, binding_sentence, price, tails_sentence, three_digits
from placement.planning.search import choose_shape
from placement.workload import Slo, Workload

_PER_CENT = 0.01  # chances that differ by less are alike
_LIGHTER = ("fp8", "fp4")
_NEARLY = 0.8  # a replica twice as large for a fifth more per GPU is harder to place, to move and to lose
_SHOWN_LAYOUTS = 64  # replicas that are placed on concrete islands; more are counted only


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`partition` is the smallest shape that meets the SLO, `options` all that do, cheapest first.

    `infeasible` says what binds when there is none; `closest` is then the option that comes nearest. `predictions` has
    every shape that was considered, those that do not fit included.
    """

    question: Question
    slo: Slo
    partition: Option | None
    options: tuple[Option, ...]
    closest: Option | None
    infeasible: Infeasible | None
    predictions: tuple[Prediction, ...]

    @property
    def best(self) -> Option | None:
        """The cheapest option that meets the SLO."""
        return self.options[0] if self.options else None

    def economical(self, replicas: int = 1) -> Option | None:
        """For a workload without a rate: the smallest replica that gives nearly the most output per GPU.

        Of those that have room for `replicas`, where there are any.
        """
        roomy = [option for option in self.options if option.most_replicas >= replicas] or self.options
        most = max((option.tokens_per_s_per_gpu for option in roomy), default=0.0)
        good = [option for option in roomy if option.tokens_per_s_per_gpu >= _NEARLY * most]
        return min(good, key=lambda option: (option.shape.gpus, -option.tokens_per_s_per_gpu), default=None)


def plan(
    model: ModelSpec,
    cluster: Cluster,
    workload: Workload,
    slo: Slo | None = None,
    *,
    engine: Engine = "vllm",
    exchange: ExpertBackend = "allgather_reducescatter",
    kv_bytes_per_element: float = 2.0,
    utilisation: float = 0.9,
    longest_tokens: int = 0,
    links: Calibration = AS_BUILT,
    constants: fitted.Constants | None = None,
    residuals: learnt.Residuals | None = None,
) -> Plan:
    """Plan `model` on `cluster`. `longest_tokens` is the longest request that must find room in the KV cache.

    Raises `ClusterError` for GPUs that nothing is known of.
    """
    question = Question(
        model=model,
        workload=workload,
        constants=constants or fitted.shipped(),
        residuals=residuals or learnt.shipped(),
        engine=engine,
        exchange=exchange,
        kv_bytes_per_element=kv_bytes_per_element,
        utilisation=utilisation,
        links=links,
        longest_tokens=longest_tokens,
    )
    made = _answer(question, cluster, slo or Slo())
    return made if made.infeasible is None else _with_lighter_weights(made, made.infeasible, cluster)


def _answer(question: Question, cluster: Cluster, slo: Slo) -> Plan:
    workload = question.workload
    found = _predictions(question, cluster)
    options = _options(question, slo, found)
    good = [option for option in options if option.meets_slo]
    if not good:
        return _none_meets(question, slo, cluster, options, found)
    by_money = all(option.usd_per_hour is not None for option in good)
    is_sized = workload.requests_per_s is not None or workload.concurrency is not None
    cost = partial(_cost, is_sized=is_sized, by_money=by_money)
    ranked = sorted(good, key=cost)
    placed = [_placed(option) for option in best_assured(ranked, question, slo, cost)]
    possible = [option for option in placed if option.layouts]
    if not possible:
        return _too_few_gpus(question, slo, ranked, found)
    best = possible[0]
    partition = min(possible, key=lambda option: (option.shape.gpus, cost(option)))
    words = Reasons(slo=slo, is_sized=is_sized, by_money=by_money)
    told = [
        replace(best, reason=words.won(best, possible[1:])),
        *(replace(lost, reason=words.lost(lost, best)) for lost in possible[1:]),
    ]
    return Plan(
        question=question,
        slo=slo,
        partition=next(option for option in told if option.prediction is partition.prediction),
        options=tuple(told),
        closest=None,
        infeasible=None,
        predictions=tuple(found),
    )


def _with_lighter_weights(failed: Plan, answer: Infeasible, cluster: Cluster) -> Plan:
    """`failed`, and the first lighter format of the weights with which there is a plan, where there is one."""
    model = failed.question.model
    supported = {math for region in regions(cluster) for math in region.kind.flops}
    for precision in _LIGHTER:
        lighter = with_precision(model, precision)
        if precision not in supported or lighter.weight_bytes >= model.weight_bytes:
            continue
        made = _answer(replace(failed.question, model=lighter), cluster, failed.slo)
        if made.best is not None:
            served = f"weights in {precision}, which {made.best.replicas} x {made.best.shape} would serve"
            return replace(failed, infeasible=replace(answer, nearest=f"{served}, or {answer.nearest}"))
    return failed


def _predictions(question: Question, cluster: Cluster) -> list[Prediction]:
    places = [
        (shape, region)
        for region in regions(cluster)
        for shape in shapes(question.model, gpus=region.gpus, island_gpus=region.island_gpus)
    ]
    found = predict(question, places)
    if any(prediction.fits for prediction in found):
        return found
    deeper = [
        (shape, region)
        for region in regions(cluster)
        for shape in shapes(
            question.model, gpus=region.gpus, island_gpus=region.island_gpus, most_stages=question.model.layers
        )
    ]
    return predict(question, deeper)


def _options(question: Question, slo: Slo, found: Sequence[Prediction]) -> list[Option]:
    options: list[Option] = []
    for region, there in groupby(found, key=lambda prediction: prediction.region):
        free = free_gpus(region.cluster, frozenset()).values()
        ground = Ground(island_gpus=tuple(free), spread=spread_in(question, region))
        options += [sized(each, ground, question.workload, slo) for each in there if each.fits]
    return options


def _cost(option: Option, *, is_sized: bool, by_money: bool) -> tuple[float, ...]:
    """Cheapest first, dearer the less likely the SLO is kept: money or GPUs, for what is asked or for a token.

    Then what each GPU could give; then smaller replicas, which fail and move alone.
    """
    amount = price(option, is_sized=is_sized, by_money=by_money)
    chance = max(_PER_CENT, round(option.chance, 2))
    return (float(expected_cost(amount, chance)), -option.most_requests_per_s / option.gpus, option.shape.gpus)


def _placed(option: Option) -> Option:
    """With layouts of its first replicas; without any when the region has too few GPUs for all of them."""
    region = option.prediction.region
    if option.gpus > region.gpus:
        return option
    layouts = place_replicas(option.shape, region.cluster, min(option.replicas, _SHOWN_LAYOUTS))
    if isinstance(layouts, Infeasible):
        return option
    return replace(option, layouts=layouts)


def _none_meets(
    question: Question, slo: Slo, cluster: Cluster, options: Sequence[Option], found: Sequence[Prediction]
) -> Plan:
    """No shape holds the model, or none is fast enough."""
    if not options:
        answer = choose_shape(
            question.model,
            cluster,
            context_tokens=max(question.traffic.context_tokens, question.longest_tokens),
            kv_bytes_per_element=question.kv_bytes_per_element,
            utilisation=question.utilisation,
        )
        if not isinstance(answer, Infeasible):
            answer = Infeasible(constraint=f"{question.model.name} fits only as {answer.shape}", nearest=answer.reason)
        return _failed(question, slo, None, answer, found)
    closest = min(options, key=lambda option: excess(option.load, slo))
    ttft_s, tpot_s = tail(closest.load, slo.percentile)
    return _failed(question, slo, closest, binding_sentence(closest, slo, ttft_s, tpot_s), found)


def _too_few_gpus(question: Question, slo: Slo, ranked: Sequence[Option], found: Sequence[Prediction]) -> Plan:
    """The rate needs more replicas than there are GPUs for, or no number of them keeps the tails short."""
    closest = min(ranked, key=lambda option: option.replicas / max(option.most_replicas, 0.5))
    closest = assured(closest, question, slo)
    if not closest.meets_slo:
        return _failed(question, slo, closest, tails_sentence(closest, slo), found)
    region = closest.prediction.region
    fit = closest.most_replicas
    missing = max(closest.gpus - region.gpus, closest.shape.tp)  # a group finds no room in what is left of islands
    asked = question.workload
    most = (
        f"{three_digits(fit * asked.requests_per_s / closest.replicas)} requests/s"
        if asked.requests_per_s
        else f"{int(fit * closest.load.running)} concurrent requests"
    )
    answer = Infeasible(
        constraint=(
            f"{asked_of(asked)} need {closest.replicas} replicas of {closest.shape}, {closest.gpus} GPUs; "
            f"the cluster has {region.gpus} of {region.gpu.name}, room for {fit}"
        ),
        nearest=f"{most}, or at least {missing} more GPUs",
    )
    return _failed(question, slo, closest, answer, found)


def _failed(
    question: Question, slo: Slo, closest: Option | None, answer: Infeasible, found: Sequence[Prediction]
) -> Plan:
    return Plan(
        question=question,
        slo=slo,
        partition=None,
        options=(),
        closest=closest,
        infeasible=answer,
        predictions=tuple(found),
    )
