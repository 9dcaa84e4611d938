"""The load of every pool and how long requests take, live: asked of the ingresses while somebody looks at the page.

Prometheus keeps the history; this needs none, and asks nobody as long as nobody looks. Rates and percentiles are over
the last minute that was looked at, so there are none at the first look.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from time import monotonic

import httpx
from fastapi import APIRouter, FastAPI, Request
from pydantic import NonNegativeInt

from deployments.control.contract import Fleet
from deployments.control.values import Seconds, Wire
from deployments.control.wire import MetricsTarget
from deployments.page.scraped import (
    ReplicaSeries,
    ScrapeError,
    Told,
    increase,
    increases,
    quantile,
    summed,
    told_in,
)
from placement.promised import USUAL_SHARE

WINDOW_S = 60.0
LEAST_PERIOD_S = 1.5  # however many people look
TIMEOUT_S = 2.0

Fetch = Callable[[str], Awaitable[str]]  # the series of the ingress at host:port
router = APIRouter()


class Durations(Wire):
    """Times at the percentile, and rates, over the last minute; null where there was nothing to measure."""

    requests_per_s: Seconds | None
    tokens_per_s: Seconds | None
    ttft_s: Seconds | None
    tpot_s: Seconds | None


class PoolLoad(Durations):
    """All replicas of one shape that the ingresses know; `kv_usage` is the mean share of their KV caches in use."""

    shape: str
    replicas: NonNegativeInt
    running: Seconds
    waiting: Seconds
    kv_usage: Seconds


class ModelLoad(Durations):
    """All pools of one model. `slo_ttft_s` and `slo_tpot_s` are what its ingresses hold requests to, where they say."""

    model: str
    slo_ttft_s: Seconds | None
    slo_tpot_s: Seconds | None
    percentile: float
    pools: tuple[PoolLoad, ...]


class LoadPage(Wire):
    """Of every model. `troubles` has a sentence for each ingress that could not be asked."""

    models: tuple[ModelLoad, ...]
    troubles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one ingress told at one moment."""

    at_s: float
    told: Told


@dataclass(frozen=True, slots=True, kw_only=True)
class Increase:
    """What one replica did for one ingress between two looks."""

    length_s: float
    now: ReplicaSeries
    before: ReplicaSeries

    @property
    def requests_per_s(self) -> float:
        return increase(self.now.requests, self.before.requests) / self.length_s

    @property
    def tokens_per_s(self) -> float:
        return increase(self.now.generated_tokens, self.before.generated_tokens) / self.length_s


class Loads:
    """Asks the ingresses, at most every `LEAST_PERIOD_S`. For one event loop."""

    def __init__(self, fetch: Fetch, now: Callable[[], float]) -> None:
        self._fetch, self._now = fetch, now
        self._looks: dict[tuple[str, str], deque[Look]] = defaultdict(deque)  # by model and ingress, oldest first
        self._troubles: tuple[str, ...] = ()
        self._asked_at_s = float("-inf")
        self._lock = asyncio.Lock()

    async def read(self, targets: Sequence[MetricsTarget], percentiles: Mapping[str, float]) -> LoadPage:
        """The load now; `percentiles` are those that the autoscaler goes by. Others are as promised, or as usual."""
        async with self._lock:
            if self._now() - self._asked_at_s >= LEAST_PERIOD_S:
                await self._look([(target.labels["model"], one) for target in targets for one in target.targets])
                self._asked_at_s = self._now()
        by_model = groupby(sorted(self._looks), key=lambda key: key[0])
        models = (
            model_load(model, [tuple(self._looks[key]) for key in keys], percentiles.get(model))
            for model, keys in by_model
        )
        return LoadPage(models=tuple(models), troubles=self._troubles)

    async def _look(self, ingresses: Sequence[tuple[str, str]]) -> None:
        self._looks = defaultdict(deque, {key: looks for key, looks in self._looks.items() if key in ingresses})
        found = await asyncio.gather(*(self._ask(*one) for one in ingresses))
        self._troubles = tuple(trouble for trouble in found if trouble)

    async def _ask(self, model: str, address: str) -> str | None:
        try:
            # Thousands of lines take a while to read, and the event loop is the fleet controller's.
            told = await asyncio.to_thread(told_in, await self._fetch(address))
        except (ScrapeError, httpx.HTTPError, httpx.InvalidURL) as error:
            self._looks.pop((model, address), None)  # what it said before may not be so any more
            return f"The load at the ingress {address} of {model} is not known: {str(error) or type(error).__name__}."
        looks, now_s = self._looks[model, address], self._now()
        looks.append(Look(at_s=now_s, told=told))
        while looks[0].at_s < now_s - WINDOW_S:
            looks.popleft()
        return None


def model_load(model: str, looks: Iterable[Sequence[Look]], percentile: float | None) -> ModelLoad:
    """One model's load, from what each of its ingresses told, the oldest look first. Pure."""
    ingresses = list(looks)
    promised = ingresses[0][-1].told.promised
    percentile = percentile or promised.percentile or USUAL_SHARE
    gained = [one for each in ingresses for one in _gained(each)]
    replicas: dict[str, list[ReplicaSeries]] = defaultdict(list)
    for each in ingresses:
        for name, series in each[-1].told.replicas.items():
            replicas[name].append(series)
    pools: dict[str, list[list[ReplicaSeries]]] = defaultdict(list)
    for known in replicas.values():
        pools[known[0].shape].append(known)
    return ModelLoad(
        model=model,
        percentile=percentile,
        slo_ttft_s=promised.ttft_s,
        slo_tpot_s=promised.tpot_s,
        pools=tuple(
            PoolLoad(
                shape=shape,
                replicas=len(members),
                # Each ingress tells what a replica's scheduler said to it; one that is silent there tells 0.
                running=sum(max(one.running for one in known) for known in members),
                waiting=sum(max(one.waiting for one in known) for known in members),
                kv_usage=sum(max(one.kv_usage for one in known) for known in members) / len(members),
                **_durations([one for one in gained if one.now.shape == shape], percentile),
            )
            for shape, members in sorted(pools.items())
        ),
        **_durations(gained, percentile),
    )


def _gained(looks: Sequence[Look]) -> Iterator[Increase]:
    first, last = looks[0], looks[-1]
    if last.at_s > first.at_s:
        for name, now in last.told.replicas.items():
            before = first.told.replicas.get(name, ReplicaSeries(shape=now.shape))
            yield Increase(length_s=last.at_s - first.at_s, now=now, before=before)


def _durations(gained: Sequence[Increase], percentile: float) -> dict[str, float | None]:
    if not gained:
        return dict.fromkeys(Durations.model_fields)
    return {
        "requests_per_s": sum(one.requests_per_s for one in gained),
        "tokens_per_s": sum(one.tokens_per_s for one in gained),
        "ttft_s": quantile(summed(increases(one.now.ttft, one.before.ttft) for one in gained), percentile),
        "tpot_s": quantile(summed(increases(one.now.tpot, one.before.tpot) for one in gained), percentile),
    }


@router.get("/load", summary="The load of every pool, live, over the last minute that somebody looked")
async def load(request: Request) -> LoadPage:
    fleet: Fleet = request.app.state.fleet
    loads: Loads = request.app.state.loads
    return await loads.read(await fleet.metrics_targets(), request.app.state.board.percentiles())


def add_load(app: FastAPI) -> None:
    """Give an application what the route needs."""
    app.state.loads = Loads(_fetch, monotonic)


async def _fetch(address: str) -> str:
    async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as http:  # a proxy is for the way out of here
        response = await http.get(f"http://{address}/metrics")
        response.raise_for_status()
        return response.text
