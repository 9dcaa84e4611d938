"""`archipelago predict` and `archipelago calibrate` as a shell runs them."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_builders import Ran, no_network, ran, refused, strictly, written
from measured_data import measured
from measured_rows import measured_under, questions
from planner_builders import LLAMA_70B

from placement.calibration.rows import read_rows
from placement.cost.constants import read, shipped, write

__all__ = ["no_network", "ran"]  # fixtures

PLAN = ("plan", LLAMA_70B, "--cluster", "4x dgx-h100", "--rate", "8/s", "--tpot", "30ms")


def table(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def measured_table(path: Path, factor: float = 1.0) -> Path:
    """Rows of an engine whose layers take `factor` times as long as the shipped constants say."""
    key = ("layer_overhead_us", "vllm")
    truth = shipped().with_values({key: shipped().value(*key) * factor})
    asked = list(questions())
    return table(
        path,
        [
            {**row, "silicon_ttft_ms": found.ttft_ms, "silicon_tpot_ms": found.tpot_ms}
            for row, found in zip(asked, measured_under(truth, read_rows(asked)), strict=True)
        ],
    )


def predicted(path: Path) -> dict[str, tuple[float, float]]:
    with path.open(newline="") as file:
        return {row["id"]: (float(row["pred_ttft_ms"]), float(row["pred_tpot_ms"])) for row in csv.DictReader(file)}


def test_every_row_is_predicted(ran: Ran, tmp_path: Path) -> None:
    rows = list(questions())
    code, output, _ = ran("predict", "--rows", table(tmp_path / "in.csv", rows), "--out", tmp_path / "out.csv")
    assert (code, output) == (0, f"{len(rows)} rows written to {tmp_path / 'out.csv'}\n")
    found = predicted(tmp_path / "out.csv")
    assert list(found) == [row["id"] for row in rows]
    assert all(ttft > tpot > 0.1 for ttft, tpot in found.values())


def test_public_points_are_all_predicted(ran: Ran, tmp_path: Path) -> None:
    path = measured("serving_silicon_dev.csv")
    assert ran("predict", "--rows", path, "--out", tmp_path / "out.csv")[0] == 0
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = predicted(tmp_path / "out.csv")
    assert list(found) == [row["id"] for row in rows]
    ratios = sorted(found[row["id"]][1] / float(row["silicon_tpot_ms"]) for row in rows)
    assert 0.9 < ratios[len(ratios) // 2] < 1.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "tgi"}, "row 1: backend is 'tgi'; it must be one of vllm, sglang, trtllm."),
        ({"conc": "0"}, "row 1: conc is '0'; it must be a number above 0."),
        ({"model_path": "acme/llm"}, "model_path is 'acme/llm'; it is not in the catalogue of known models."),
        ({"system": "h1000"}, "system is 'h1000'; it must be a known kind of GPU, such as h100_sxm."),
        ({"isl": ""}, "row 1: isl is missing; the columns id, backend, "),
        ({"tp_size": "two"}, "row 1: tp_size is 'two'; it must be a number above 0."),
    ],
)
@pytest.mark.parametrize("command", ["predict", "calibrate"])
def test_a_wrong_row_is_refused(ran: Ran, tmp_path: Path, command: str, changes: dict[str, str], message: str) -> None:
    rows = [{**row, "silicon_ttft_ms": "9", "silicon_tpot_ms": "9"} for row in questions()]
    path = table(tmp_path / "in.csv", [{**rows[0], **changes}, *rows[1:]])
    arguments = ("--rows", path, "--out", tmp_path / "out.csv") if command == "predict" else (path, "--folds", "0")
    code, _, errors = ran(command, *arguments)
    assert code == 1
    assert message in errors.splitlines()[-1]
    assert not (tmp_path / "out.csv").exists()


def test_a_row_of_a_model_with_a_similar_name_is_answered_and_said_so(ran: Ran, tmp_path: Path) -> None:
    rows = [{**row, "model_path": "meta-llama/Llama-3.9-70B-Instruct"} for row in questions()]
    code, _, errors = ran("predict", "--rows", table(tmp_path / "in.csv", rows), "--out", tmp_path / "out.csv")
    assert code == 0
    assert "meta-llama/Llama-3.9-70B-Instruct is not known; its rows are answered as if it were" in errors
    assert "70B" in errors.partition("as if it were")[2]
    assert list(predicted(tmp_path / "out.csv")) == [row["id"] for row in rows]


def test_files_of_rows_that_cannot_be_used(ran: Ran, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out.csv")
    assert "cannot be read as CSV" in refused(ran("predict", "--rows", tmp_path / "none.csv", *out))
    assert "empty.csv holds no rows" in refused(ran("predict", "--rows", written(tmp_path / "empty.csv", ""), *out))
    rows = table(tmp_path / "in.csv", list(questions()))
    assert "cannot be written" in refused(ran("predict", "--rows", rows, "--out", "/dev/null/out.csv"))
    assert "0 rows have silicon_ttft_ms and silicon_tpot_ms; at least 5 are needed." in refused(ran("calibrate", rows))


def test_ones_own_measurements_make_predictions_better(ran: Ran, tmp_path: Path) -> None:
    rows, fitted = measured_table(tmp_path / "in.csv", factor=2.0), tmp_path / "fitted"
    code, output, errors = ran("calibrate", rows, "--folds", "0", "--out", fitted, "--json")
    assert (code, errors) == (0, "fitting to 24 points\n")
    assert set(strictly(output)) == {"before"}
    assert read(json.loads((fitted / "constants.json").read_text())).value("layer_overhead_us", "vllm") > (
        shipped().value("layer_overhead_us", "vllm")
    )
    with rows.open(newline="") as file:
        truth = {row["id"]: float(row["silicon_tpot_ms"]) for row in csv.DictReader(file)}
    errors_of = {}
    for name, extra in {"before": (), "after": ("--calibration", fitted)}.items():
        assert ran("predict", "--rows", rows, "--out", tmp_path / "out.csv", *extra)[0] == 0
        found = predicted(tmp_path / "out.csv")
        errors_of[name] = sum(abs(found[key][1] / truth[key] - 1) for key in truth) / len(truth)
    assert errors_of["after"] < 0.3 * errors_of["before"]
    assert errors_of["after"] < 0.03
    assert ran(*PLAN, "--calibration", fitted, "--json")[1] != ran(*PLAN, "--json")[1]


def test_points_of_one_curve_are_fitted_though_they_leave_nothing_to_check(ran: Ran, tmp_path: Path) -> None:
    """The first ones that somebody measures: one layout under more and more clients."""
    with measured_table(tmp_path / "all.csv", factor=2.0).open(newline="") as file:
        alike = [
            row | {"id": f"{number}", "conc": f"{2**number}"}
            for number, row in enumerate([next(csv.DictReader(file))] * 6)
        ]
    code, _, errors = ran("calibrate", table(tmp_path / "in.csv", alike), "--out", tmp_path / "mine")
    assert code == 0
    assert "not checked: all points are of one curve" in errors
    assert (tmp_path / "mine" / "constants.json").exists()
    assert (
        f"your calibration {tmp_path / 'mine'}, instead of what is above: constants.json, residuals.json"
        in (ran(*PLAN, "--calibration", tmp_path / "mine")[1])
    )


def test_folds_tell_the_error_on_points_that_were_left_out(ran: Ran, tmp_path: Path) -> None:
    rows = measured_table(tmp_path / "in.csv")
    code, output, _ = ran("calibrate", rows, "--folds", "2", "--by", "curve", "--json")
    found = strictly(output)
    assert code == 0
    assert found["out of fold, by curve"]["rows"] == 24
    code, output, errors = ran("calibrate", rows, "--folds", "1")
    assert code == 1
    assert errors == "archipelago: --folds: 1 is not accepted; give at least 2, or 0 for no check.\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("constants.json", "{}"),
        ("constants.json", '{"constants": {"x": {"default": -1}}}'),
        ("residuals.json", '{"words": []}'),
        ("residuals.json", '{"words": [], "points": [{"labels": [7]}]}'),
    ],
)
def test_a_calibration_that_was_changed_by_hand(ran: Ran, tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / "constants.json").write_text(json.dumps(write(shipped())))
    (tmp_path / "residuals.json").write_text('{"words": [], "points": []}')
    assert ran(*PLAN, "--calibration", tmp_path)[0] == 0
    (tmp_path / name).write_text(content)
    assert "`archipelago calibrate` writes; give its file unchanged." in refused(ran(*PLAN, "--calibration", tmp_path))
