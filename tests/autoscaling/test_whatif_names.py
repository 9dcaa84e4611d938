"""Every series and label that only a what-if asks for is exported: the fleet's by us, the others by vLLM."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from control_builders import fleet_view

from autoscaling.observing.queries import Query
from autoscaling.whatif import asking
from deployments.control.wire import ClusterView, Overview
from deployments.metrics.fleet_series import fleet_series


@pytest.mark.parametrize("query", [asking.HELD, asking.DESIRED], ids=lambda query: query.name)
def test_the_control_api_exports_what_ran(query: Query) -> None:
    overview = Overview(cluster=ClusterView(nodes=()), fleets=(fleet_view(),))
    exported = {sample.name: set(sample.labels) for family in fleet_series(overview) for sample in family.samples}
    asked = {"model", *(name for names in re.findall(r"by \(([\w, ]+)\)", query.promql) for name in names.split(", "))}
    assert asked <= exported[query.metric]


@pytest.mark.parametrize(
    "query", [asking.FOREIGN_ARRIVALS, asking.FOREIGN_HITS, asking.FOREIGN_LOOKUPS], ids=lambda query: query.name
)
def test_the_installed_vllm_exports_what_stands_for_arrivals(query: Query) -> None:
    package = find_spec("vllm")
    assert package is not None
    assert package.origin is not None
    source = (Path(package.origin).parent / "v1" / "metrics" / "loggers.py").read_text()
    assert f'name="{re.sub("_(total|count)$", "", query.metric)}"' in source
