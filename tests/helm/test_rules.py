"""Every alert fires when it must and not otherwise, and tells what to do. Prometheus itself (promtool) plays them."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RULES = sorted((ROOT / "helm" / "rules").glob("*.yaml"))
RUNBOOKS = ROOT / "deployments" / "runbooks.md"
PROMTOOL = shutil.which("promtool")

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="needs `promtool` (apt-get install prometheus)")

M = 'model="m"'
R = 'model="m", replica="m--tp2--0", shape="tp2"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Series in promtool's notation, one value a minute, and the alerts that fire at minute `at`.

    Less than a day of them: promtool's store begins to compact then, and loses samples now and then.
    """

    name: str
    series: dict[str, str]
    at: str
    firing: tuple[str, ...] = ()


def slo(missed: str, met: str, objective: str = "0.99", labels: str = M) -> dict[str, str]:
    return {
        f'archipelago_slo_requests_total{{{labels}, outcome="missed"}}': missed,
        f'archipelago_slo_requests_total{{{labels}, outcome="met"}}': met,
        f"archipelago_slo_objective_ratio{{{labels}}}": f"{objective}x1100",
    }


def key(requests: str, refused: str, name: str = "alice") -> dict[str, str]:
    return {
        f'archipelago_key_requests_total{{{M}, key="{name}", outcome="answered"}}': requests,
        f'archipelago_key_refused_total{{{M}, key="{name}", code="429"}}': refused,
    }


def ready(values: str, phase: str = "steady", *, running: str = "0x60", stall: str = "0x60") -> dict[str, str]:
    return {
        f'archipelago_ready_replicas{{{M}, instance="a"}}': values,
        f'archipelago_fleet_phase{{{M}, phase="starting"}}': f"{int(phase == 'starting')}x60",
        f"archipelago_repartition_running_seconds{{{M}}}": running,
        f"archipelago_repartition_announced_stall_seconds{{{M}}}": stall,
    }


def phase(name: str, values: str) -> dict[str, str]:
    return {f'archipelago_fleet_phase{{{M}, phase="{name}"}}': values}


def kv(usage: str, preemptions: str) -> dict[str, str]:
    return {
        f"archipelago_replica_kv_cache_usage_ratio{{{R}}}": usage,
        f"archipelago_replica_preemptions_total{{{R}}}": preemptions,
    }


def stranded(free: str, instance: str = "") -> dict[str, str]:
    return {f'archipelago_island_stranded_gpus{{island="a"{instance}}}': free, "archipelago_cluster_gpus": "16x200"}


MODEL = 'model="m"'
FAST, MIDDLE, SLOW = (f"ArchipelagoSloBurns{rate}{{{MODEL}}}" for rate in ("Fast", "", "Slowly"))
ARRIVALS = {f"archipelago_arrivals_total{{{M}}}": "0+100x20"}
LEASE = {"archipelago_autoscaler_holds_lease": "1x2000"}
TICKS = "archipelago_autoscaler_last_tick_timestamp_seconds"
PROPOSALS = "archipelago_autoscaler_waiting_proposals"
WITHOUT_LEASE = "ArchipelagoAutoscalerWithoutLease"
# fmt: off
CASES = (
    Case(name="a fifth is missed for an hour", series=slo("0+20x60", "0+80x60"), at="55m", firing=(FAST, MIDDLE)),
    Case(name="a fifth was missed until ten minutes ago", series=slo("0+20x44 880x16", "0+80x60"), at="55m",
         firing=(MIDDLE,)),
    Case(name="a twentieth is missed for an hour", series=slo("0+5x60", "0+95x60"), at="55m"),
    Case(name="half is missed, of five requests in an hour", series=slo("0 0 1x10 2x70", "0x10 1x10 2x70"), at="30m"),
    Case(name="an eighth is missed for six hours", series=slo("0+12x370", "0+88x370"), at="370m",
         firing=(MIDDLE, SLOW)),
    Case(name="a fiftieth is missed for eight hours", series=slo("0+2x500", "0+98x500"), at="480m", firing=(SLOW,)),
    Case(name="a thousandth is missed for eight hours", series=slo("0+1x500", "0+999x500"), at="480m"),
    Case(name="a fiftieth was missed until six hours ago", series=slo("0+2x600 1200x400", "0+98x1000"), at="980m"),
    Case(name="each model has its own objective", at="55m", firing=(FAST, MIDDLE),
         series=slo("0+20x60", "0+80x60") | slo("0+20x60", "0+80x60", "0.95", 'model="n"')),
    Case(name="all is missed where a tenth may be", series=slo("0+100x60", "0x60", "0.9"), at="55m",
         firing=(FAST, MIDDLE)),
    Case(name="two thirds are missed where a tenth may be", series=slo("0+66x60", "0+34x60", "0.9"), at="55m",
         firing=(MIDDLE,)),
    Case(name="a twentieth is missed for eight hours where a tenth may be", series=slo("0+5x500", "0+95x500", "0.9"),
         at="480m"),
    Case(name="nothing is asked", series=slo("7x400", "70x400"), at="380m"),

    Case(name="no replica is ready", series=ready("2 2 0x20"), at="5m",
         firing=(f"ArchipelagoNoReplicaReady{{{MODEL}}}",)),
    Case(name="no replica is ready for half a minute", series=ready("2 2 0 2x20"), at="2m"),
    Case(name="no replica is ready as the model is started", series=ready("0x20", "starting"), at="15m"),
    Case(name="no replica is ready in the stall that was announced",
         series=ready("0x20", running="60+60x20", stall="600x20"), at="10m"),
    Case(name="no replica is ready long after the stall that was announced",
         series=ready("0x60", running="60+60x60", stall="600x60"), at="40m",
         firing=(f"ArchipelagoNoReplicaReady{{{MODEL}}}",)),
    Case(name="replicas are wanted and no ingress is seen",
         series={f'archipelago_fleet_desired_replicas{{{M}, shape="tp2"}}': "2x20"}, at="10m",
         firing=(f"ArchipelagoEndpointSilent{{{MODEL}}}",)),
    Case(name="a model that is stopped has no ingress",
         series={f'archipelago_fleet_desired_replicas{{{M}, shape="tp2"}}': "0x20"}, at="10m"),
    Case(name="a stream is lost", series={f'archipelago_lost_requests_total{{{M}, cause="unmovable"}}': "0x5 1x20"},
         at="8m", firing=(f'ArchipelagoStreamsLost{{cause="unmovable", {MODEL}}}',)),
    Case(name="a stream was lost an hour ago",
         series={f'archipelago_lost_requests_total{{{M}, cause="unmovable"}}': "0x5 1x80"}, at="70m"),
    Case(name="a replica dies three times", at="20m",
         series={f"archipelago_replica_lost_connections_total{{{R}}}": "0 0+1x3 3x30"},
         firing=(f'ArchipelagoReplicaRestarts{{{MODEL}, replica="m--tp2--0", shape="tp2"}}',)),
    Case(name="a replica dies once", series={f"archipelago_replica_lost_connections_total{{{R}}}": "0x5 1x30"},
         at="20m"),
    Case(name="a tenth is refused", at="15m", firing=(f"ArchipelagoRefusals{{{MODEL}}}",),
         series={f'archipelago_refused_total{{{M}, code="429"}}': "0+10x20"} | ARRIVALS),
    Case(name="a fiftieth is refused", at="15m",
         series={f'archipelago_refused_total{{{M}, code="429"}}': "0+2x20"} | ARRIVALS),
    Case(name="a tenth of what a key asks is beyond its quota", at="25m",
         series=key("0+90x30", "0+10x30") | key("0+90x30", "0x30", "bob"),
         firing=(f'ArchipelagoKeyAtQuota{{key="alice", {MODEL}}}',)),
    Case(name="all that a key asks is beyond its quota", series=key("5x30", "0+10x30"), at="25m",
         firing=(f'ArchipelagoKeyAtQuota{{key="alice", {MODEL}}}',)),
    Case(name="a key was at its quota for ten minutes", series=key("0+90x40", "0+10x10 100x30"), at="25m"),
    Case(name="a key is refused now and then", series=key("0+99x40", "0+1x40"), at="25m"),
    Case(name="a key is not used", series=key("7x40", "3x40"), at="25m"),
    Case(name="the KV cache is full and requests are put back", series=kv("0.99x30", "0+5x30"), at="25m",
         firing=(f'ArchipelagoKvCacheFull{{{MODEL}, replica="m--tp2--0", shape="tp2"}}',)),
    Case(name="the KV cache is full and serves", series=kv("0.99x30", "4x30"), at="25m"),
    Case(name="requests were put back, and there is room again", series=kv("0.99x10 0.5x20", "0+5x10 50x20"), at="25m"),

    Case(name="the controller is gone", series={"archipelago_cluster_gpus": "16x10 stale"}, at="30m",
         firing=("ArchipelagoControlApiSilent",)),
    Case(name="the controller is there", series={"archipelago_cluster_gpus": "16x40"}, at="30m"),
    Case(name="a repartition takes forty minutes", series=phase("repartitioning", "1x60"), at="40m",
         firing=(f"ArchipelagoRepartitionStuck{{{MODEL}}}",)),
    Case(name="a repartition turns back and does not arrive", at="45m",
         series=phase("repartitioning", "1x20 0x40") | phase("rolling-back", "0x20 1x40"),
         firing=(f"ArchipelagoRepartitionStuck{{{MODEL}}}",)),
    Case(name="a repartition takes ten minutes", series=phase("repartitioning", "1x10 0x60"), at="40m"),
    Case(name="a repartition is rolled back", at="20m",
         series={f'archipelago_transitions_total{{{M}, way="swap", outcome="rolled-back"}}': "0x10 1x40"},
         firing=(f'ArchipelagoRepartitionRolledBack{{{MODEL}, outcome="rolled-back"}}',)),
    Case(name="a repartition arrives", at="20m",
         series={f'archipelago_transitions_total{{{M}, way="swap", outcome="reached"}}': "0x10 1x40",
                 f'archipelago_transitions_total{{{M}, way="swap", outcome="failed"}}': "0x60"}),
    Case(name="a fleet is smaller than wanted", series=phase("degraded", "1x60"), at="20m",
         firing=(f"ArchipelagoFleetDegraded{{{MODEL}}}",)),
    Case(name="a fleet is repaired soon", series=phase("degraded", "1x10 0x60"), at="20m"),
    Case(name="a node is drained", series={'archipelago_node_draining{node="n", island="a"}': "0 1x20"}, at="5m",
         firing=('ArchipelagoNodeDraining{island="a", node="n"}',)),
    Case(name="no node is drained", series={'archipelago_node_draining{node="n", island="a"}': "0x20"}, at="5m"),
    Case(name="a fifth of the GPUs are stranded", series=stranded("3x200"), at="90m",
         firing=("ArchipelagoStrandedGpus",)),
    Case(name="one of sixteen GPUs is stranded, and scraped twice", at="90m",
         series=stranded("1x200") | stranded("1x200", ', instance="b"')),
    Case(name="GPUs are stranded while a replica starts", series=stranded("3x20 0x200"), at="90m"),

    Case(name="the autoscaler hangs", series={TICKS: "0x20"} | LEASE, at="10m",
         firing=("ArchipelagoAutoscalerSilent",)),
    Case(name="one of two autoscalers hangs", at="20m",
         series={f'{TICKS}{{instance="a"}}': "0x20", f'{TICKS}{{instance="b"}}': "0+60x20"} | LEASE),
    Case(name="the autoscaler is gone", at="20m",
         series={TICKS: "0+60x10 stale", "archipelago_autoscaler_holds_lease": "1x10 stale"},
         firing=("ArchipelagoAutoscalerSilent",)),
    Case(name="nobody has the lease", at="15m", firing=(WITHOUT_LEASE,),
         series={f'archipelago_autoscaler_holds_lease{{instance="{name}"}}': "0x20" for name in "ab"}),
    Case(name="one of two has the lease", at="15m",
         series={'archipelago_autoscaler_holds_lease{instance="a"}': "0x20",
                 'archipelago_autoscaler_holds_lease{instance="b"}': "1x20"}),
    Case(name="the autoscaler is blind", at="20m",
         series={f'archipelago_autoscaler_blind_total{{{M}, kind="stale"}}': "0+4x30"},
         firing=(f'ArchipelagoAutoscalerBlind{{kind="stale", {MODEL}}}',)),
    Case(name="the autoscaler was blind once", at="20m",
         series={f'archipelago_autoscaler_blind_total{{{M}, kind="stale"}}': "0x10 1x30"}),
    Case(name="the autoscaler fails", series={f"archipelago_autoscaler_errors_total{{{M}}}": "0+4x40"}, at="25m",
         firing=(f"ArchipelagoAutoscalerErrors{{{MODEL}}}",)),
    Case(name="the autoscaler failed once", at="25m",
         series={f"archipelago_autoscaler_errors_total{{{M}}}": "0x5 1x40"}),
    Case(name="a proposal waits for six minutes", series={f"{PROPOSALS}{{{M}}}": "0x5 1x20"}, at="12m",
         firing=(f"ArchipelagoProposalWaits{{{MODEL}}}",)),
    Case(name="nobody answers, and proposals expire and are made again", series={f"{PROPOSALS}{{{M}}}": "1x14 0 1x20"},
         at="17m", firing=(f"ArchipelagoProposalWaits{{{MODEL}}}",)),
    Case(name="a proposal is answered after two minutes", series={f"{PROPOSALS}{{{M}}}": "0x5 1x1 0x20"}, at="8m"),
    Case(name="a proposal was answered three minutes ago", series={f"{PROPOSALS}{{{M}}}": "1x9 0x20"}, at="13m"),
    Case(name="a change did worse", at="30m",
         series={f'archipelago_autoscaler_verdicts_total{{{M}, verdict="worse"}}': "0x10 1x60"},
         firing=(f"ArchipelagoChangeDidWorse{{{MODEL}}}",)),
    Case(name="changes did what was said", at="30m",
         series={f'archipelago_autoscaler_verdicts_total{{{M}, verdict="as predicted"}}': "0x10 1x60",
                 f'archipelago_autoscaler_verdicts_total{{{M}, verdict="worse"}}': "3x60"}),
    Case(name="a shape is twice as slow as predicted", at="40m",
         series={f'archipelago_autoscaler_step_factor{{{M}, shape="tp2"}}': "2x60"},
         firing=(f'ArchipelagoPredictionOff{{{MODEL}, shape="tp2"}}',)),
    Case(name="a shape is twice as fast as predicted", at="40m",
         series={f'archipelago_autoscaler_step_factor{{{M}, shape="tp2"}}': "0.5x60"},
         firing=(f'ArchipelagoPredictionOff{{{MODEL}, shape="tp2"}}',)),
    Case(name="a shape is about as fast as predicted", at="40m",
         series={f'archipelago_autoscaler_step_factor{{{M}, shape="tp2"}}': "1.2x60"}),
)
# fmt: on


def alerts() -> dict[str, dict[str, Any]]:
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(PROMTOOL), *arguments], capture_output=True, text=True, timeout=300)


def played(tmp_path: Path, *cases: Case) -> subprocess.CompletedProcess[str]:
    """All in one run: what takes time is to start."""
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": list(map(str, RULES)), "tests": list(map(_test, cases))}))
    return promtool("test", "rules", str(file))


def _test(case: Case) -> dict[str, Any]:
    """`ALERTS` says which fire; promtool's own test of an alert would have to repeat every annotation."""
    labels = ", ".join(sorted({"alertname", *re.findall(r"(\w+)=", "".join(case.firing))}))
    query = {
        "expr": f'max by ({labels}) (ALERTS{{alertstate="firing"}})',
        "eval_time": case.at,
        "exp_samples": [{"labels": _labels(each), "value": 1} for each in case.firing],
    }
    series = [{"series": name, "values": values} for name, values in case.series.items()]
    return {"name": case.name, "interval": "1m", "input_series": series, "promql_expr_test": [query]}


def _labels(firing: str) -> str:
    name, _, rest = firing.partition("{")
    return f'{{alertname="{name}"' + (f", {rest}" if rest else "}")


@needs_promtool
@pytest.mark.parametrize("path", RULES, ids=lambda path: path.name)
def test_prometheus_takes_the_rules(path: Path) -> None:
    checked = promtool("check", "rules", "--lint=all", "--lint-fatal", str(path))
    assert checked.returncode == 0, checked.stdout + checked.stderr


@needs_promtool
def test_an_alert_fires_when_it_must_and_no_other_does(tmp_path: Path) -> None:
    tested = played(tmp_path, *CASES)
    assert tested.returncode == 0, tested.stdout + tested.stderr


@needs_promtool
def test_a_case_that_expects_the_wrong_alert_fails(tmp_path: Path) -> None:
    wrong = Case(name="", series=phase("degraded", "1x60"), at="20m", firing=(f"ArchipelagoRefusals{{{MODEL}}}",))
    assert played(tmp_path, wrong).returncode != 0


def test_every_alert_is_seen_to_fire() -> None:
    fired = {each.partition("{")[0] for case in CASES for each in case.firing}
    assert fired == alerts().keys()


@pytest.mark.parametrize("name", alerts())
def test_an_alert_says_how_bad_it_is_what_it_means_and_what_to_do(name: str) -> None:
    rule = alerts()[name]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    annotations = rule["annotations"]
    assert annotations.keys() == {"summary", "description", "runbook_url"}
    assert annotations["runbook_url"] == f"deployments/runbooks.md#{name.lower()}"
    shown = set(re.findall(r"\$labels\.(\w+)", annotations["summary"] + annotations["description"]))
    firing = [each for case in CASES for each in case.firing if each.partition("{")[0] == name]
    assert all(shown <= set(re.findall(r"(\w+)=", each)) for each in firing)


def test_every_alert_has_its_place_in_the_runbooks_and_every_place_its_alert() -> None:
    headings = re.findall(r"^## (\S+)$", RUNBOOKS.read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(alerts())


def test_a_runbook_says_what_it_means_where_to_look_and_what_to_do() -> None:
    sections = re.split(r"^## ", RUNBOOKS.read_text(), flags=re.MULTILINE)[1:]
    for section in sections:
        assert re.findall(r"^\*\*(.+?)\*\*", section, re.MULTILINE) == ["What it means.", "Look here.", "Do this."]
