"""The fleet page in a real browser, by clicking, over a real control API."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from chromium import Chromium
from control_builders import READ, WRITE, MemoryFleet
from page_builders import (
    CHAT,
    CODER,
    EVIL,
    WON,
    RunningPage,
    entry,
    history,
    large,
    nothing,
    posted,
    replica,
    running_page,
    small,
    view,
)

pytestmark = pytest.mark.slow
TIMES = "\u00d7"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("browser")) as browser:
        browser.size(1400)
        yield browser


@pytest.fixture
def page() -> Iterator[RunningPage]:
    with running_page(small()) as running:
        yield running


def enter(tab: Chromium, page: RunningPage, token: str = WRITE) -> None:
    """Open the page as one who has just come."""
    tab.open("about:blank")
    tab.complaints.clear()
    tab.open(f"{page.url}/fleet")
    tab.click("#token")
    tab.write(token)
    tab.press("Enter")


def cells(tab: Chromium, state: str) -> list[str]:
    found: list[str] = tab.value(
        f"[...document.querySelectorAll('#islands .gpu.{state}')].map(cell => cell.getAttribute('aria-label'))"
    )
    return found


def test_a_token_opens_the_fleet_and_who_sits_where(tab: Chromium, page: RunningPage) -> None:
    enter(tab, page, READ)
    tab.reads("#hardware", "4 islands · 4 nodes · 32 GPUs · 2 free")
    assert cells(tab, "free") == ["island-2, node-2, GPU 6: free", "island-2, node-2, GPU 7: free"]
    assert len(cells(tab, "leaving")) == 8
    assert len(cells(tab, "lost")) == 2
    assert "coder-32b-tp2-2 of acme/coder-32b, tp2, rank 0, failed: CUDA error" in cells(tab, "lost")[0]
    assert len(cells(tab, "starting")) == 8
    assert len(cells(tab, "draining")) == 4
    colours = tab.value(
        "[...document.querySelectorAll('#islands .serving')].map(cell => cell.className.match(/p\\d+/)[0])"
    )
    assert len(colours) == 8
    assert len(set(colours)) == 2, "each pool has a colour of its own"
    assert not tab.complaints


def test_the_token_is_nowhere_but_in_this_tab(tab: Chromium, page: RunningPage) -> None:
    enter(tab, page)
    tab.reads("#pulse", "live")
    assert WRITE not in tab.value("location.href + document.cookie + JSON.stringify(localStorage)")
    assert WRITE not in tab.value("document.documentElement.outerHTML")
    assert tab.value("performance.getEntriesByType('resource').every(one => !one.name.includes('token'))")
    assert WRITE in tab.value("JSON.stringify(sessionStorage)")
    tab.open(f"{page.url}/fleet")
    tab.reads("#pulse", "live")  # a reload needs no token again
    tab.click("#leave")
    tab.wait("!document.getElementById('door').hidden")
    assert tab.value("sessionStorage.length") == 0
    assert WRITE not in tab.value("document.getElementById('token').value")


@pytest.mark.parametrize(
    ("token", "said"),
    [("wrong", "Authorization: the token is not known; give one that is."), ("se cret", "A token has only letters")],
)
def test_a_wrong_token_is_said_to_be_one(tab: Chromium, page: RunningPage, token: str, said: str) -> None:
    enter(tab, page, token)
    tab.reads("#refused", said)
    assert tab.value("document.getElementById('fleet').hidden")
    assert tab.value("document.activeElement.id") == "token"
    tab.write(READ)
    tab.press("Enter")
    if token == "wrong":  # of the other one there is still what was written
        tab.reads("#hardware", "32 GPUs")


def test_load_is_shown_beside_the_slo(tab: Chromium, page: RunningPage) -> None:
    page.post(CHAT, posted())
    page.post(CODER, posted(slo={"ttft_s": 0.25, "tpot_s": None, "percentile": 0.99}))
    enter(tab, page)
    tab.reads("#models .model:nth-child(1) .tile:nth-child(1)", "of 1 s")
    tab.reads("#models .model:nth-child(1) .tile:nth-child(2)", "of 50 ms")
    tab.wait("document.querySelectorAll('#models .tile.bad').length === 1")
    over = tab.text("#models .tile.bad")
    assert "TTFT p99" in over
    assert "over 250 ms" in over
    row = tab.text("#models .model:nth-child(1) .pools tbody tr").split()
    assert row[:8] == ["tp4", "1", "draining", "1", "0", "6", "1", "42"]


def test_a_repartition_is_followed_step_by_step(tab: Chromium, page: RunningPage) -> None:
    enter(tab, page)
    tab.reads(".change", f"Repartition to 2 {TIMES} tp8")
    tab.reads(".change ol", "start chat-70b-tp8-0 on island-1")
    assert tab.value("document.querySelectorAll('.steps .done, .steps .now').length") == 2
    assert tab.text(".change .doing").split("\n")[-1] == "chat-70b-tp8-0 is starting"
    page.fleet.log.add(CHAT, "step", "stop chat-70b-tp4-1: it is drained")
    now = page.fleet.views[CHAT].repartition
    assert now is not None
    moved = now.model_copy(update={"step": 3, "doing": "chat-70b-tp4-1 is stopping"})
    page.fleet.views[CHAT] = page.fleet.views[CHAT].model_copy(update={"repartition": moved})
    tab.reads(".change ol", "stop chat-70b-tp4-1: it is drained")
    tab.reads(".change .doing", "chat-70b-tp4-1 is stopping")
    page.fleet.views[CHAT] = page.fleet.views[CHAT].model_copy(update={"repartition": None, "phase": "steady"})
    tab.wait("!document.querySelector('.change')")


def test_a_model_that_is_removed_is_seen_to_go_and_another_stays(tab: Chromium, page: RunningPage) -> None:
    enter(tab, page)
    tab.wait("document.querySelectorAll('#islands .gpu.serving').length === 8")
    page.fleet.views[CHAT] = page.fleet.views[CHAT].model_copy(update={"desired_pools": {}})
    tab.reads(".change h4", "Removal of the model")
    del page.fleet.views[CHAT]
    tab.wait("document.querySelectorAll('#models .model').length === 1")
    assert CODER in tab.text("#models")
    assert CHAT not in tab.text("#models")
    assert [CODER in cell for cell in cells(tab, "serving")] == [True] * 4


def test_events_come_as_they_happen(tab: Chromium, page: RunningPage) -> None:
    enter(tab, page)
    tab.reads("#events li:first-child", "start chat-70b-tp8-0 on island-1")
    page.fleet.log.add(CHAT, "loss", "node-1 is gone")
    tab.reads("#events li:first-child", "node-1 is gone")
    assert tab.value("document.querySelectorAll('#events li').length") == 6


def test_however_fast_things_happen_the_fleet_is_looked_at(tab: Chromium, page: RunningPage) -> None:
    enter(tab, page)
    tab.reads(".model", "repartitioning")
    page.fleet.views[CHAT] = page.fleet.views[CHAT].model_copy(update={"phase": "rolling-back"})
    for number in range(100):
        page.fleet.log.add(CHAT, "step", f"step {number}")
        if "rolling back" in tab.value("new Promise(done => setTimeout(() => done(document.body.innerText), 50))"):
            return
    raise AssertionError("the page was too busy with events")


def test_a_proposal_is_approved_with_the_options_that_lost_in_sight(tab: Chromium, page: RunningPage) -> None:
    page.post(CHAT, posted(*history()))
    enter(tab, page)
    tab.reads(".decision[open]", "33 % more GPU-seconds")
    assert tab.value("document.querySelectorAll('.decision[open] .lost:not(.reason)').length") == 2
    assert tab.value("document.querySelectorAll('.decision[open]').length") == 1, "only what waits is open"
    tab.click(".decision .buttons .main")
    tab.reads("#asking", f"{CHAT}: 2 {TIMES} tp4 \u2192 2 {TIMES} tp8.")
    tab.write("the demand is real")
    tab.press("Enter")
    tab.reads(".decision", "Approved by alice. The autoscaler takes it with its next look.")
    (approval,) = page.http.get("/v1/approvals").json()["approvals"]
    assert (approval["number"], approval["is_approved"], approval["why"]) == (12, True, "the demand is real")
    page.post(CHAT, posted(entry(12, state="acted", by="alice", why="Version 8 of the fleet.")))
    tab.reads(".decision", "acted by alice")
    assert not tab.complaints


def test_what_waits_for_a_person_is_said_above_a_thousand_gpus(tab: Chromium) -> None:
    with running_page(large()) as page:
        page.post(CHAT, posted(*history()))
        enter(tab, page)
        tab.reads("#waiting", f"Decision 12 of {CHAT} waits for an answer: 2 {TIMES} tp4 \u2192 2 {TIMES} tp8.")
        assert tab.value("document.title") == "(1) Archipelago"
        tab.click(".decision[open] summary")  # it was folded away
        tab.click("#waiting button")
        tab.wait("document.activeElement.innerText === 'Approve'")
        box = tab.value("(box => [box.top, box.bottom, innerHeight])(document.activeElement.getBoundingClientRect())")
        assert 0 < box[0] < box[1] < box[2]
        tab.press("Enter")
        tab.click("#asking-yes")
        tab.reads(".decision", "Approved by alice")
        tab.wait("document.getElementById('waiting').hidden && document.title === 'Archipelago'")
        assert not tab.complaints


def test_a_cluster_without_anything_says_so(tab: Chromium) -> None:
    with running_page(nothing()) as page:
        enter(tab, page)
        tab.reads("#hardware", "0 GPUs")
        said = "place => getComputedStyle(document.getElementById(place), '::before').content"
        assert [tab.value(f"({said})({place!r})") for place in ("models", "islands", "decisions", "events")] == [
            '"No model is served."',
            '"No GPU has joined the cluster."',
            '"No autoscaler was heard of since this control API has started."',
            '"Nothing has happened yet."',
        ]
        page.fleet.views = small().views
        tab.reads("#legend", CHAT)
        assert not tab.value("document.getElementById('islands').classList.contains('empty')")
        assert not tab.complaints


def test_a_proposal_is_rejected_or_let_be(tab: Chromium, page: RunningPage) -> None:
    page.post(CHAT, posted())
    enter(tab, page)
    tab.click(".decision .buttons button:last-child")
    tab.click("#asking-no")
    tab.wait("!document.getElementById('asking').open")
    assert not page.http.get("/v1/approvals").json()["approvals"]
    tab.click(".decision .buttons button:last-child")
    tab.click("#asking-yes")
    tab.reads(".decision", "Rejected by alice")
    assert page.fleet.entries[-1].what == "reject decision 12"


def test_changes_are_frozen_and_allowed_again(tab: Chromium, page: RunningPage) -> None:
    enter(tab, page)
    tab.reads("#pulse", "live")
    assert tab.value("document.getElementById('freeze').disabled"), "there is no autoscaler to freeze"
    page.post(CHAT, posted())
    tab.click("#freeze")
    tab.write("a launch")
    tab.click("#asking-yes")
    tab.reads("#frozen", "alice asks to freeze; the autoscaler takes it with its next look.")
    asked = page.http.get("/v1/freeze").json()["freeze"]
    assert (asked["is_frozen"], asked["why"]) == (True, "a launch")
    page.http.delete(f"/v1/freeze/{asked['number']}")
    page.post(CHAT, posted(frozen={"since_s": 1_790_000_000.0, "by": "alice", "why": "a launch"}))
    tab.reads("#frozen", "Frozen by alice")
    tab.reads("#freeze", "Allow changes")
    tab.click("#freeze")
    tab.click("#asking-yes")
    tab.reads("#frozen", "alice asks to allow changes")


def test_who_may_only_read_is_told_so(tab: Chromium, page: RunningPage) -> None:
    page.post(CHAT, posted())
    enter(tab, page, READ)
    tab.click(".decision .buttons .main")
    tab.click("#asking-yes")
    tab.reads("#asking-wrong", "the token 'dashboard' may only read; give one that may")
    tab.press("Escape")
    assert not page.http.get("/v1/approvals").json()["approvals"]


def test_nothing_of_a_name_runs(tab: Chromium) -> None:
    seats = iter([(0, 0), (0, 1)])
    mean = replica(EVIL, "tp2", 0, seats).model_copy(update={"name": EVIL, "cause": EVIL})
    fleet = small()
    fleet.nodes = (fleet.nodes[0].model_copy(update={"name": EVIL, "island": EVIL}),)
    fleet.views = {EVIL: view(EVIL, [mean], shortfall=EVIL)}
    fleet.log.add(EVIL, "failure", EVIL, replica=EVIL)
    with running_page(fleet) as page:
        said = entry(1, reason=EVIL, why=EVIL, by=EVIL, cause="<b>x</b>", options=[WON | {"why": EVIL}])
        page.post("<img src=x onerror=window.hurt=1>", posted(said))
        enter(tab, page)
        for place in (
            "#models h3",
            "#islands h3",
            "#decisions h3",
            "#events",
            ".decision .why",
            ".model .note",
            "#legend",
        ):
            tab.reads(place, EVIL)
        assert tab.value("window.hurt === undefined")
        assert tab.value("document.querySelectorAll('main img, main b b, .cause b').length") == 0
        tab.click(".decision .buttons .main")
        tab.reads("#asking-text", EVIL)
        tab.click("#asking-yes")
        tab.reads(".decision", "Approved by alice")
        assert not tab.complaints


def test_a_control_api_that_is_away_is_said_and_comes_back(tab: Chromium, page: RunningPage) -> None:
    enter(tab, page)
    tab.reads("#pulse", "live")
    page.fleet.is_away = True
    tab.reads("#trouble", "The controller is starting again. What is shown is of")
    assert len(cells(tab, "free")) == 2, "what was seen last stays"
    page.fleet.is_away = False
    tab.wait("document.getElementById('trouble').hidden")


def test_a_token_that_is_taken_away_closes_the_page(tab: Chromium, page: RunningPage) -> None:
    enter(tab, page)
    tab.reads("#pulse", "live")
    tab.value(f"sessionStorage.setItem('archipelago-token', {json.dumps('revoked')})")
    tab.reads("#refused", "the token is not known")


def test_the_keyboard_is_enough(tab: Chromium, page: RunningPage) -> None:
    page.post(CHAT, posted())
    enter(tab, page)
    tab.reads(".decision", "Approve")
    assert tab.value("document.querySelectorAll('#islands [tabindex=\"0\"]').length") == 1
    tab.value("document.querySelector('#islands [tabindex=\"0\"]').focus()")
    for key, place in (("ArrowRight", "node-0, GPU 1"), ("ArrowDown", None), ("ArrowLeft", None), ("ArrowUp", None)):
        before = tab.text("#readout")
        tab.press(key)
        assert tab.text("#readout") != before or place is None
        assert place is None or place in tab.text("#readout")
    tab.press("Tab")
    assert tab.value("document.activeElement.closest('#decisions') !== null")


def test_a_thousand_gpus_are_drawn_at_once(tab: Chromium) -> None:
    with running_page(large()) as page:
        enter(tab, page)
        tab.wait("document.querySelectorAll('#islands .gpu').length === 1024")
        tab.reads("#hardware", "128 islands · 128 nodes · 1,024 GPUs")
        kept = "window.kept ??= [...document.querySelectorAll('#islands .gpu')]"
        tab.value(f"{kept}; 1")
        drawn: list[float] = []
        for phase in ("draining", "serving", "failed"):
            changed = [one.model_copy(update={"phase": phase}) for one in page.fleet.views[CHAT].replicas]
            page.fleet.views[CHAT] = view(CHAT, changed)
            state = "lost" if phase == "failed" else phase
            tab.wait(f"document.querySelectorAll('#islands .gpu.{state}').length >= 704")
            drawn.append(tab.value("performance.getEntriesByName('update')[0].duration"))
        assert max(drawn) < 200, drawn
        assert tab.value(f"{kept}; window.kept.every(cell => cell.isConnected)"), "cells are kept, so focus is too"
        assert not tab.complaints


@pytest.mark.parametrize("width", [360, 800, 1400])
@pytest.mark.parametrize("fleet", [small, large])
def test_nothing_runs_off_the_side(tab: Chromium, width: int, fleet: Any) -> None:
    shown: MemoryFleet = fleet()
    with running_page(shown) as page:
        page.post(CHAT, posted(*history()))
        enter(tab, page)
        tab.reads(".decision", "Approve")
        tab.size(width)
        wide = tab.value("document.documentElement.scrollWidth")
        tab.size(1400)
    assert wide <= width
