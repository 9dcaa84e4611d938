"""What readers of a scaling study get: a table, JSON, one HTML page, a picture."""

import csv
import json
import re
import shutil
import subprocess
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import BROWSERS
from measured_data import measured
from planner_builders import model as known

from placement.calibration import fit as calibration
from placement.calibration.rows import read_rows
from placement.clusters.machines import cluster_of
from placement.clusters.terrain import regions
from placement.cost import constants
from placement.cost.prediction import Question
from placement.scaling import report_png
from placement.scaling.curve import WAYS
from placement.scaling.report import KNOWN_ERROR, as_json, as_text, finding, telling
from placement.scaling.report_html import page
from placement.scaling.scale import Scaling, ScalingError, scale
from placement.workload import Lengths, Workload

VOID = {"meta", "link", "br", "hr", "img", "input"}


@cache
def study(model: str = "meta-llama/Llama-3.1-70B-FP8", machine: str = "dgx-h100", count: int = 2) -> Scaling:
    lengths = Lengths(mean_tokens=1024)
    question = Question(
        model=known(model),
        workload=Workload(input_tokens=lengths, output_tokens=lengths),
        constants=constants.shipped(),
    )
    region = regions(cluster_of(machine, count))[0]
    return scale(question, region, max_gpus=region.gpus)


def renamed(name: str) -> Scaling:
    found = study()
    return replace(found, question=replace(found.question, model=replace(found.question.model, name=name)))


class Markup(HTMLParser):
    """Every element is closed in order, and attributes are collected."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: dict[str, str] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text[self.open[-1]] = self.text.get(self.open[-1], "") + data


def embedded(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    document: dict[str, Any] = json.loads(found[1])
    return document


def test_the_finding_names_where_more_gpus_are_worse_and_what_writes_most() -> None:
    assert re.fullmatch(
        r"meta-llama/Llama-3\.1-70B-FP8 on NVIDIA H100.*: tp16 is \d+% slower per token than tp8; "
        r"\w+ writes most per GPU, [\d,]+ tokens/s",
        finding(study()),
    )
    shown = telling(study())
    assert shown is not None
    assert shown.way == "tp_across"


def test_where_nothing_is_lost_or_fits_the_finding_says_that() -> None:
    assert "no way of growing makes tokens slower up to 8 GPUs" in finding(study("meta-llama/Llama-3.1-8B", count=1))
    too_big = study("deepseek-ai/DeepSeek-V3", "l40s-pcie-4", 1)
    assert finding(too_big).endswith("fits no shape of up to 4 GPUs")
    assert telling(too_big) is None
    assert "does not fit" in as_text(too_big)
    assert embedded(page(too_big))["telling_way"] is None


def test_the_table_marks_the_step_that_turns() -> None:
    text = as_text(study())
    [row] = [line for line in text.splitlines() if line.split()[:2] == ["16", "tp16"]]
    assert re.search(r"\d+\.\dx ", row)
    assert "  x TP 8 -> 16 crosses islands: all-reduces grow from" in text
    assert "The model's error" in text
    assert all(WAYS[curve.way] in text for curve in study().curves)


def test_the_error_that_reports_state_is_the_measured_one() -> None:
    with measured("serving_silicon_dev.csv").open(newline="", encoding="utf-8") as file:
        rows = read_rows(csv.DictReader(file))
    predicted = calibration.predict(calibration.batch_of(rows, constants.shipped()), constants.shipped())
    tpot = np.abs(predicted.tpot_ms / np.array([row.tpot_ms for row in rows]) - 1)
    ttft = np.abs(predicted.ttft_ms / np.array([row.ttft_ms for row in rows]) - 1)
    assert f"{len(rows):,} public points" in KNOWN_ERROR
    assert "within 10% for half and within a third for nine in ten" in KNOWN_ERROR
    assert np.median(tpot) < 0.10
    assert np.quantile(tpot, 0.9) < 1 / 3
    assert "time to first token within 40% for half" in KNOWN_ERROR
    assert np.median(ttft) < 0.40


def test_columns_of_a_table_are_aligned() -> None:
    block = as_text(study()).split(WAYS["tp_across"])[1].splitlines()[1:4]
    head, *rows = block
    end = head.index("per GPU") + len("per GPU")
    assert all(re.fullmatch(r"[\d,]+", row[:end].split()[-1]) for row in rows)
    assert all(row[end] == " " for row in rows)


def test_json_has_every_point_and_no_number_that_json_does_not_know() -> None:
    for scaling in (study(), study("deepseek-ai/DeepSeek-V3", "dgx-h200", 4)):
        document = json.loads(json.dumps(as_json(scaling), allow_nan=False))
        assert document["finding"] == finding(scaling)
        for curve, written in zip(scaling.curves, document["curves"], strict=True):
            assert [point["gpus"] for point in written["points"]] == [point.gpus for point in curve.points]
            assert [point["fits"] for point in written["points"]] == [point.fits for point in curve.points]
            assert all((point["decode_ms"] is None) != point["fits"] for point in written["points"])
            assert [turn["sentence"] for turn in written["turns"]] == [turn.sentence for turn in curve.turns]


def test_the_page_is_well_formed_and_holds_every_point() -> None:
    scaling = study("deepseek-ai/DeepSeek-V3", "dgx-h200", 4)
    text = page(scaling)
    markup = Markup(text)
    assert markup.open == []
    assert markup.text["title"] == finding(scaling) == markup.text["h1"]
    assert embedded(text) == json.loads(json.dumps(as_json(scaling)))
    assert not re.search(r"@[a-z_]+@", text)


def test_the_page_needs_no_network() -> None:
    text = page(study())
    fetching = {"src", "href", "srcset", "action", "data", "poster"}
    assert not [name for name, _ in Markup(text).attributes if name in fetching]
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|import\(", text)
    assert "default-src 'none'" in text


def test_a_model_name_cannot_break_out_of_the_page() -> None:
    name = "</script><script>alert(1)</script>@data@&"
    text = page(renamed(name))
    assert "<script>alert" not in text
    assert embedded(text)["model"] == name
    assert Markup(text).open == []


def test_a_picture_without_matplotlib_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(report_png, "import_module", absent)
    with pytest.raises(ScalingError, match=r"\.venv/bin/uv pip install .* matplotlib$"):
        report_png.draw(study(), tmp_path / "study.png")


@pytest.mark.parametrize("machine", ["dgx-h100", "l40s-pcie-4"])
def test_the_picture_is_a_png(tmp_path: Path, machine: str) -> None:
    pytest.importorskip("matplotlib", reason="optional extra: plots")
    target = tmp_path / "study.png"
    report_png.draw(study(machine=machine, count=1), target)
    assert target.read_bytes().startswith(b"\x89PNG")
    assert target.stat().st_size > 20_000


@pytest.mark.slow
def test_a_browser_draws_every_point(tmp_path: Path) -> None:
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium is installed")
    scaling = study("deepseek-ai/DeepSeek-V3", "dgx-h200", 4)
    target = tmp_path / "study.html"
    target.write_text(page(scaling), encoding="utf-8")
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom")
    done = subprocess.run([browser, *options, target.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    drawn = done.stdout.split('id="data"')[0]  # what follows is the script itself
    fitting = sum(len(curve.fitting) for curve in scaling.curves)
    assert len(re.findall(r'class="point"', drawn)) == 4 * fitting
    assert len(re.findall(r'<input type="checkbox"[^>]*data-way', drawn)) == len(scaling.curves)
    shown = telling(scaling)
    assert shown is not None
    assert len(re.findall(r'class="bar"', drawn)) == 2 * len(shown.fitting)
    assert "NaN" not in drawn.split('id="ways"')[1].split("<details")[0]
