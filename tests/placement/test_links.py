import json
from dataclasses import replace
from pathlib import Path

import pytest
from cli_builders import Ran, no_network, ran
from planner_builders import LLAMA_70B, cluster, model, region, requests

from placement.calibration import links
from placement.calibration.rows import RowError
from placement.collectives import Calibration, CollectiveError, Factors, all_reduce
from placement.collectives.fitting import fit_links
from placement.planning.plan import plan

__all__ = ["no_network", "ran"]  # fixtures
SLOW = Calibration(network=Factors(latency=2.0, bandwidth=0.25))
SIZES = (4096, 262_144, 67_108_864)
TWO = "2x dgx-h100"


def measured_over(calibration: Calibration, *, ranks: int = 16) -> list[dict[str, str]]:
    """All-reduces of a cluster of two DGX H100 whose links are as `calibration` says."""
    rows = [{"op": "all_reduce", "size_bytes": str(size), "ranks": str(ranks), "time_us": "1"} for size in SIZES]
    for row, point in zip(rows, links.read_points(rows, region(TWO)), strict=True):
        slow = all_reduce(point.size_bytes, replace(point.group, calibration=calibration), "nccl")
        row["time_us"] = str(slow.time_s * 1e6)
    return rows


def test_the_factors_of_a_slow_network_are_found_from_its_own_all_reduces() -> None:
    found = fit_links(links.read_points(measured_over(SLOW), region(TWO)))
    assert found.error_before > 0.3
    assert found.error_after < 0.02
    assert found.calibration.network.bandwidth == pytest.approx(0.25, rel=0.1)
    assert found.calibration.network.latency == pytest.approx(2.0, rel=0.1)
    assert found.calibration.island == Factors()  # no point stayed inside one


def test_sixteen_ranks_on_two_machines_of_eight_cross_the_network_and_eight_do_not() -> None:
    rows = [*measured_over(SLOW), *measured_over(SLOW, ranks=8)]
    spans = {point.group.ranks: point.group.span for point in links.read_points(rows, region(TWO))}
    assert spans == {16: "network", 8: "island"}


def test_a_placement_that_did_not_fill_islands_in_order_can_be_given() -> None:
    row = measured_over(SLOW, ranks=8)[0] | {"machines": "2"}
    (point,) = links.read_points([row], region(TWO))
    assert (point.group.machines, point.group.islands) == (2, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"op": "broadcast"}, "row 1: op is 'broadcast'; it must be one of all_reduce, "),
        ({"ranks": "17"}, "row 1: ranks is '17'; it must be from 2 to the cluster's 16 GPUs."),
        ({"ranks": "1"}, "row 1: ranks is '1'; it must be from 2"),
        ({"time_us": "-3"}, "row 1: time_us is '-3'; it must be a number above 0."),
        ({"size_bytes": ""}, "row 1: size_bytes is missing; the columns op, "),
    ],
)
def test_a_wrong_row_is_refused_by_name(changes: dict[str, str], message: str) -> None:
    with pytest.raises(RowError) as error:
        links.read_points([measured_over(SLOW)[0] | changes], region(TWO))
    assert str(error.value).startswith(message)


def test_a_slower_network_makes_a_cut_across_it_slower_and_leaves_one_inside_alone() -> None:
    sent_s: dict[tuple[bool, str], float] = {}
    for links_factors in (Calibration(), SLOW):
        found = plan(model(LLAMA_70B), cluster(TWO), requests(requests_per_s=2), links=links_factors)
        for prediction in found.predictions:
            if prediction.fits:
                sent_s[links_factors == SLOW, str(prediction.shape)] = prediction.loads[-1].parts_s["send_s"]
    assert sent_s[True, "tp8pp2"] > 1.2 * sent_s[False, "tp8pp2"]
    assert sent_s[True, "tp4pp2"] == sent_s[False, "tp4pp2"]


def test_factors_survive_their_file() -> None:
    assert links.read(json.loads(json.dumps(links.as_document(SLOW)))) == SLOW
    with pytest.raises(CollectiveError, match="give what `archipelago calibrate --collectives` wrote"):
        links.read({"network": 3})


def test_calibrate_writes_what_plan_takes(ran: Ran, tmp_path: Path) -> None:
    rows = measured_over(SLOW)
    table = tmp_path / "nccl.csv"
    table.write_text("\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]))
    code, output, _ = ran("calibrate", table, "--collectives", TWO, "--out", tmp_path / "own")
    assert code == 0
    assert "network  latency x" in output
    question = ("plan", LLAMA_70B, "--cluster", TWO, "--explain", "tp16")
    usual, slow = (ran(*question, *own)[1] for own in ((), ("--calibration", tmp_path / "own")))
    assert usual != slow
    code, _, errors = ran(*question, "--calibration", tmp_path)
    assert code == 1
    assert "has none of constants.json, residuals.json, links.json" in errors
