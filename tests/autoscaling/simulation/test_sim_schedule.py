"""A simulated fleet follows the schedule of the settings, by the date on which its trace begins."""

import json
from datetime import datetime, time
from pathlib import Path

import pytest
from cli_builders import Ran, even_trace, flags, no_network, ran, refused
from fleet_runs import even, plain, scenario
from policy_builders import Analytic

from autoscaling.policy.rules import Rules
from autoscaling.schedule import Scheduled, Window
from autoscaling.simulation.policies import POLICIES
from autoscaling.simulation.run import run
from placement import Slo

__all__ = ["no_network", "ran"]  # fixtures
MODEL = "meta-llama/Llama-3.1-70B"
SETTINGS = f"""
models:
  - model: llama
    source: {MODEL}
    slo: {{ttft: 2s}}
    shapes: [tp4]
    gpus: {{max: 8}}
    schedule:
      - {{from: 08:00, to: 18:00, timezone: Europe/Berlin, min_replicas: 2}}
"""


def test_the_fleet_is_there_when_the_clock_says_so() -> None:
    rush = Window(opens=time(8), closes=time(8, 5), zone="Europe/Berlin")
    simulated = scenario(
        rules=Rules(slo=Slo(ttft_s=1.0), schedule=(Scheduled(window=rush, min_replicas=2),)),
        begins_s=datetime.fromisoformat("2026-11-23T07:50+01:00").timestamp(),
    )
    trace = even(1, 1200)
    policy = POLICIES["no-repartition"](simulated, trace, Analytic())
    result = run(trace, simulated, policy, 0, engine_for=plain())

    up, down = (one for one in result.decisions if one.kind != "hold")
    assert (up.at_s, up.target, up.cause) == (480.0, {"tp4": 2}, "schedule"), "60 s to start and a minute, at 08:00"
    assert up.reason.endswith("The schedule wants at least 2 replicas from 08:00 (Europe/Berlin).")
    assert down.target == {"tp4": 1}
    assert 900 < down.at_s < 1200


@pytest.fixture
def simulated(ran: Ran, tmp_path: Path) -> Ran:
    (tmp_path / "autoscaler.yaml").write_text(SETTINGS)
    fixed = {
        "trace": even_trace(tmp_path, 200),
        "cluster": "1x dgx-h100",
        "model": MODEL,
        "policy": "no-repartition",
        "ttft": "2s",
        "settings": tmp_path / "autoscaler.yaml",
        "begins": "2026-11-23T08:00+01:00",
    }
    return lambda **options: ran("simulate", "--json", *flags(fixed | options))


def test_the_settings_bring_their_schedule_and_shapes(simulated: Ran) -> None:
    rush, night = (json.loads(simulated(begins=begins)[1]) for begins in ("2026-11-23T07:00Z", "2026-11-23T19:00Z"))
    assert [one["target"] for one in rush["decisions"] if one["kind"] != "hold"] == [{"tp4": 2}]
    assert [one["target"] for one in night["decisions"] if one["kind"] != "hold"] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"begins": None}, "--begins is not given; the settings have times of day and the trace has none"),
        ({"begins": "2026-11-23T08:00"}, "--begins: '2026-11-23T08:00' is not accepted; give a date, a time and"),
        ({"begins": "monday"}, "--begins: 'monday' is not accepted"),
        ({"model": "Qwen/Qwen2.5-72B-Instruct"}, "autoscaler.yaml has llama; it must have Qwen/Qwen2.5-72B-Instruct"),
        ({"settings": "/nowhere.yaml"}, "/nowhere.yaml: cannot be read"),
    ],
)
def test_what_is_missing_is_told(simulated: Ran, options: dict[str, object], message: str) -> None:
    assert message in refused(simulated(**options))


def test_bounds_that_the_simulated_gpus_cannot_hold_are_told(simulated: Ran, tmp_path: Path) -> None:
    (tmp_path / "autoscaler.yaml").write_text(SETTINGS.replace("{max: 8}", "{min: 16}"))
    assert "--max-gpus is 8; it must be at least 16, which the settings want." in refused(simulated())
