"""The result of a run, as a document and as a page."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from record_builders import SLO, columns, document, record, refused, served, written

from loadtests.records import RecordsError, RunEvent
from loadtests.report import KEYS, ResultError, read_result, requests_in, write_report
from loadtests.report_html import asked, headline, page, verdict

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
EVENTS = (
    RunEvent(at_s=0.0, kind="gpus", what="tp2=8", outcome="done"),
    RunEvent(at_s=12.0, kind="repartition", what="tiny-llama to tp4", outcome="done", detail="took 9 s"),
    RunEvent(at_s=21.0, kind="gpus", what="tp2=4 tp4=4", outcome="done"),
    RunEvent(at_s=40.5, kind="kill", what="<b>worker</b> & co", outcome="failed", detail="no such process"),
)


def shown(text: str) -> dict[str, Any]:
    """The document inside a page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_a_run_becomes_a_document_and_a_page(tmp_path: Path) -> None:
    records = [*served(1, length_s=60), refused(30.0, id=10**6)]
    written_page = write_report(written(tmp_path, records, EVENTS), tmp_path / "out" / "run")
    result = read_result(written_page.with_name("result.json"))
    assert written_page.name == "report.html"
    assert result["outcomes"] == {"ok": 480, "refused": 1}
    assert result["all"]["arrivals"] == 481
    assert [event["kind"] for event in result["events"]] == [event.kind for event in EVENTS]
    assert shown(written_page.read_text(encoding="utf-8")) == {
        key: value for key, value in result.items() if key != "requests"
    }


def test_limits_are_told_in_units_that_are_read_at_a_glance() -> None:
    found = document([record(class_name="chat")])
    found["slo"]["limits"] = {"ttft_s": 1.5, "tpot_s": 0.05}
    assert asked(found).startswith("Good: TTFT ≤ 1.5 s, TPOT ≤ 50 ms")


def test_the_arrivals_in_a_document_are_those_of_the_records() -> None:
    records = [*served(1, length_s=60), refused(30.0, id=10**6)]
    before, after = columns(*records), requests_in(document(records))
    assert (after.outcomes, after.class_names) == (before.outcomes, before.class_names)
    assert after.good.tolist() == before.good.tolist()
    for name in ("scheduled_s", "ttft_s", "tpot_s", "longest_stall_s", "output_tokens"):
        np.testing.assert_allclose(getattr(after, name), getattr(before, name), atol=1e-6)


def test_the_keys_of_the_document_stay() -> None:
    """Programs read these; a change of meaning needs a new version."""
    result = document([record(class_name="chat", replica="tiny-tp2-0")])
    assert (result["format"], result["version"]) == ("archipelago load result", 1)
    assert set(result) == set(KEYS)
    assert set(KEYS) == {
        *("format", "version", "run", "loop", "slo", "schedule_sha", "span_s", "valid", "invalid", "slo_met", "all"),
        *("outcomes", "lag_s", "by_class", "by_input_quartile", "by_shape", "by_replica", "by_minute", "over_time"),
        *("events", "requests"),
    }
    distribution = {"count", "mean", "p50", "p90", "p95", "p99", "max"}
    assert set(result["all"]["ttft_s"]) == set(result["lag_s"]) == distribution
    assert set(result["by_minute"][0]) == {"from_s", "arrivals", "good", "attainment"}
    assert set(result["by_class"][0]) == set(result["by_shape"][0]) == set(result["all"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not the result of a load test"),
        ('{"format": "other"}', "is not the result of a load test"),
        ('{"format": "archipelago load result", "version": 99}', "has version 99; this program reads 1"),
        ('{"format": "archipelago load result", "version": 1}', "lacks run, loop, .*, requests; write it anew"),
    ],
)
def test_another_file_is_not_taken_for_a_result(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ResultError, match=message):
        read_result(path)
    with pytest.raises(ResultError, match="cannot read"):
        read_result(tmp_path / "absent.json")


def test_nothing_is_written_for_a_file_without_records(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text("hello\n", encoding="utf-8")
    with pytest.raises(RecordsError, match="line 1"):
        write_report(tmp_path / "records.jsonl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("records", "header", "expected_verdict", "expected_headline"),
    [
        ([record()], {}, "SLO met", "100 % of 1 requests were good; 99 % were asked for"),
        ([record(), refused(1.0)], {}, "SLO missed", "50.0 % of 2 requests were good; 99 % were asked for"),
        ([record()], {"slo": {}}, "no SLO", "100 % of 1 requests were answered in full"),
        ([record()], {"invalid": ["worker 1 died"]}, "not valid", "100 % of 1 requests were good"),
        ([], {}, "not valid", "No request was scheduled"),
    ],
)
def test_the_verdict(records: list[Any], header: dict[str, Any], expected_verdict: str, expected_headline: str) -> None:
    result = document(records, **header)
    assert verdict(result) == expected_verdict
    assert headline(result).startswith(expected_headline)
    assert expected_verdict in page(result)


def test_almost_all_is_not_all() -> None:
    result = document([record(index / 1000, id=index) for index in range(20_000)] + [refused(5.0, id=10**6)])
    assert headline(result).startswith("> 99.99 % of 20,001 requests")


def test_the_page_needs_no_network() -> None:
    text = page(document(served(1, length_s=60), EVENTS))
    assert not re.search(r"""(?:src|href)\s*=|url\(|@import|fetch\(|https?://(?!127\.0\.0\.1)""", text)
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text


def test_what_stands_in_records_is_text_and_not_markup() -> None:
    evil = "</script><script>alert(1)</script>@script@"
    event = RunEvent(at_s=1.0, kind=evil, what=evil, outcome="done")
    text = page(document([record(class_name=evil, replica=evil)], [event], name=evil, invalid=[evil], url=evil))
    assert text.count("<script") == 2
    assert "<script>alert" not in text
    assert shown(text)["events"][0]["what"] == evil


def test_a_closed_loop_says_that_it_hides_misses() -> None:
    text = page(document([record(sent_s=0.0)], loop="closed"))
    assert "Closed loop: time counts from sending" in text
    assert "Open loop" not in text


def test_the_page_names_every_reason_against_the_run() -> None:
    text = page(
        document([record(sent_s=0.19), refused(1.0, sent_s=None)], invalid=["worker 1 died"], max_lag_ms=1000.0)
    )
    for reason in ("worker 1 died", "the client lagged: p99 190.0 ms", "1 of 2 requests were never sent"):
        assert f"<li>{reason}" in text


def _drawn(tmp_path: Path, text: str) -> str:
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium is installed")
    target = tmp_path / "report.html"
    target.write_text(text, encoding="utf-8")
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom")
    done = subprocess.run([browser, *options, target.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    body = done.stdout.split("<body>")[1]
    return body.split('id="data"')[0]  # what follows is the script itself


@pytest.mark.slow
def test_a_browser_draws_every_chart_with_every_event(tmp_path: Path) -> None:
    drawn = _drawn(tmp_path, page(document(served(1, length_s=60), EVENTS)))
    titles = re.findall(r"<h3>([^<]+)</h3></?|aria-label=\"([^\"]+) over time\"", drawn)
    charts = [chart for _, chart in titles if chart]
    assert charts == [
        "Requests per second",
        "SLO attainment by minute",
        "Time to first token",
        "Time per output token",
        "Tokens per second",
        "GPUs by shape",
        "Longest stall of a stream",
        "Requests in flight",
        "Client lag",
    ]
    assert len(re.findall(r'data-event="0"', drawn)) == len(re.findall(r'data-event="1"', drawn)) == len(charts)
    assert len(re.findall(r'<rect data-shape="tp', drawn)) == 4
    assert "<b>repartition</b>" in drawn
    assert "&lt;b&gt;worker&lt;/b&gt; &amp; co" in drawn
    assert "NaN" not in drawn
    assert "undefined" not in drawn


@pytest.mark.slow
@pytest.mark.parametrize(
    "records", [[], [refused(0.0), refused(70.0, id=1)], [record()]], ids=["none", "refused", "one"]
)
@pytest.mark.parametrize("slo", [{}, SLO], ids=["no slo", "slo"])
def test_a_browser_draws_what_little_there_is(tmp_path: Path, records: list[Any], slo: dict[str, Any]) -> None:
    drawn = _drawn(tmp_path, page(document(records, slo=slo)))
    assert drawn.count("<svg") == 8
    assert "NaN" not in drawn
    assert "Infinity" not in drawn
    assert "undefined" not in drawn
