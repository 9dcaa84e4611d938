"""The crossover experiment without engines: its commands, its layouts, its predictions, its report."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from deployments.crossover import namespaces
from deployments.crossover.__main__ import main, report
from deployments.crossover.measure import layout_of, node_command, node_environ
from deployments.crossover.namespaces import SpeedError, names, parse_speed, remove_commands, shape_commands
from deployments.crossover.predict import (
    Comparison,
    ModelSize,
    communication_s,
    compare,
    crossing_bits_per_s,
    link_model,
    verdicts,
)
from deployments.crossover.record import DECODE_1, PREFILL_256, WORKS, Cut, LinkProbe, Record
from deployments.crossover.report import summary, table
from placement import Cluster, Gpu, LayoutError, Node

MEASURED = Path(namespaces.__file__).with_name("measured.json")
SIZE = ModelSize(layers=8, hidden=1024, vocabulary=2048, value_bytes=4)
PAIR = names(7)


def probe_of(bits_per_s: float, latency_s: float = 1e-4) -> LinkProbe:
    """What an ideal link would show: a transfer, and a ring of two ranks."""
    sizes = (64, 4096, 32768, 262144, 1048576)
    return LinkProbe(
        speed=f"{bits_per_s / 1e6:g}mbit",
        send_recv_s={size: latency_s + size * 8 / bits_per_s for size in sizes},
        all_reduce_s={size: 2 * latency_s + size * 8 / bits_per_s for size in sizes},
    )


def comparison(speed: str, mbit_per_s: float, cut: Cut, predicted_s: float, measured_s: float) -> Comparison:
    return Comparison(
        speed=speed,
        bits_per_s=mbit_per_s * 1e6,
        work=DECODE_1.name,
        cut=cut,
        predicted_s=predicted_s,
        measured_s=measured_s,
    )


@pytest.mark.parametrize(
    ("text", "bits_per_s"), [("unshaped", None), ("1gbit", 1e9), ("300mbit", 3e8), ("64kbit", 64e3)]
)
def test_speeds(text: str, bits_per_s: float | None) -> None:
    assert parse_speed(text).bits_per_s == bits_per_s


@pytest.mark.parametrize("text", ["", "fast", "0mbit", "1.5gbit", "100", "100mbit+5ms", "-1mbit"])
def test_what_is_not_a_speed_is_named(text: str) -> None:
    with pytest.raises(SpeedError, match="is not a speed: give unshaped, or a number and kbit, mbit or gbit"):
        parse_speed(text)


def test_the_command_line_refuses_a_speed_twice(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--speeds", "1gbit,1gbit"])
    assert "each speed only once" in capsys.readouterr().err


def test_both_ends_are_shaped_and_a_decode_step_does_not_fit_into_the_bucket() -> None:
    commands = shape_commands(PAIR, parse_speed("20mbit"))
    assert [command[2] for command in commands] == list(PAIR)
    assert all("20000000bit" in command for command in commands)
    bucket = int(commands[0][commands[0].index("burst") + 1])
    assert 1514 < bucket < 4096  # a packet, but less than one activation of one token


def test_everything_that_is_built_is_removed() -> None:
    built = [command[3] for command in namespaces.build_commands(PAIR) if command[:3] == ["ip", "netns", "add"]]
    removed = [command[3] for command in remove_commands(PAIR)]
    assert built == removed == list(PAIR)
    # All else happens inside the two namespaces and goes with them.
    assert all(
        command[:2] == ["ip", "-n"] or command[:2] == ["ip", "netns"] for command in namespaces.build_commands(PAIR)
    )


def test_a_failed_build_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[list[str]] = []

    def run_all(commands: list[list[str]]) -> None:
        for command in commands:
            tried.append(command)
            if command[0] == "tc":
                raise namespaces.NamespaceError("tc: unknown qdisc")

    monkeypatch.setattr(namespaces, "run_all", run_all)
    with pytest.raises(namespaces.NamespaceError, match="unknown qdisc"), namespaces.islands():
        pytest.fail("built without tbf")
    assert [command[2] for command in tried[-2:]] == ["delete", "delete"]


def test_without_root_the_reason_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main([]) == 1
    assert "need root" in capsys.readouterr().err


@pytest.mark.parametrize("cut", Cut)
def test_layouts_seat_the_ranks_where_the_cut_says(cut: Cut) -> None:
    layout = layout_of(cut)
    gpu = Gpu(name="slot", memory_bytes=1)
    cluster = Cluster(nodes=tuple(Node(name=f"node-{i}", island=f"island-{i}", gpus=2, gpu=gpu) for i in range(2)))
    if cut is Cut.TP2_ACROSS:  # which is the point: the planner never does this
        with pytest.raises(LayoutError, match="more than one island"):
            layout.check(cluster)
    else:
        layout.check(cluster)
    assert len({seat.island for seat in layout.seats}) == (2 if "across" in cut else 1)


def test_nodes_talk_over_the_cable_and_can_be_found_again() -> None:
    env = node_environ({"VLLM_CPU_KVCACHE_SPACE": "1", "RAY_ADDRESS": "elsewhere"}, "abc", "10.88.0.2")
    assert env["GLOO_SOCKET_IFNAME"] == namespaces.DEVICE
    assert env["VLLM_HOST_IP"] == "10.88.0.2"
    assert "abc" in env.values()
    assert not {"VLLM_CPU_KVCACHE_SPACE", "RAY_ADDRESS"} & env.keys()
    head, other = (node_command(index, "/tmp/x") for index in range(2))
    assert "--head" in head
    assert "--head" not in other
    assert f"--address={namespaces.ADDRESSES[0]}:6379" in other


@pytest.mark.parametrize("bits_per_s", [20e6, 100e6, 1e9])
def test_a_link_is_described_by_what_the_probes_found(bits_per_s: float) -> None:
    link = link_model(probe_of(bits_per_s))
    assert link.bandwidth_bytes_per_s * 8 == pytest.approx(bits_per_s, rel=0.01)
    # 17 sums of 1 MiB, or one transfer of 2 MiB: the ideal times, and what the planner takes off a line rate.
    mebibyte_s = 2**23 / bits_per_s
    assert communication_s(Cut.TP2_ACROSS, PREFILL_256, SIZE, link) == pytest.approx(17 * mebibyte_s, rel=0.2)
    assert communication_s(Cut.PP2_ACROSS, PREFILL_256, SIZE, link) == pytest.approx(2 * mebibyte_s, rel=0.2)


def test_a_slower_link_costs_tensor_parallelism_more_than_a_pipeline() -> None:
    fast, slow = link_model(probe_of(1e9)), link_model(probe_of(20e6))
    for work in WORKS:
        added_s = {
            cut: communication_s(cut, work, SIZE, slow) - communication_s(cut, work, SIZE, fast)
            for cut in (Cut.TP2_ACROSS, Cut.PP2_ACROSS)
        }
        assert added_s[Cut.TP2_ACROSS] > 4 * added_s[Cut.PP2_ACROSS] > 0


def test_the_crossing_is_where_the_ratio_passes_one() -> None:
    cases = [
        comparison("100mbit", 100, Cut.TP2_ACROSS, 1.0, 1.0),
        comparison("100mbit", 100, Cut.PP2_ACROSS, 2.0, 0.9),
        comparison("1mbit", 1, Cut.TP2_ACROSS, 4.0, 9.0),
        comparison("1mbit", 1, Cut.PP2_ACROSS, 2.0, 1.0),
    ]
    assert crossing_bits_per_s(cases, DECODE_1.name, measured=False) == pytest.approx(10e6)
    assert crossing_bits_per_s(cases, DECODE_1.name, measured=True) is None
    assert [verdict.predicted == verdict.measured for verdict in verdicts(cases)] == [False, True]


def test_a_record_comes_back_from_its_file() -> None:
    record = Record.from_json(MEASURED.read_text(encoding="utf-8"))
    assert Record.from_json(record.to_json()) == record


def test_an_incomplete_record_names_the_case() -> None:
    with pytest.raises(KeyError, match="tp2 inside at unshaped, decode, batch 1: not measured"):
        Record(conditions={}, links=(), steps=()).step_s(Cut.TP2_INSIDE, "unshaped", DECODE_1.name)


def test_the_committed_run_shows_what_the_package_says() -> None:
    """The claim of the README: predicted from probes alone, the faster cut is almost always named right."""
    record = Record.from_json(MEASURED.read_text(encoding="utf-8"))
    comparisons = compare(record, SIZE)
    found = list(verdicts(comparisons))
    assert len(found) == len(WORKS) * len(record.links)
    assert sum(verdict.predicted == verdict.measured for verdict in found) >= 0.8 * len(found)
    slowest = min(comparisons, key=lambda one: one.bits_per_s).speed
    assert {verdict.measured for verdict in found if verdict.speed == slowest} == {Cut.PP2_ACROSS}
    readme = MEASURED.with_name("README.md").read_text(encoding="utf-8")
    assert table(comparisons) in readme
    assert summary(record, comparisons) in readme


def test_an_earlier_run_is_reported_again(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    record = Record.from_json(MEASURED.read_text(encoding="utf-8"))
    report(record, tmp_path, Console(quiet=True))
    assert (tmp_path / "crossover.png").stat().st_size > 10_000
    written = json.loads((tmp_path / "results.json").read_text())
    assert len(written["comparisons"]) == 2 * len(WORKS) * len(record.links)
