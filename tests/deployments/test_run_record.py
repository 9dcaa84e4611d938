import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from deployment_builders import answering

from deployments.local_cluster import LocalCluster, free_port
from deployments.run_record import (
    STATE_DIR_ENV,
    RunRecord,
    RunRecordError,
    ServedModel,
    health,
    is_alive,
    read,
    read_token,
    record_path,
    remove,
    token_path,
    write,
    write_token,
)

CLUSTER = LocalCluster(cluster_id="abc", address="127.0.0.2:6379", temp_dir="/tmp/archipelago-x")
RECORD = RunRecord(
    ray_address="127.0.0.2:6379",
    cluster=CLUSTER,
    models=(
        ServedModel(name="tiny-llama", url="http://127.0.0.1:8000"),
        ServedModel(name="acme/tiny", url="http://127.0.0.1:8002"),
    ),
    control_url="http://127.0.0.1:8001",
    drain_timeout_s=2.5,
)


NOWHERE = f"http://127.0.0.1:{free_port()}"


def at(*urls: str) -> tuple[ServedModel, ...]:
    return tuple(ServedModel(name=f"m{index}", url=url) for index, url in enumerate(urls))


@pytest.mark.parametrize("record", [RECORD, replace(RECORD, cluster=None)], ids=["local", "ray"])
def test_what_is_written_is_read(record: RunRecord, tmp_path: Path) -> None:
    write(tmp_path / "run.json", record)
    assert read(tmp_path / "run.json") == record


def test_where_nothing_was_started_there_is_no_record(tmp_path: Path) -> None:
    assert read(tmp_path / "run.json") is None
    assert read(tmp_path / "no" / "such" / "directory" / "run.json") is None


def test_the_directory_is_made(tmp_path: Path) -> None:
    path = tmp_path / "state" / "deep" / "run.json"
    write(path, RECORD)
    assert read(path) == RECORD


def test_a_new_record_replaces_the_old_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write(path, RECORD)
    write(path, replace(RECORD, ray_address="other:1"))
    assert read(path) == replace(RECORD, ray_address="other:1")
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    write(path, RECORD)

    def is_full(self: Path, text: str) -> int:
        with self.open("w") as file:
            file.write(text[:10])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", is_full)
    with pytest.raises(OSError, match="no space left"):
        write(path, replace(RECORD, ray_address="other:1"))
    assert read(path) == RECORD


def test_the_record_is_json_that_people_can_read(tmp_path: Path) -> None:
    write(tmp_path / "run.json", RECORD)
    text = (tmp_path / "run.json").read_text()
    assert json.loads(text)["models"][1] == {"name": "acme/tiny", "url": "http://127.0.0.1:8002"}
    assert len(text.splitlines()) > 5


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({}, "/home/me/.archipelago/run.json"),
        ({STATE_DIR_ENV: ""}, "/home/me/.archipelago/run.json"),
        ({STATE_DIR_ENV: "/var/state"}, "/var/state/run.json"),
        ({STATE_DIR_ENV: "state"}, "state/run.json"),
    ],
)
def test_the_record_is_in_the_working_directory_unless_another_is_named(environ: dict[str, str], path: str) -> None:
    assert record_path(environ, Path("/home/me")) == Path(path)


# --- the token of the control API ------------------------------------------------------------------------------------


def test_only_its_owner_can_read_the_token(tmp_path: Path) -> None:
    path = token_path(tmp_path / "state" / "run.json")
    before = os.umask(0)
    try:
        write_token(path, "s3cret")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_token(path) == "s3cret"


@pytest.mark.parametrize("is_link", [False, True], ids=["open to all", "a link to what others can read"])
def test_a_token_file_that_others_can_read_is_not_written_into(is_link: bool, tmp_path: Path) -> None:
    path, open_to_all = token_path(tmp_path / "run.json"), tmp_path / "open"
    open_to_all.write_text("old")
    open_to_all.chmod(0o644)
    path.symlink_to(open_to_all) if is_link else open_to_all.rename(path)
    write_token(path, "s3cret")
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert not path.is_symlink()
    assert read_token(path) == "s3cret"
    assert not is_link or open_to_all.read_text() == "old"


def test_the_record_does_not_have_the_token(tmp_path: Path) -> None:
    write(tmp_path / "run.json", RECORD)
    write_token(token_path(tmp_path / "run.json"), "s3cret")
    assert "s3cret" not in (tmp_path / "run.json").read_text() + repr(read(tmp_path / "run.json"))


def test_a_token_that_is_not_there_is_a_message_with_where_it_comes_from(tmp_path: Path) -> None:
    path = token_path(tmp_path / "run.json")
    with pytest.raises(RunRecordError) as caught:
        read_token(path)
    assert str(caught.value) == (
        f"{path} cannot be read (No such file or directory); it is written by `archipelago serve`"
    )


def test_when_the_deployment_has_ended_neither_record_nor_token_is_left(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write(path, RECORD)
    write_token(token_path(path), "s3cret")
    remove(path)
    assert list(tmp_path.iterdir()) == []
    remove(path)


# --- alive or not ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": "x"}', '{"cluster": null, "url": "of an old version"}'])
def test_a_record_of_another_version_is_a_message_with_what_to_do(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(RunRecordError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path} is not a record of a deployment")
    assert "delete it" in str(caught.value)


@pytest.mark.parametrize("status", [200, 503])
def test_an_endpoint_that_answers_is_alive_whatever_it_says(status: int) -> None:
    with answering(status) as url:
        assert health(url) == status
        assert is_alive(replace(RECORD, cluster=None, models=at(url)))
        assert is_alive(replace(RECORD, cluster=None, models=at(NOWHERE, url)))


def test_an_endpoint_where_nothing_listens_is_not_alive() -> None:
    assert health(NOWHERE) is None
    assert not is_alive(replace(RECORD, cluster=None, models=at(NOWHERE, NOWHERE)))


def test_a_proxy_does_not_stand_between_the_endpoint_and_its_own_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    with answering(200) as url:
        assert health(url) == 200


def test_a_cluster_without_processes_is_not_alive_though_another_answers_at_its_url() -> None:
    with answering(200) as url:
        assert not is_alive(replace(RECORD, models=at(url)))
