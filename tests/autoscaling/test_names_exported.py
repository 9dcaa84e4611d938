"""Every series and label that the queries name is exported by an ingress: ours by our collector, vLLM's by vLLM."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from link_builders import Fleet, run
from prometheus_client import CollectorRegistry

from autoscaling.observing.queries import ALL, FAILED, Query
from deployments.metrics.ingress_series import IngressSeries

OURS = [query for query in ALL if query.metric.startswith("archipelago_")]
VLLMS = [query for query in ALL if query.metric.startswith("vllm:")]
_SUFFIX = re.compile(r"_(total|bucket|sum|count)$")


def labels(query: Query) -> set[str]:
    """Those it selects and aggregates by; `up` and its join have labels of Prometheus's own."""
    selected = re.findall(r"(\w+)=[$\"]", query.promql)
    grouped = [name for names in re.findall(r"by \(([\w, ]+)\)", query.promql) for name in names.split(", ")]
    return {*selected, *grouped}


def exported() -> dict[str, set[str]]:
    """Labels by name of sample, of an ingress with one replica."""
    found: dict[str, set[str]] = {}

    async def scrape(fleet: Fleet) -> None:
        registry = CollectorRegistry()
        registry.register(IngressSeries("acme/tiny", fleet.link, fleet.traffic))
        found.update({sample.name: set(sample.labels) for family in registry.collect() for sample in family.samples})

    run(scrape, "a")
    return found


def vllm_source(*path: str) -> str:
    """Read, not imported: importing vLLM takes seconds, and its collector wants a whole configuration."""
    package = find_spec("vllm")
    assert package is not None
    assert package.origin is not None
    return (Path(package.origin).parent.joinpath("v1", *path)).read_text()


def test_there_is_something_to_compare() -> None:
    assert len(OURS) > 10
    assert len(VLLMS) > 8


@pytest.mark.parametrize("query", OURS, ids=lambda query: query.name)
def test_a_series_of_ours_is_exported_with_the_labels_asked_for(query: Query) -> None:
    names = exported()
    assert query.metric in names
    assert labels(query) <= names[query.metric]


@pytest.mark.parametrize("query", VLLMS, ids=lambda query: query.name)
def test_a_series_of_vllms_is_one_of_the_installed_vllm(query: Query) -> None:
    """A counter's `_total` and a histogram's parts are prometheus_client's."""
    source = vllm_source("metrics", "loggers.py")
    definition = re.search(rf'name="{_SUFFIX.sub("", query.metric)}",.*?labelnames=([^)]*?),\n', source, re.DOTALL)
    assert definition is not None
    known = {"le", *re.findall(r'"(\w+)"', definition[1])}
    base = re.search(r"labelnames = (\[.*?\])", source)
    assert base is not None
    if definition[1].startswith("labelnames"):
        known |= set(re.findall(r'"(\w+)"', base[1]))
    assert labels(query) <= known


def test_a_failed_request_is_called_as_vllm_calls_it() -> None:
    reasons = re.search(r"FINISH_REASON_STRINGS = (\(.*?\))", vllm_source("engine", "__init__.py"), re.DOTALL)
    assert reasons is not None
    wanted = re.search(r'finished_reason="(\w+)"', FAILED.promql)
    assert wanted is not None
    assert f'"{wanted[1]}"' in reasons[1]
