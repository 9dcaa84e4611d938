import re
from datetime import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import autoscaling
from autoscaling.policy.rules_given import rules_of
from autoscaling.schedule import Scheduled, Window
from autoscaling.settings.messages import SettingsError, reference
from autoscaling.settings.settings import Settings, parse_settings, read_settings
from deployments import config as config_module
from deployments.config import SimulatedCluster, load_config
from placement import Shape, Slo
from placement.clusters.cluster_reading import read_cluster
from placement.given import cluster

LEAST = "models: [{model: m, source: meta-llama/Llama-3.1-70B, slo: {ttft: 500ms, tpot: 40ms}}]"
EXAMPLE = Path(autoscaling.__file__).parent / "examples" / "autoscaler.yaml"
SERVED = Path(config_module.__file__).parent / "configs" / "autoscaled.yaml"
FULL = """
prometheus: {url: https://prom:9090/prefix/, token_env: TOKEN, ca: /etc/ca.pem, timeout_s: 2, scrape_interval_s: 5s}
control: {url: http://127.0.0.1:8001, token_env: CONTROL}
mode: auto
tick_s: 30s
directory: /var/lib/archipelago
freeze: true
metrics_port: 9100
settle_s: 10min
approval: {expires_s: 5min, rejected_s: 0}
models:
  - model: acme/llama
    source: meta-llama/Llama-3.1-70B
    cluster: 4x dgx-h100
    slo: {ttft: 1.5s, tpot: 40ms, percentile: p99}
    gpus: {min: 4, max: 32}
    min_replicas: 2
    shapes: [tp4, tp8]
    repartition: false
    forecast: false
    quantile: 0.95
    cooldown_s: 10min
    down_after_s: 1h
    max_change_gpus: 8
    schedule:
      - {days: [mon, fri], from: 08:00, to: 18:00, timezone: Europe/Berlin, min_replicas: 4, gpus: {min: 16}}
      - {from: 20:00, to: 06:00, timezone: Europe/Berlin, gpus: {max: 8}}
    windows:
      - {days: [sat, sun], from: 22:00, to: 06:30, timezone: Europe/Berlin}
"""


def changed(path: str, value: Any) -> str:
    """The full settings with one field set to something else, or gone where `value` is ...."""
    document = yaml.safe_load(re.sub(r"(\d\d:\d\d)", r"'\1'", FULL))
    *sections, name = (int(part) if part.isdecimal() else part for part in path.split("."))
    place = document
    for section in sections:
        place = place[section]
    if value is ...:
        del place[name]
    else:
        place[name] = value
    return yaml.safe_dump(document)


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as refused:
        parse_settings(text, origin="my.yaml")
    return refused.value.problems


def test_only_a_model_with_its_source_and_slo_is_needed_and_nothing_is_changed_by_default() -> None:
    settings = parse_settings(LEAST)
    assert settings.mode == "advise"
    rules = rules_of(settings.models[0])
    assert rules.slo == Slo(ttft_s=0.5, tpot_s=0.04, percentile=0.99)
    assert (rules.repartition, rules.max_gpus, rules.windows, rules.shapes) == (True, None, (), ())


def test_the_example_watches_what_the_shipped_configuration_serves() -> None:
    settings = read_settings(EXAMPLE)
    (watched,), served = settings.models, load_config(SERVED)
    assert settings.mode == "advise"
    assert (watched.model, watched.source) == (served.models[0].name, served.models[0].source)
    assert served.models[0].simulated is not None
    assert isinstance(served.cluster, SimulatedCluster)
    machine = {"gpu": served.models[0].simulated.gpu, "gpus_per_machine": served.cluster.gpus_per_island}
    simulated = read_cluster(machine | {"machines": served.cluster.islands})
    hardware = cluster(watched.cluster or "")
    assert [(node.gpu, node.gpus) for node in hardware.nodes] == [(node.gpu, node.gpus) for node in simulated.nodes]


def test_everything_that_is_written_reaches_the_rules() -> None:
    settings = parse_settings(FULL)
    assert settings.prometheus.url == "https://prom:9090/prefix"
    assert (settings.tick_s, settings.settle_s, settings.approval.expires_s) == (30, 600, 300)
    rules = rules_of(settings.models[0])
    assert rules.slo == Slo(ttft_s=1.5, tpot_s=0.04, percentile=0.99)
    assert (rules.min_gpus, rules.max_gpus, rules.min_replicas) == (4, 32, 2)
    assert (rules.repartition, rules.forecast, rules.forecast_quantile) == (False, False, 0.95)
    assert (rules.cooldown_s, rules.down_after_s, rules.max_change_gpus) == (600, 3600, 8)
    assert rules.shapes == (Shape(tp=4), Shape(tp=8))
    assert rules.windows == (Window(opens=time(22), closes=time(6, 30), days=(5, 6), zone="Europe/Berlin"),)
    day, night = (
        Window(opens=time(8), closes=time(18), days=(0, 4), zone="Europe/Berlin"),
        Window(opens=time(20), closes=time(6), zone="Europe/Berlin"),
    )
    assert rules.schedule == (
        Scheduled(window=day, min_replicas=4, min_gpus=16),
        Scheduled(window=night, max_gpus=8),
    )


@pytest.mark.parametrize("text", ["p95", "P95", "95%", "0.95", 0.95])
def test_a_percentile_is_read_as_people_write_it(text: object) -> None:
    settings = parse_settings(changed("models.0.slo.percentile", text))
    assert settings.models[0].slo.slo.percentile == 0.95


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("mode", "atuo", "mode: 'atuo' is not accepted; give 'advise', 'approve' or 'auto'"),
        ("tick_s", "soon", "tick_s: 'soon' is not accepted; give a time such as 15s, 500ms or 10min"),
        ("tick_s", 0, "tick_s: 0 is not accepted; give a number greater than 0"),
        ("freeze", "yes", "freeze: 'yes' is not accepted; give true or false"),
        ("models", [], "models: [] is not accepted; give at least one"),
        ("models", "m", "models: 'm' is not accepted; give a list"),
        ("prometheus", 9090, "prometheus: 9090 is not accepted; give a mapping"),
        ("prometheus.urll", "x", "prometheus.urll: unknown name; did you mean url?"),
        (
            "prometheus.url",
            "http://me:secret@prometheus",
            "prometheus.url: 'http://me:secret@prometheus' is not accepted; "
            "give http:// or https://, a host, and nothing of a user or a query",
        ),
        (
            "prometheus",
            {"user": "reader"},
            "prometheus: {'user': 'reader'} is not accepted; give user and password_env together",
        ),
        (
            "prometheus",
            {"user": "reader", "password_env": "P", "token_env": "T"},
            "prometheus: {'password_env': 'P', 'token_env': 'T', 'user': 'reader'} is not accepted; "
            "give token_env, or user and password_env, not both",
        ),
        ("control.url", ..., "control.url: missing; give address of the control API, such as http://127.0.0.1:8001"),
        ("models.0.model", ..., "models[0].model: missing; give the name that clients ask for"),
        ("models.0.slo", {}, "models[0].slo: {} is not accepted; give ttft, tpot or both"),
        (
            "models.0.slo.ttft",
            500,
            "models[0].slo.ttft: 500 is not accepted; give a time above 0 with its unit, such as 500ms or 2s",
        ),
        (
            "models.0.slo.percentile",
            "p20",
            "models[0].slo.percentile: 'p20' is not accepted; give p50 to p99.9, or a share such as 0.95 or 95%",
        ),
        (
            "models.0.gpus",
            {"min": 4, "max": 2},
            "models[0].gpus: {'max': 2, 'min': 4} is not accepted; give a min of at most 2, or a larger max",
        ),
        (
            "models.0.shapes",
            ["tp4", "4"],
            "models[0].shapes[1]: '4' is not accepted; give a shape such as tp4, tp2pp2 or tp8ep8",
        ),
        ("models.0.windows.0.from", ..., "models[0].windows[0].from: missing; give when it begins: 22:00"),
        (
            "models.0.windows.0.to",
            "24:00",
            "models[0].windows[0].to: '24:00' is not accepted; give a time of day from 00:00 to 23:59",
        ),
        (
            "models.0.windows.0.timezone",
            "Mars",
            "models[0].windows[0].timezone: 'Mars' is not accepted; "
            "give an IANA time zone such as UTC or Europe/Berlin",
        ),
        (
            "models.0.schedule.1",
            {"from": "20:00", "to": "06:00"},
            "models[0].schedule[1]: {'from': '20:00', 'to': '06:00'} is not accepted; "
            "give gpus with a min or a max, or min_replicas, to hold meanwhile",
        ),
        (
            "models.0.schedule.1.from",
            "17:30",
            "models[0].schedule[1].gpus.max: 8 is not accepted; give at least 16, which schedule[0].gpus.min is at the "
            "same time, or times of one time zone that do not overlap",
        ),
        (
            "models.0.schedule.1.timezone",
            "UTC",
            "models[0].schedule[1].gpus.max: 8 is not accepted; give at least 16, which schedule[0].gpus.min is at the "
            "same time, or times of one time zone that do not overlap",
        ),
        (
            "models.0.schedule.1.gpus.max",
            3,
            "models[0].schedule[1].gpus.max: 3 is not accepted; give at least 4, which gpus.min is at the same time",
        ),
        (
            "models.0.schedule.1.min_replicas",
            9,
            "models[0].schedule[1].gpus.max: 8 is not accepted; "
            "give at least 9, which schedule[1].min_replicas is at the same time",
        ),
        (
            "models.0.schedule.0.gpus.min",
            64,
            "models[0].schedule[0].gpus.min: 64 is not accepted; give at most 32, which gpus.max is",
        ),
        ("models.0.min_replicas", 33, "models[0].min_replicas: 33 is not accepted; give at most 32, which gpus.max is"),
        (
            "models.0.schedule.0.days",
            ["mon-fri"],
            "models[0].schedule[0].days[0]: 'mon-fri' is not accepted; "
            "give 'mon', 'tue', 'wed', 'thu', 'fri', 'sat' or 'sun'",
        ),
        (
            "models.0.quantile",
            0.2,
            "models[0].quantile: 0.2 is not accepted; give a number greater than or equal to 0.5",
        ),
    ],
)
def test_a_mistake_is_one_line_with_field_value_and_what_is_accepted(path: str, value: Any, sentence: str) -> None:
    assert problems(changed(path, value)) == (sentence,)


def test_all_mistakes_are_told_at_once() -> None:
    assert len(problems(LEAST.replace("500ms", "5").replace("model:", "modell:") + "\nmode: x")) == 4


def test_a_model_is_given_once() -> None:
    (sentence,) = problems(LEAST.replace("}}]", "}}, {model: m, source: s, slo: {ttft: 1s}}]"))
    assert sentence.endswith("give each model once; m is there twice")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "my.yaml: is empty; give a mapping with at least models"),
        ("- a", "my.yaml: holds ['a']; give a mapping with at least models"),
        ("a: [", "my.yaml: line 1, column 5: expected the node content, but found '<stream end>'"),
        (LEAST + "\nmode: auto\nmode: advise", "my.yaml: line 3, column 1: 'mode' is given twice"),
        (
            "\x00",
            "my.yaml: is not YAML that can be read: unacceptable character #x0000: special characters are not allowed",
        ),
    ],
)
def test_what_is_no_mapping_is_told_with_its_place(text: str, sentence: str) -> None:
    assert problems(text) == (sentence,)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nothing.yaml: cannot be read \(No such file or directory\)"):
        read_settings(tmp_path / "nothing.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"models: \xff")
    with pytest.raises(SettingsError, match=r"latin.yaml: byte 8 is not UTF-8"):
        read_settings(tmp_path / "latin.yaml")


def test_every_field_is_described() -> None:
    lines = reference(Settings).splitlines()
    assert "models[].windows[].from  (required)" in lines
    assert "tick_s  (default 15.0)" in lines
    described = {line.split(":")[0].split("  ")[0] for line in lines if line and not line.startswith(" ")}
    for name in yaml.safe_load(FULL)["models"][0]:
        assert described & {f"models[].{name}", f"models[].{name}[]"}
    assert "None" not in reference(Settings)
