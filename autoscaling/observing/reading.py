"""From Prometheus's answers and the fleet's state to one observation, or to why there is none. Pure but for `ask`.

An idle fleet is seen as one with no demand; what is not known is `Blind`. A few replicas that export nothing do not
hide the rest: what the others of their pool report stands for them, up to `trust.SILENT_SHARE`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from autoscaling.observation import Blind, BlindKind, Demand, Fleet, Observation, PoolLoad, ReplicaLoad
from autoscaling.observing import queries, trust
from autoscaling.observing.histograms import counted, share_below, spread
from autoscaling.observing.past import MAX_STEPS, STEP_S, dispersion, history
from autoscaling.observing.queries import Ask, Failure, FailureKind, Moment, Query, joined, parted
from autoscaling.observing.trust import Circumstances, Parts, total
from placement import Lengths, Shape, Slo
from placement.workload import MAX_MEAN_TOKENS, MAX_SPREAD

ENOUGH = 30  # finished requests: their mean length is then within 18 % (one standard error at a spread of 1)
LOOKBACKS_S = (600.0, 3600.0)  # where lengths are looked for when the window has not enough
FIRST_LOOKBACK_S = 86_400.0  # and when nothing was seen before either

_KINDS: Mapping[FailureKind, BlindKind] = {"slow": "slow", "partial": "missing"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What requests are like, apart from how many there are."""

    input_tokens: Lengths
    output_tokens: Lengths
    prefix_hit_rate: float


# Of a model that nobody has asked anything yet. It multiplies a rate of 0; a chat's usual lengths are as good as any.
UNKNOWN = Habits(
    input_tokens=Lengths(mean_tokens=512, spread=1.0),
    output_tokens=Lengths(mean_tokens=128, spread=1.0),
    prefix_hit_rate=0.0,
)


def read(
    ask: Ask,
    *,
    model: str,
    slo: Slo,
    fleet: Fleet,
    now_s: float,
    window_s: float = 60.0,
    scrape_interval_s: float = 15.0,
    history_s: float = MAX_STEPS * STEP_S,
    last: Observation | None = None,
) -> Observation | Blind:
    """Observe one model at `now_s` (seconds since the epoch).

    Args:
        ask: puts a question to Prometheus.
        model: its name, which is in the labels of all series.
        slo: what attainment and percentiles are of.
        fleet: what the control API says now.
        window_s: rates and percentiles are of the last `window_s`; four scrape intervals or more.
        last: the last observation of this model, so that of its history only what is new is asked for.
    """
    tick = joined(queries.TICK, model=model, window_s=window_s, percentile=slo.percentile)
    answer = ask(Moment(promql=tick, at_s=now_s))
    if isinstance(answer, Failure):
        return _blind(now_s, answer)
    parts = parted(answer)
    seen = Circumstances(model=model, now_s=now_s, window_s=window_s, scrape_interval_s=scrape_interval_s, fleet=fleet)
    trouble = trust.trouble(parts, seen)
    if trouble is not None:
        return Blind(at_s=now_s, kind=trouble[0], why=trouble[1])
    found = _observed(ask, parts, seen, slo, history_s, last)
    return _blind(now_s, found) if isinstance(found, Failure) else found


def _observed(
    ask: Ask, parts: Parts, seen: Circumstances, slo: Slo, history_s: float, last: Observation | None
) -> Observation | Failure:
    """`parts` are to be believed; what goes further back than the window is asked for here."""
    habits = _habits(ask, parts, seen, last)
    if isinstance(habits, Failure):
        return habits
    past = history(
        ask,
        model=seen.model,
        now_s=seen.now_s,
        length_s=history_s,
        scrape_interval_s=seen.scrape_interval_s,
        known=None if last is None else last.history,
    )
    if isinstance(past, Failure):
        return past
    scraped_s = total(parts, queries.NEWEST)
    bursts = dispersion(ask, model=seen.model, scraped_s=scraped_s, scrape_interval_s=seen.scrape_interval_s)
    if isinstance(bursts, Failure):
        return bursts
    return Observation(
        at_s=seen.now_s,
        window_s=seen.window_s,
        demand=Demand(
            requests_per_s=total(parts, queries.ARRIVALS),
            input_tokens=habits.input_tokens,
            output_tokens=habits.output_tokens,
            prefix_hit_rate=habits.prefix_hit_rate,
            dispersion=bursts,
        ),
        history=past,
        pools=_pools(parts, seen.fleet),
        fleet=seen.fleet,
        ttft_s=_only(parts, queries.TTFT),
        tpot_s=_only(parts, queries.TPOT),
        queue_s=_only(parts, queries.QUEUE),
        attainment=_attainment(parts, slo, seen.window_s),
    )


def _blind(now_s: float, failure: Failure) -> Blind:
    return Blind(at_s=now_s, kind=_KINDS.get(failure.kind, "unreachable"), why=f"Prometheus: {failure.why}")


def _habits(ask: Ask, parts: Parts, seen: Circumstances, last: Observation | None) -> Habits | Failure:
    """Of the shortest time with enough finished requests, else of the longest with any, else as they last were."""
    if _finished(parts) * seen.window_s >= ENOUGH:
        return _habits_in(parts)
    found = parts
    for lookback_s in LOOKBACKS_S if last else (*LOOKBACKS_S, FIRST_LOOKBACK_S):
        answer = ask(Moment(promql=joined(queries.LENGTHS, model=seen.model, window_s=lookback_s), at_s=seen.now_s))
        if isinstance(answer, Failure):
            return answer
        found = parted(answer)
        if _finished(found) * lookback_s >= ENOUGH:
            break
    if _finished(found):
        return _habits_in(found)
    if last is None:
        return UNKNOWN
    was = last.demand
    return Habits(input_tokens=was.input_tokens, output_tokens=was.output_tokens, prefix_hit_rate=was.prefix_hit_rate)


def _finished(parts: Parts) -> float:
    return counted(_buckets(parts, queries.INPUT_BUCKETS))


def _habits_in(parts: Parts) -> Habits:
    hits = total(parts, queries.HITS)
    prompts = hits + total(parts, queries.COMPUTED)
    return Habits(
        input_tokens=_lengths(parts, queries.INPUT_SUM, queries.INPUT_BUCKETS),
        output_tokens=_lengths(parts, queries.OUTPUT_SUM, queries.OUTPUT_BUCKETS),
        prefix_hit_rate=hits / prompts if prompts else 0.0,
    )


def _lengths(parts: Parts, tokens: Query, buckets: Query) -> Lengths:
    cumulative = _buckets(parts, buckets)
    events = counted(cumulative)
    mean_tokens = min(MAX_MEAN_TOKENS, max(1.0, total(parts, tokens) / events)) if events else 1.0
    return Lengths(mean_tokens=mean_tokens, spread=min(MAX_SPREAD, spread(cumulative, mean_tokens)))


def _buckets(parts: Parts, query: Query) -> dict[float, float]:
    return {float(series.labels["le"]): series.value for series in parts.get(query.name, ())}


def _only(parts: Parts, query: Query) -> float | None:
    found = parts.get(query.name)
    return found[0].value if found else None


def _attainment(parts: Parts, slo: Slo, window_s: float) -> float | None:
    """Share of the arrivals that were answered in time, of those of which that is known; None without any.

    Histograms do not say which requests missed both limits: the two shares are multiplied, as if misses fell on
    requests independently. They rather fall on the same ones, so the true share is between the product and the lesser
    of the two. Misses are refused requests, those that ended in an error, and those which should have had their first
    token by now: all that arrived, but for those of the last `ttft_s`.
    """
    arrived, refused = total(parts, queries.ARRIVALS), total(parts, queries.REFUSED)
    first_tokens = _buckets(parts, queries.TTFT_BUCKETS)
    answered = counted(first_tokens)
    in_time = 1.0 if slo.ttft_s is None else share_below(first_tokens, slo.ttft_s)
    in_pace = 1.0 if slo.tpot_s is None else share_below(_buckets(parts, queries.TPOT_BUCKETS), slo.tpot_s)
    kept = max(0.0, answered * in_time * in_pace - total(parts, queries.FAILED))
    due = 0.0 if slo.ttft_s is None else arrived * max(0.0, 1 - slo.ttft_s / window_s)
    judged = max(answered + refused, due)
    return min(1.0, kept / judged) if judged else None


def _pools(parts: Parts, fleet: Fleet) -> tuple[PoolLoad, ...]:
    """Load of each shape that serves and of which any replica reports; silent replicas are like the others of it."""
    reporting = trust.reporting(parts)
    return tuple(
        _pool(parts, shape, replicas, reporting[shape])
        for shape, replicas in fleet.serving.items()
        if shape in reporting
    )


def _pool(parts: Parts, shape: Shape, replicas: int, reporting: list[str]) -> PoolLoad:
    # Replicas that drain still report, and are more than serve.
    scale = max(1.0, replicas / len(reporting))

    running, waiting, kv_usage = (
        {series.labels["replica"]: series.value for series in parts[query.name]}
        for query in (queries.RUNNING, queries.WAITING, queries.KV_USAGE)
    )
    each = tuple(
        ReplicaLoad(replica=name, running=running[name], waiting=waiting[name], kv_usage=kv_usage[name])
        for name in reporting
    )

    def of_shape(query: Query) -> float | None:
        same = (series.value for series in parts.get(query.name, ()) if Shape.parse(series.labels["shape"]) == shape)
        return next(same, None)

    return PoolLoad(
        shape=shape,
        replicas=replicas,
        running=scale * sum(one.running for one in each),
        waiting=scale * sum(one.waiting for one in each),
        kv_usage=sum(one.kv_usage for one in each) / len(each),
        requests_per_s=of_shape(queries.SENT) or 0.0,
        ttft_s=of_shape(queries.POOL_TTFT),
        tpot_s=of_shape(queries.POOL_TPOT),
        preemptions_per_s=of_shape(queries.PREEMPTED) or 0.0,
        each=each,
    )
