import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from record_builders import record

from loadtests.records import RecordsError, Run, RunEvent, read_records, read_run, write_run

RECORD = record(1.0, id=3, worker=1, class_name="chat", detail="a\u2028b\x85c", text_sha="0f")
RUN = Run(
    header={"version": 1, "name": "smoke"},
    events=(RunEvent(at_s=60.0, kind="kill", what="process 5", outcome="done"),),
    records=(RECORD, replace(RECORD, id=4, outcome="refused", first_s=None, text_sha=None)),
)


def test_a_run_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_run(path, RUN)
    assert read_run(path) == RUN
    assert [child.name for child in tmp_path.iterdir()] == ["records.jsonl"]


def test_the_class_is_called_class_in_the_file() -> None:
    assert json.loads(RECORD.to_json())["class"] == "chat"


def lines(**changes: Any) -> list[str]:
    record = {**json.loads(RECORD.to_json()), **changes}
    return ['{"run": {"version": 1}}', json.dumps({key: value for key, value in record.items() if value != "gone"})]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("", ["line 1"], id="empty"),
        pytest.param("hello", ["line 1", "not JSON"], id="no JSON"),
        pytest.param('{"event": {}}', ["line 1", "begins with"], id="no header"),
        pytest.param('{"format": "x", "run": {"version": 1}}', ["line 1", "records.jsonl"], id="a result"),
        pytest.param('{"run": {"version": 2}}', ["version is 2", "reads 1"], id="a later version"),
        pytest.param('{"run": {"version": 1}}\n[]', ["line 2", "object"], id="a list"),
        pytest.param('{"run": {"version": 1}}\n{"event": {"at": 1}}', ["line 2", "event"], id="a bad event"),
        pytest.param("\n".join(lines(speed=3)), ["line 2", "speed"], id="an unknown field"),
        pytest.param("\n".join(lines(status="gone")), ["line 2", "status"], id="a missing field"),
        pytest.param("\n".join(lines(outcome="fine")), ["line 2", "'fine'", "refused"], id="an unknown outcome"),
    ],
)
def test_a_file_that_is_none_is_refused_with_its_line(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecordsError) as caught:
        read_run(path)
    for word in (str(path), *words):
        assert word in str(caught.value)


def test_a_worker_that_was_killed_while_it_wrote_loses_that_one_line() -> None:
    whole = RECORD.to_json() + "\n"
    assert read_records([whole, whole, whole[:50]]) == [RECORD, RECORD]
