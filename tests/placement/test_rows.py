import csv
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measured_data import measured
from planner_builders import LLAMA_70B

from placement.calibration.fit import batch_of, predict
from placement.calibration.rows import NEEDED, RowError, case_of, read_rows
from placement.cost.constants import shipped
from placement.shape import Shape, ShapeError

ROW = {
    "id": "a",
    "backend": "vllm",
    "model_path": LLAMA_70B,
    "system": "h100_sxm",
    "isl": "1024",
    "osl": "256",
    "conc": "16",
    "tp_size": "4",
}
SHAPE_COLUMNS = ("tp_size", "pp_size", "attention_dp_size", "moe_ep_size")


def row(**changes: str) -> dict[str, str]:
    return {**ROW, **changes}


def times_ms(**changes: str) -> tuple[float, float]:
    found = predict(batch_of(read_rows([row(**changes)]), shipped()), shipped())
    return float(found.ttft_ms[0]), float(found.tpot_ms[0])


def test_what_a_row_may_leave_out() -> None:
    (read,) = read_rows([ROW])
    assert (read.shape, read.precision, read.client, read.ttft_ms, read.tpot_ms) == (Shape(tp=4), "", "", 0, 0)
    assert (read.clients, read.input_tokens, read.output_tokens, read.gpu) == (16, 1024, 256, "h100_sxm")


@pytest.mark.parametrize(
    ("columns", "shape"),
    [
        (("8", "1", "1", "8"), "tp8ep8"),
        (("8", "1", "1", "1"), "tp8"),
        (("1", "1", "8", "8"), "ep8dp8"),
        (("2", "1", "4", "8"), "tp2ep8dp4"),
        (("4", "2", "1", ""), "tp4pp2"),
        (("4.0", "", "", ""), "tp4"),
    ],
)
def test_the_shape_of_a_row(columns: tuple[str, ...], shape: str) -> None:
    (read,) = read_rows([row(**dict(zip(SHAPE_COLUMNS, columns, strict=True)))])
    assert str(read.shape) == shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "tgi"}, "row 1: backend is 'tgi'; it must be one of vllm, sglang, trtllm."),
        ({"conc": "0"}, "row 1: conc is '0'; it must be a number above 0."),
        ({"conc": "-3"}, "row 1: conc is '-3'; it must be a number above 0."),
        ({"isl": "many"}, "row 1: isl is 'many'; it must be a number above 0."),
        ({"osl": "nan"}, "row 1: osl is 'nan'; it must be a number above 0."),
        ({"osl": "inf"}, "row 1: osl is 'inf'; it must be a number above 0."),
        ({"tp_size": "2.5"}, "row 1: tp_size is '2.5'; it must be a whole number, 1 or more."),
        ({"pp_size": "0"}, "row 1: pp_size is '0'; it must be a number above 0."),
        ({"silicon_ttft_ms": "-1"}, "row 1: silicon_ttft_ms is '-1'; it must be a number above 0."),
        *(({name: ""}, f"row 1: {name} is missing; the columns {', '.join(NEEDED)} are needed.") for name in NEEDED),
    ],
)
def test_a_wrong_row_names_row_column_value_and_what_is_accepted(changes: dict[str, str], message: str) -> None:
    with pytest.raises(RowError) as caught:
        read_rows([row(**changes)])
    assert str(caught.value) == message


def test_a_missing_column_is_named_like_an_empty_one() -> None:
    with pytest.raises(RowError, match=r"^row 2: conc is missing; the columns id, .*, conc, tp_size are needed\.$"):
        read_rows([ROW, {name: value for name, value in ROW.items() if name != "conc"}])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_path": "acme/llm"}, "row a: model_path is 'acme/llm'; it is not in the catalogue of known models."),
        ({"system": "h1000"}, "row a: system is 'h1000'; it must be a known kind of GPU, such as h100_sxm."),
    ],
)
def test_a_model_or_gpu_that_is_not_known(changes: dict[str, str], message: str) -> None:
    (read,) = read_rows([row(**changes)])
    with pytest.raises(RowError) as caught:
        case_of(read, shipped())
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("slower", "faster"),
    [
        pytest.param({"conc": "64"}, {}, id="more-clients"),
        pytest.param({}, {"tp_size": "8"}, id="more-gpus"),
        pytest.param({}, {"system": "b200_sxm"}, id="newer-gpu"),
        pytest.param({}, {"precision": "fp8"}, id="smaller-weights"),
        pytest.param({"isl": "8192"}, {}, id="longer-prompts"),
    ],
)
def test_what_makes_a_row_slower(slower: dict[str, str], faster: dict[str, str]) -> None:
    assert times_ms(**slower)[1] > times_ms(**faster)[1]


def test_clients_without_room_in_the_cache_wait() -> None:
    few, many = (
        times_ms(model_path="meta-llama/Llama-3.1-8B", tp_size="1", isl="16384", conc=n) for n in ("16", "256")
    )
    assert many[0] > 10 * few[0]


@pytest.mark.parametrize(
    ("version", "measured_on", "label"),
    [
        ("0.19.0", "2026-04-08T00:00:00.000Z", "0.19.0 2026-04"),
        ("0.19.0", "2026-05-01", "0.19.0 2026-05"),
        ("", "2025-11-02", "2025-11"),
        ("0.19.0", "", "0.19.0"),
        ("", "", ""),
    ],
)
def test_runs_of_one_version_in_different_months_are_told_apart(version: str, measured_on: str, label: str) -> None:
    (read,) = read_rows([row(backend_version=version, measured=measured_on)])
    assert read.version == label


@pytest.mark.parametrize(
    ("src", "lengths", "client"),
    [
        ("inferencemax", ("1024", "8192"), "inferencemax"),
        ("nvidia_gap_analysis", ("8192", "1024"), "inferencemax"),
        ("nvidia_gap_analysis", ("1024.0", "1024"), "inferencemax"),
        ("nvidia_gap_analysis", ("8192", "8192"), "nvidia_gap_analysis"),
        ("nvidia_gap_analysis", ("4000", "1000"), "nvidia_gap_analysis"),
        ("mine", ("1024", "1024"), "mine"),
        ("", ("1024", "1024"), ""),
    ],
)
def test_measurements_of_inferencemax_that_others_pass_on_are_its_own(
    src: str, lengths: tuple[str, str], client: str
) -> None:
    (read,) = read_rows([row(src=src, isl=lengths[0], osl=lengths[1])])
    assert read.client == client


@given(
    changes=st.dictionaries(
        st.sampled_from([*ROW, "pp_size", "moe_ep_size", "attention_dp_size", "precision", "silicon_tpot_ms"]),
        st.sampled_from(["", "0", "1", "2", "8", "1e9", "x", "-1", "nan", "fp8", "trtllm"]) | st.text(max_size=6),
    )
)
def test_any_row_is_read_or_refused(changes: dict[str, str]) -> None:
    with suppress(RowError, ShapeError):
        (read,) = read_rows([row(**changes)])
        assert min(read.clients, read.input_tokens, read.output_tokens, read.shape.gpus) > 0


def test_every_public_point_can_be_predicted() -> None:
    with measured("serving_silicon_dev.csv").open(newline="") as file:
        table: list[dict[str, Any]] = list(csv.DictReader(file))
    rows = read_rows(table)
    assert [read.id for read in rows] == [line["id"] for line in table]
    assert all(read.shape.gpus == int(line["gpus"]) for read, line in zip(rows, table, strict=True))
    found = predict(batch_of(rows, shipped()), shipped())
    assert np.isfinite(found.ttft_ms).all()
    assert np.isfinite(found.tpot_ms).all()
    assert (found.tpot_ms > 0.1).all()
