import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loop_builders import START_S, decision, option, pools

from autoscaling.decision import Expected
from autoscaling.ledger.entries import Basis, Entry, Figures, Outcome, decision_from, decision_json, entry_json
from autoscaling.ledger.ledger import FILE, Ledger, LedgerError, read_ledger

ONE, TWO, WIDE = pools("1 x tp2"), pools("2 x tp2"), pools("1 x tp4 + 2 x tp2pp2")
FULL = decision(
    WIDE,
    "repartition",
    expected=Expected(horizon_s=600, requests_per_s=3.5, mean_requests_per_s=3.0, input_tokens=900, output_tokens=100),
    options=(option(WIDE, "repartition"), option(TWO, why="TPOT is twice the target at any load")),
)
OUTCOME = Outcome(
    verdict="worse",
    why="It was slower.",
    predicted=Figures(requests_per_s=2, gpus=4, attainment=0.99, tpot_s=0.02),
    realised=Figures(requests_per_s=2, gpus=4, attainment=0.7, ttft_s=0.5, tpot_s=0.04),
    without=Figures(requests_per_s=2, gpus=2, attainment=0.9),
    is_regretted=True,
)


def opened(ledger: Ledger, **changes: Any) -> Entry:
    fields: dict[str, Any] = {
        "at_s": START_S,
        "model": "m",
        "mode": "auto",
        "version": 3,
        "before": ONE,
        "decision": FULL,
        "state": "trying",
        "basis": Basis(bias=-0.1, prefill_tokens_per_s=900, decode_tokens_per_s=90),
    }
    return ledger.open(**fields | changes)


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        entry = ledger.move(opened(ledger), "acted", at_s=START_S + 1, why="Version 4.", by="alice")
        judged = ledger.judge(entry, OUTCOME, at_s=START_S + 600)
    assert read_ledger(tmp_path).entries == {1: judged}
    assert judged.decision == FULL
    assert judged.outcome == OUTCOME
    assert judged.basis is not None
    assert (judged.state, judged.by, judged.since_s, judged.basis.bias) == ("acted", "alice", START_S + 1, -0.1)


def test_json_for_other_programs_has_the_decision_with_its_losers_and_the_outcome(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        entry = ledger.judge(opened(ledger), OUTCOME, at_s=START_S)
    document = json.loads(json.dumps(entry_json(entry)))
    assert document["decision"]["target"] == {"tp4": 1, "tp2pp2": 2}
    assert [row["why"] for row in document["decision"]["options"]] == ["it is cheapest", FULL.options[1].why]
    assert document["outcome"]["realised"]["attainment"] == 0.7


@pytest.mark.parametrize("change", [{"kind": "reboot"}, {"cause": "mood"}, {"target": {"tq": 1}}, {"options": [{}]}])
def test_what_is_no_decision_is_not_read_as_one(change: dict[str, Any]) -> None:
    with pytest.raises((ValueError, KeyError)):
        decision_from({**decision_json(FULL), **change})


def test_numbers_go_on_after_a_restart(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        opened(ledger)
    with Ledger(tmp_path) as ledger:
        assert opened(ledger).number == 2


@given(cut=st.integers(min_value=1), more=st.integers(min_value=0, max_value=2))
def test_a_torn_last_line_is_told_and_costs_only_itself(
    tmp_path_factory: pytest.TempPathFactory, cut: int, more: int
) -> None:
    directory = tmp_path_factory.mktemp("ledger")
    with Ledger(directory) as ledger:
        opened(ledger)
        opened(ledger, decision=decision(TWO))
    path = directory / FILE
    first, second = path.read_bytes().splitlines(keepends=True)
    cut = 1 + cut % (len(second) - 1)  # at least the end of the line is lost
    path.write_bytes(first + second[:-cut])
    with Ledger(directory) as ledger:
        # Only the end of the line: then it can still be read, and is.
        known = 2 if cut == 1 else 1
        assert len(ledger.entries) == known
        assert len(ledger.troubles) == 2 - known
        for _ in range(more):
            opened(ledger)
    reading = read_ledger(directory)
    assert list(reading.entries) == list(range(1, known + more + 1))
    assert all("line 2 is left out" in trouble for trouble in reading.troubles)


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "{}",
        "[]",
        "3",
        '{"fact": "song", "number": 1}',
        '{"fact": "state", "number": 1, "state": "asleep"}',
        '{"fact": "decision", "number": 2, "at_s": 1, "model": "m", "mode": "auto", "version": 3, "before": null}',
    ],
)
def test_a_line_that_is_no_fact_is_told_and_left_out(tmp_path: Path, line: str) -> None:
    with Ledger(tmp_path) as ledger:
        entry = opened(ledger)
    with (tmp_path / FILE).open("a") as file:
        file.write(line + "\n")
    reading = read_ledger(tmp_path)
    assert reading.entries == {1: entry}
    assert len(reading.troubles) == 1
    assert reading.troubles[0].startswith(f"{tmp_path / FILE} line 2 is left out")


def test_a_large_ledger_is_put_aside_and_the_oldest_goes(tmp_path: Path) -> None:
    with Ledger(tmp_path, most_bytes=2000, most_aside=3) as ledger:
        for _ in range(30):
            ledger.move(opened(ledger), "acted", at_s=START_S)
    aside = sorted(tmp_path.glob("ledger-*.jsonl"))
    assert len(aside) == 3
    everything = read_ledger(tmp_path, last=100).entries
    assert list(everything) == list(range(min(everything), 31))
    assert 5 < len(everything) < 30
    assert {entry.state for entry in everything.values()} == {"acted"}
    assert list(read_ledger(tmp_path, last=4).entries) == [27, 28, 29, 30]
    assert 20 in read_ledger(tmp_path, number=20).entries
    with Ledger(tmp_path) as ledger:
        assert opened(ledger).number == 31


def test_a_line_that_did_not_fit_on_the_disk_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        os.ftruncate(descriptor, 100)
        raise OSError(28, "No space left on device")

    with Ledger(tmp_path) as ledger:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(LedgerError, match=r"cannot be written \(No space left on device\); nothing was done"):
                opened(ledger)
        entry = opened(ledger)
    reading = read_ledger(tmp_path)
    assert reading.entries == {1: entry}
    assert len(reading.troubles) == 1


def test_an_entry_that_was_put_aside_can_still_be_judged(tmp_path: Path) -> None:
    with Ledger(tmp_path, most_bytes=2000) as ledger:
        entry = ledger.move(opened(ledger), "acted", at_s=START_S)
        for _ in range(5):
            opened(ledger)
        ledger.judge(entry, OUTCOME, at_s=START_S)
    assert read_ledger(tmp_path, number=1).entries[1].outcome == OUTCOME


def test_a_change_that_is_never_judged_does_not_keep_all_that_came_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its model may be watched no more."""
    monkeypatch.setattr("autoscaling.ledger.ledger._REMEMBERED", 5)
    with Ledger(tmp_path) as ledger:
        ledger.move(opened(ledger, model="gone"), "acted", at_s=START_S)
        for _ in range(20):
            opened(ledger, state="noted")
        assert list(ledger.entries) == [1, 18, 19, 20, 21]


def test_nothing_was_written_yet(tmp_path: Path) -> None:
    assert not read_ledger(tmp_path / "nowhere").entries


def test_a_directory_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match=r"file/inside: the ledger cannot be kept there \(Not a directory\)"):
        Ledger(tmp_path / "file" / "inside")
