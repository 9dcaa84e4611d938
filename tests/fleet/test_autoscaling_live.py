"""The autoscaler on a live system: Ray Serve, Prometheus, clients, and the commands that a user starts."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from live_cases import VOLUME, perform
from live_plot import svg

SHORT = replace(VOLUME, calm=replace(VOLUME.calm, length_s=30), settle_s=20.0)


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(900)
def test_three_times_the_requests_are_answered_with_replicas_and_none_is_lost(tmp_path: Path) -> None:
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        pytest.skip("no program `prometheus` is on the PATH")
    happened = perform(SHORT, tmp_path, prometheus)

    assert [one.error for one in happened.lost] == []
    first, *others = happened.changes
    assert first.decision.kind == "replicas"
    assert first.decision.expected is not None
    assert first.decision.options
    assert first.outcome is not None or others
    assert happened.changes[-1].outcome is not None
    assert happened.changes[-1].outcome.verdict in ("as predicted", "better")
    assert happened.cured_s is not None
    after = happened.attainment(happened.cured_s, happened.asked[-1].due_s)
    assert after is not None
    assert after >= SHORT.slo.percentile
    assert f"decision {first.number}: 1 x tp4 -&gt; " in svg(happened)
    assert "1 x tp4 -> " in happened.decisions
