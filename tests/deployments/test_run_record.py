import json
from dataclasses import replace
from pathlib import Path

import pytest
from deployment_builders import answering

from deployments.local_cluster import LocalCluster, free_port
from deployments.run_record import STATE_DIR_ENV, RunRecord, health, is_alive, read, record_path, write

CLUSTER = LocalCluster(cluster_id="abc", address="127.0.0.2:6379", temp_dir="/tmp/archipelago-x")
RECORD = RunRecord(
    ray_address="127.0.0.2:6379",
    cluster=CLUSTER,
    model="tiny-llama",
    url="http://127.0.0.1:8000",
    ingress="tiny-llama--ingress",
    replicas=("tiny-llama--tp2--0", "tiny-llama--tp2--1"),
    drain_timeout_s=2.5,
)


@pytest.mark.parametrize(
    "record", [RECORD, replace(RECORD, cluster=None), replace(RECORD, replicas=())], ids=["local", "ray", "no replicas"]
)
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
    write(path, replace(RECORD, model="other"))
    assert read(path) == replace(RECORD, model="other")
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
        write(path, replace(RECORD, model="other"))
    assert read(path) == RECORD


def test_the_record_is_json_that_people_can_read(tmp_path: Path) -> None:
    write(tmp_path / "run.json", RECORD)
    text = (tmp_path / "run.json").read_text()
    assert json.loads(text)["url"] == "http://127.0.0.1:8000"
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


@pytest.mark.parametrize("status", [200, 503])
def test_an_endpoint_that_answers_is_alive_whatever_it_says(status: int) -> None:
    with answering(status) as url:
        assert health(url) == status
        assert is_alive(replace(RECORD, cluster=None, url=url))


def test_an_endpoint_where_nothing_listens_is_not_alive() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert health(url) is None
    assert not is_alive(replace(RECORD, cluster=None, url=url))


def test_a_proxy_does_not_stand_between_the_endpoint_and_its_own_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    with answering(200) as url:
        assert health(url) == 200


def test_a_cluster_without_processes_is_not_alive_though_another_answers_at_its_url() -> None:
    with answering(200) as url:
        assert not is_alive(replace(RECORD, url=url))
