"""What readers of a what-if get: a verdict in two sentences, one HTML page, every decision."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import Chromium
from whatif_builders import DECISIONS, TP4, decided, past, result, study

from autoscaling.whatif.decisions_html import decisions_html
from autoscaling.whatif.past import Ran
from autoscaling.whatif.report_html import charts, page
from autoscaling.whatif.verdict import percent, verdict

VOID = {"meta", "link", "br", "hr", "img", "input"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
OURS = result("archipelago", gpu_hours=9.0)


class Markup(HTMLParser):
    """Every element is closed in order; attributes are collected."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def embedded(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    document: dict[str, Any] = json.loads(found[1])
    return document


@pytest.mark.parametrize(
    ("ours", "ran", "said"),
    [
        ((9.0, 0.995), 0.992, "9.0 at 99.50 %: 25 % fewer."),
        ((9.0, 0.995), 0.985, "9.0 at 99.50 %: 25 % fewer, and the 99 % of the SLO are reached, which they were not."),
        ((15.0, 0.98), 0.992, "15.0 at 98.0 %: 25 % more, but the 99 % of the SLO are missed, which they were not."),
        ((12.01, 0.98), 0.97, "12.0 at 98.0 %: as many, and the 99 % of the SLO are missed."),
    ],
)
def test_the_verdict_holds_ours_against_what_ran(ours: tuple[float, float], ran: float, said: str) -> None:
    simulated = result("archipelago", gpu_hours=ours[0], attainment=ours[1])
    first, second = verdict(study(simulated, attainment=ran))
    ran_at = f"In these 60 minutes you ran 12.0 GPU-hours at {percent(ran)} attainment"
    assert first == f"{ran_at}; Archipelago would have taken {said}"
    assert second == "Nothing else was replayed."


def test_the_second_sentence_has_the_simulated_fleet_and_the_best_of_the_others() -> None:
    others = [
        result("as-run", gpu_hours=12.1, attainment=0.984),
        result("ray-serve", gpu_hours=11.0, attainment=0.991),
        result("dynamo", gpu_hours=8.0, attainment=0.9),
        result("no-repartition", gpu_hours=7.0, attainment=0.999),
    ]
    assert verdict(study(OURS, *others))[1] == (
        "Your own fleet, simulated, comes to 12.1 GPU-hours at 98.4 % attainment; Ray Serve (tuned in hindsight), the "
        "best of the other ways, comes to 11.0 GPU-hours at 99.10 % attainment."
    )


def test_without_a_known_fleet_ours_is_held_against_the_best_of_the_others() -> None:
    others = [result("ray-serve", gpu_hours=11.0), result("best-static", gpu_hours=12.0)]
    first, second = verdict(study(OURS, *others, has_past=False))
    assert "Ray Serve would have taken 11.0 GPU-hours at 99.50 % attainment; Archipelago" in first
    assert second.startswith("Best fixed fleet")
    first, _ = verdict(study(OURS, result("static", gpu_hours=20.0), *others, has_past=False))
    assert "3 x tp4 all the time would have taken 20.0 GPU-hours" in first


def test_one_way_alone_is_a_verdict_too() -> None:
    only = "In these 60 minutes Archipelago would have taken 9.0 GPU-hours at 99.50 % attainment."
    assert verdict(study(OURS, has_past=False))[0] == only
    assert verdict(study())[0] == "In these 60 minutes you ran 12.0 GPU-hours at 98.5 % attainment."


def test_an_attainment_is_never_rounded_up() -> None:
    assert [percent(share) for share in (1.0, 0.99999, 0.98999, None)] == ["100 %", "99.99 %", "98.9 %", "unknown"]


def test_gpu_hours_of_what_ran_go_on_over_gaps() -> None:
    row = np.array([1.0, np.nan, np.nan, 3.0, 3.0])
    ran = Ran(held={TP4: row}, desired={TP4: row})
    assert ran.gpus(5)[TP4].tolist() == [4, 4, 4, 12, 12]
    assert [at_s for at_s, _ in ran.targets(60.0)] == [0, 180]


def test_the_page_needs_nothing_from_elsewhere() -> None:
    text = page(study(OURS, result("ray-serve")))
    markup = Markup(text)
    assert markup.open == []
    assert not [name for name, _ in markup.attributes if name in ("src", "href", "srcset", "action")]
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", text.replace("//", "//", 1))
    assert "default-src 'none'" in text


def test_the_page_says_every_decision_with_its_reason_and_the_losers() -> None:
    text = unescape(page(study(OURS)))
    for one in DECISIONS:
        assert one.reason in text
    assert "costs twice as much" in text
    assert "4.00" in text, "GPU-hours of the option that lost"
    assert "not possible: no room for 9" in text
    assert len(re.findall(r'<details class="decision ', text)) == 4, "the two first holds are one"
    assert "cheapest 4x" in text or "not for long enough 8x, cheapest 4x" in text
    assert "Asked 17 times, it changed something 1 times" in text


def test_nothing_of_a_name_is_markup() -> None:
    evil = "</script><script>alert(1)</script>@rows@"
    mean = result("archipelago", decisions=(decided(15.0, kind="replicas", reason=evil, target={"tp2": 1}),))
    text = page(replace(study(mean), model=evil, notes=(evil,)))
    assert text.count("<script") == 2
    assert Markup(text).open == []
    assert embedded(text)["changes"][0]["reason"] == evil


def test_a_reconstruction_is_said_to_be_one_with_its_error() -> None:
    text = page(study(OURS))
    assert "the requests replayed are a reconstruction" in text
    assert re.search(r"<td>output tokens</td><td>[+\u2212]0\.\d\d %</td><td>[+\u2212]0\.\d\d %</td>", text)
    assert "The trace was given" in page(study(OURS, has_past=False))


@pytest.mark.parametrize(("days", "bin_s"), [(0.25, 60), (1, 300), (14, 2100)])
def test_charts_have_as_many_points_as_there_is_room_for(days: float, bin_s: int) -> None:
    minutes = round(days * 1440)
    drawn = charts(replace(study(), past=past(np.arange(minutes) / minutes)))
    assert drawn["bin_s"] == bin_s
    assert len(drawn["demand"]["requests"]) == drawn["bins"] <= 600
    assert np.mean(drawn["demand"]["requests"]) == pytest.approx(0.5, rel=0.01)


def test_an_hour_has_no_sixtieth_minute() -> None:
    held = decisions_html((decided(0.0, ticks=1),), tick_s=7199.0, clock=str)
    assert '<span class="why">2 h 00 min: ' in held


def test_json_has_every_figure() -> None:
    document = json.loads(json.dumps(study(OURS, result("ray-serve")).as_json(), allow_nan=False))
    assert [way["name"] for way in document["ways"]] == ["measured", "archipelago", "ray-serve"]
    assert document["ways"][0]["gpu_hours"] == pytest.approx(12.0)
    assert [one["reason"] for one in document["results"][0]["decisions"]] == [one.reason for one in DECISIONS]
    assert document["reconstruction"]["hours"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_stands_beside_the_page(tmp_path: Path, width: int) -> None:
    target = tmp_path / "report.html"
    target.write_text(page(study(OURS, result("static"), result("hpa-queue"))), encoding="utf-8")
    with Chromium(tmp_path) as tab:
        tab.size(width)
        tab.open(target.as_uri())
        assert tab.value("document.documentElement.scrollWidth") == width
        beyond = "each => each.getBoundingClientRect().right > innerWidth"
        assert tab.value(f"[...document.querySelectorAll('header span')].filter({beyond}).length") == 0


@pytest.mark.slow
@pytest.mark.parametrize("has_past", [True, False])
def test_a_browser_draws_every_way(tmp_path: Path, has_past: bool) -> None:
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium is installed")
    shown = study(OURS, result("ray-serve", attainment=1.0), has_past=has_past)
    target = tmp_path / "report.html"
    target.write_text(page(shown), encoding="utf-8")
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom")
    done = subprocess.run([browser, *options, target.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    drawn = done.stdout.split('id="data"')[0].split("<body>")[1]
    assert len(re.findall(r"<svg[^>]*data-fleet", drawn)) == len(shown.ways) == 2 + has_past
    assert len(re.findall(r"<svg[^>]*data-demand", drawn)) == 3
    assert len(re.findall(r'<g data-way="\d" class="dot"', drawn)) == len(shown.ways)
    assert len(re.findall(r'class="change repartition"', drawn)) == 1
    assert "NaN" not in drawn
    assert "undefined" not in drawn
