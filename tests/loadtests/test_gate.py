"""Limits for a pipeline, and the commands around them."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from record_builders import document, record, refused, served, written

from loadtests.bench_commands import add_commands
from loadtests.gate import RULES, GateError, check, read_limits
from loadtests.records import Record


def run(*arguments: object) -> int:
    """`archipelago bench ...`"""
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers(required=True))
    parsed = parser.parse_args(["bench", *map(str, arguments)])
    code: int = parsed.run(parsed)
    return code


def gate(tmp_path: Path, records: list[Record], limits: str, **header: Any) -> int:
    result, slo = tmp_path / "result.json", tmp_path / "slo.yaml"
    result.write_text(json.dumps(document(records, **header)), encoding="utf-8")
    slo.write_text(limits, encoding="utf-8")
    return run("gate", result, slo)


# TTFT 200 ms, TPOT 20 ms, 0.4 s in all, 11 tokens.
GOOD = [record(float(index), id=index, class_name="chat") for index in range(100)]
ONE_REFUSED = [*GOOD[:99], refused(99.0, id=99, class_name="code")]
ONE_OF_A_THOUSAND = [*(record(index / 100, id=index) for index in range(999)), refused(10.0, id=999)]
ONE_CUT = [*GOOD[:99], record(99.0, id=99, outcome="cut", output_tokens=None)]
ONE_REPEATS = [*GOOD[:99], record(99.0, id=99, outcome="gap-or-repeat")]


@pytest.mark.parametrize(
    ("records", "limits", "code"),
    [
        (GOOD, "ttft_p99: 200ms", 0),
        (GOOD, "ttft_p99: 0.19s", 1),
        (GOOD, "tpot_p95: 20ms", 0),
        (GOOD, "tpot_p95: 19.9ms", 1),
        (GOOD, "e2e_max: 400ms", 0),
        (GOOD, "longest_stall_max: 19ms", 1),
        (GOOD, "lag_p99: 1ms", 0),
        (GOOD, "attainment: 100%", 0),
        (ONE_REFUSED, "attainment: 0.99", 1),  # one failed, and nobody said that it may
        (ONE_REFUSED, "{attainment: 0.99, failed: 1%}", 0),
        (ONE_REFUSED, "{attainment: 99.5%, failed: 1%}", 1),
        (ONE_REFUSED, "{failed: 1%, lost_streams: 0}", 0),
        (ONE_REFUSED, "{failed: 1%, worst_minute: 99%}", 1),
        (ONE_OF_A_THOUSAND, "{attainment: 99.9%, failed: 0.1%}", 0),  # 99.9 / 100 is more than 0.999
        (ONE_CUT, "{failed: 1%, lost_streams: 0}", 1),
        (ONE_CUT, "{failed: 1%, lost_streams: 1}", 0),
        (ONE_REPEATS, "{failed: 1%, damaged_streams: 0}", 1),
        (GOOD, "requests_per_s: 1.0", 0),
        (GOOD, "output_tokens_per_s: 12", 1),
        (GOOD, "classes: {chat: {ttft_p99: 200ms}}", 0),
        (GOOD, "classes: {chat: {ttft_p99: 199ms}}", 1),
        (ONE_REFUSED, "{failed: 1%, classes: {code: {ttft_p99: 1min}}}", 1),  # no answer keeps no limit
    ],
)
def test_the_exit_code_says_whether_all_limits_are_kept(
    tmp_path: Path, records: list[Record], limits: str, code: int
) -> None:
    assert gate(tmp_path, records, limits) == code


def test_a_run_that_is_not_valid_fails_whatever_it_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate(tmp_path, GOOD, "ttft_p99: 1s", invalid=["worker 1 died"]) == 1
    assert "no: worker 1 died" in capsys.readouterr().out
    assert gate(tmp_path, [], "ttft_p99: 1s") == 1


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ("", "names no limit"),
        ("- 1", "names no limit"),
        ("a: [", "is not YAML"),
        ("ttft_p98: 1s", "ttft_p98: no such limit; did you mean ttft_p99"),
        ("ttft_p99: 2", "ttft_p99: 2 is no duration; give a number with its unit: 500ms, 2s"),
        ("ttft_p99: -2s", "'-2s' is no duration"),
        ("attainment: 99", "attainment: 99 is no share; give one like 99% or 0.99"),
        ("attainment: true", "True is no share"),
        ("lost_streams: none", "lost_streams: 'none': Input should be a valid integer"),
        ("lost_streams: -1", "greater than or equal to 0"),
        ("classes: {chat: {lag_p99: 1s}}", "classes.chat.lag_p99: no such limit"),
        ("classes: {poet: {ttft_p99: 1s}}", "classes.poet: the run has no such class; it has chat"),
    ],
)
def test_limits_that_cannot_be_read_end_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], limits: str, message: str
) -> None:
    assert gate(tmp_path, GOOD, limits) == 2
    assert message in capsys.readouterr().err


def test_files_that_are_not_there_end_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("gate", tmp_path / "result.json", tmp_path / "slo.yaml") == 2
    assert run("report", tmp_path / "absent.jsonl") == 2
    assert run("compare", tmp_path / "a.json", tmp_path / "b.json") == 2
    errors = capsys.readouterr().err.splitlines()
    assert [name in line for name, line in zip(("result.json", "absent.jsonl", "a.json"), errors, strict=True)] == [
        True
    ] * 3


def test_every_limit_is_shown_with_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gate(tmp_path, ONE_CUT, "{ttft_p99: 2s, lost_streams: 0}")
    lines = capsys.readouterr().out.splitlines()
    for words in (
        ("valid", "yes", "ok"),
        ("failed", "≤ 0 %", "1 %", "failed"),
        ("ttft_p99", "≤ 2 s", "200 ms", "ok"),
        ("lost_streams", "≤ 0", "1", "failed"),
    ):
        assert any(all(word in line for word in words) for line in lines), words


def test_every_rule_finds_its_value(tmp_path: Path) -> None:
    """A name that leads nowhere would fail every run."""
    loosest = {"duration": "60min", "share": "100%", "count": "1000", "rate": "0"}
    lines = [
        f"{name}: {'0%' if rule.at_least and rule.kind == 'share' else loosest[rule.kind]}"
        for name, rule in RULES.items()
    ]
    path = tmp_path / "slo.yaml"
    path.write_text("\n".join(lines), encoding="utf-8")
    checks = check(document(GOOD), read_limits(path))
    assert len(checks) == len(RULES) + 1
    assert [each.name for each in checks if not each.ok] == []


def test_limits_of_a_class_are_not_inherited(tmp_path: Path) -> None:
    path = tmp_path / "slo.yaml"
    path.write_text("ttft_p99: 1s\nclasses: {chat: {tpot_p99: 1s}}", encoding="utf-8")
    names = [each.name for each in check(document(GOOD), read_limits(path))]
    assert names == ["valid", "failed", "ttft_p99", "chat: tpot_p99"]
    with pytest.raises(GateError, match="it has none"):
        check(document([record()]), read_limits(path))


def test_report_and_compare_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, slower in (("a", 1.0), ("b", 1.5)):
        (tmp_path / name).mkdir()
        records = written(tmp_path / name, served(1, length_s=120, slower=slower))
        assert run("report", records) == 0
    assert "SLO" in capsys.readouterr().out
    results = [tmp_path / name / "result.json" for name in ("a", "b")]
    assert run("compare", *results) == 0
    assert "worse" in capsys.readouterr().out
    assert run("compare", *results, "--json") == 0
    compared = json.loads(capsys.readouterr().out)
    assert compared["paired"] is True
    assert {each["metric"] for each in compared["differences"]} >= {"attainment", "TTFT p99", "TPOT p50"}
