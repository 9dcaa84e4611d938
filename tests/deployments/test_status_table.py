from dataclasses import replace

import pytest
from deployment_builders import found_as_planned, layout_of, names_of, ray_id, report_of, with_worker
from placement_builders import cluster_of

from deployments.replica import ReplicaReport
from deployments.run_record import ServedModel
from deployments.status_table import print_status
from deployments.verification import Found

CLUSTER = cluster_of(2, 2)
LAYOUT = layout_of("tp2pp2", CLUSTER)
FOUND = found_as_planned(LAYOUT)
MODEL = ServedModel(name="acme/tiny", url="http://127.0.0.1:8000")
NAME = "acme-tiny--tp2pp2--0"


def report(found: Found = FOUND) -> ReplicaReport:
    return report_of(LAYOUT, found=found, node_names=names_of(CLUSTER))


def printed(
    capsys: pytest.CaptureFixture[str], *, is_serving: bool = True, **reports: ReplicaReport | str
) -> list[str]:
    """The lines that are printed; they must hold problems exactly when the answer says so."""
    is_good = print_status(MODEL, reports, is_serving=is_serving)
    lines = capsys.readouterr().out.splitlines()
    assert is_good == any(line.endswith("placed as planned") for line in lines)
    assert is_good != any(line.endswith("not as planned:") for line in lines)
    return [line.rstrip() for line in lines]


def rows(lines: list[str]) -> list[list[str]]:
    """The cells of the table."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]


def test_every_rank_has_a_row_that_says_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, **{NAME: report()})
    assert lines[0] == "acme/tiny at http://127.0.0.1:8000"
    assert rows(lines) == [
        [NAME, "0", "0", "0", "island-0", "island-0-node-0", "0", "1000", "100 MiB"],
        ["", "1", "0", "1", "island-0", "island-0-node-0", "1", "1001", "101 MiB"],
        ["", "2", "1", "0", "island-1", "island-1-node-0", "0", "1002", "102 MiB"],
        ["", "3", "1", "1", "island-1", "island-1-node-0", "1", "1003", "103 MiB"],
    ]
    assert lines[-1] == "1 of 1 replicas run; placed as planned"


def test_the_columns_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    header = next(line for line in printed(capsys, **{NAME: report()}) if "replica" in line)
    names = [cell.strip() for cell in header.strip("┃").split("┃")]
    assert names == ["replica", "rank", "stage", "tp", "island", "node", "GPU", "pid", "memory"]


def test_a_rank_out_of_place_is_named_with_where_it_was_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, **{NAME: report(with_worker(FOUND, 3, node="island-0-node-0"))})
    assert rows(lines)[3][4:6] == ["island-0", "island-0-node-0"]
    said = " ".join(line.strip() for line in lines)
    assert "1 of 1 replicas run; not as planned:" in said
    assert f"{NAME}: tp2pp2 is not placed as planned:" in said
    assert "rank 3 (stage 1, tp 1): wanted island-1-node-0 in island-1, found island-0-node-0" in said
    assert "tensor-parallel group of stage 1: leaves its island, found on island-0, island-1" in said
    assert not any(f"rank {rank} " in said for rank in (0, 1, 2))


def test_a_worker_on_an_unknown_node_has_no_island(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, **{NAME: report(with_worker(FOUND, 2, ray_node_id="cafe42"))})
    assert rows(lines)[2][4:6] == ["?", "cafe42"]


def test_a_replica_actor_out_of_place_is_a_problem_though_all_rows_are_right(
    capsys: pytest.CaptureFixture[str],
) -> None:
    moved = replace(FOUND, replica_node=ray_id("island-1-node-0"))
    said = " ".join(line.strip() for line in printed(capsys, **{NAME: report(moved)}))
    assert "replica actor: wanted island-0-node-0 (rank 0's node), found island-1-node-0" in said


def test_a_replica_that_does_not_run_is_shown_with_its_state(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, up=report(), down="deploying", lost="gone")
    assert [row[0] for row in rows(lines)] == ["up", "", "", ""]
    assert lines[-3:] == ["1 of 3 replicas run; not as planned:", "  down is deploying", "  lost is gone"]


def test_an_endpoint_that_does_not_answer_is_a_problem(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, is_serving=False, **{NAME: report()})
    assert lines[-2:] == [
        "1 of 1 replicas run; not as planned:",
        "  http://127.0.0.1:8000/health does not answer 200",
    ]


def test_names_with_brackets_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, **{"a[0]": "unhealthy"})
    assert lines[-1] == "  a[0] is unhealthy"
