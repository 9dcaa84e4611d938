import os
import stat
from pathlib import Path

import pytest
from control_builders import MODEL, START, fleet_view, target

from deployments.control.audit import AuditLog, entry_of
from deployments.control.refusals import unknown_model
from deployments.control.wire import Accepted, AuditEntry, ForecastView

TAKEN = Accepted(version=4, changed=True, forecast=ForecastView(way="surge"))


def entry(number: int = 0, reason: str = "r\u00e9ason") -> AuditEntry:
    return entry_of(
        target({"tp4": 1}, reason=f"{reason} {number}"), TAKEN, who="alice", at=START, model=MODEL, current=fleet_view()
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_entries_are_read_back_by_another_process(path: Path) -> None:
    for number in range(5):
        AuditLog(path).record(entry(number))
    assert AuditLog(path).latest(3) == (entry(2), entry(3), entry(4))
    assert len(path.read_text(encoding="utf-8").splitlines()) == 5


def test_an_empty_log_has_no_entries(path: Path) -> None:
    assert AuditLog(path).latest(10) == ()


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_only_the_owner_may_read(path: Path, umask: int) -> None:
    old = os.umask(umask)
    try:
        AuditLog(path).record(entry())
    finally:
        os.umask(old)
    assert mode(path) == 0o600


def test_a_log_that_was_open_to_all_is_closed(path: Path) -> None:
    path.touch(mode=0o644)
    AuditLog(path).record(entry())
    assert mode(path) == 0o600


def test_a_log_that_is_too_long_is_put_aside_and_the_oldest_go(path: Path) -> None:
    line_bytes = len(entry().model_dump_json().encode()) + 1
    log = AuditLog(path, max_bytes=2 * line_bytes, kept=2)
    for number in range(9):
        log.record(entry(number))
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    assert all(file.stat().st_size <= 2 * line_bytes for file in files)
    assert {mode(file) for file in files} == {0o600}
    assert log.latest(100) == tuple(entry(number) for number in range(4, 9))
    assert log.latest(4) == tuple(entry(number) for number in range(5, 9))


def test_an_entry_longer_than_a_file_is_kept_whole(path: Path) -> None:
    log = AuditLog(path, max_bytes=1)
    log.record(entry(1))
    log.record(entry(2))
    assert log.latest(10) == (entry(1), entry(2))


def test_a_line_that_a_crash_tore_costs_only_itself(path: Path) -> None:
    log = AuditLog(path)
    log.record(entry(1))
    whole = path.read_bytes()
    torn_in_a_character = whole.index("é".encode()) + 1
    path.write_bytes(whole + whole[:torn_in_a_character])
    log.record(entry(2))
    assert log.latest(10) == (entry(1), entry(2))
    assert len(path.read_bytes().splitlines()) == 3


def test_an_entry_is_on_the_disk_before_the_request_is_answered(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(path.read_bytes()))
    AuditLog(path).record(entry())
    assert len(synced) == 2  # the file, and the directory that has it now
    assert all(entry().model_dump_json().encode() in content for content in synced)


def test_a_log_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    link = tmp_path / "audit.jsonl"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"audit\.jsonl"):
        AuditLog(link).record(entry())
    with pytest.raises(OSError, match="missing"):
        AuditLog(tmp_path / "missing" / "audit.jsonl").record(entry())


def test_a_refusal_is_recorded_with_its_reason() -> None:
    refusal = unknown_model("tinny", ["tiny"])
    found = entry_of(target({}), refusal, who="bob", at=START, model="tinny", current=None)
    assert (found.outcome, found.refusal, found.before) == ("refused", refusal.sentence, {})
    assert found.what == "delete"


def test_a_repeated_request_is_recorded_as_no_change() -> None:
    same = TAKEN.model_copy(update={"changed": False})
    found = entry_of(target({"tp2": 1}), same, who="bob", at=START, model=MODEL, current=fleet_view())
    assert (found.outcome, found.what) == ("unchanged", "set pools")
