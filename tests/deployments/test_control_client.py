from collections.abc import Callable

import httpx
import pytest
from control_builders import (
    FIRST_NUMBER,
    MODEL,
    READ,
    UNDER_WAY,
    URL,
    WRITE,
    MemoryFleet,
    control_client,
    fleet_view,
    target,
)

from deployments.control.client import ControlClient, ControlError
from deployments.control.progress import PAUSE_S, TRIES, Outcome, follow
from deployments.control.wire import EventPage, PoolsTarget


def answering(respond: Callable[[httpx.Request], httpx.Response]) -> ControlClient:
    return ControlClient(URL, WRITE, timeout_s=3, transport=httpx.MockTransport(respond))


def test_every_call_reaches_the_api() -> None:
    fleet = MemoryFleet()
    with control_client(fleet) as client:
        assert client.overview().cluster.free_gpus == 4
        assert client.fleet(MODEL) == fleet_view()
        assert client.set_pools(MODEL, target({"tp4": 1})).version == 4
        page = client.events(FIRST_NUMBER - 1, model=MODEL, wait_s=1.5)
        assert [event.kind for event in page.events] == ["target"]
        assert [entry.who for entry in client.audit(5)] == ["alice"]


@pytest.mark.parametrize("model", ["a/../b", "a?b#c", "a%2Fb", "gr\u00f6\u00dfe"])
def test_a_name_is_never_read_as_a_path(model: str) -> None:
    with control_client(MemoryFleet(fleet_view(model))) as client:
        assert client.fleet(model).model == model


def test_a_refusal_is_the_sentence_of_the_server() -> None:
    with control_client(MemoryFleet()) as client, pytest.raises(ControlError) as refused:
        client.set_pools(MODEL, target({"tp4": 1}, if_version=1))
    assert str(refused.value).startswith("if_version: 1 is not the version of acme/tiny any more; it is 3")
    assert refused.value.problem is not None
    assert refused.value.problem.current == fleet_view()
    assert not refused.value.may_pass


def test_a_server_that_is_away_is_named() -> None:
    def gone(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("Connection refused")

    with answering(gone) as client, pytest.raises(ControlError, match=r"control\.test cannot be reached") as error:
        client.overview()
    assert error.value.may_pass


def test_a_call_has_the_time_that_it_asks_to_wait_and_no_more() -> None:
    timeouts: list[float] = []

    def slow(request: httpx.Request) -> httpx.Response:
        timeouts.append(request.extensions["timeout"]["read"])
        raise httpx.ReadTimeout("slow")

    with answering(slow) as client:
        with pytest.raises(ControlError, match=r"did not answer within 3 s"):
            client.overview()
        with pytest.raises(ControlError, match=r"did not answer within 13 s"):
            client.events(wait_s=10)
    assert timeouts == [3, 13]


@pytest.mark.parametrize("body", ["<html>", '{"detail": "Not Found"}', ""])
@pytest.mark.parametrize("status", [200, 302, 404])
def test_another_server_is_not_taken_for_the_control_api(status: int, body: str) -> None:
    with (
        answering(lambda request: httpx.Response(status, text=body)) as client,
        pytest.raises(ControlError, match=f"answered {status}, but not as the control API"),
    ):
        client.overview()


@pytest.mark.parametrize("token", ["", "se cret", "secret\n", "secr\u00e9t"])
def test_a_token_that_cannot_be_sent_is_refused_unseen(token: str) -> None:
    with pytest.raises(ControlError, match=r"^token: ") as error:
        ControlClient(URL, token)
    assert not token or token not in str(error.value)


def test_no_message_has_the_token() -> None:
    def gone(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("Connection refused", request=request)

    with answering(gone) as client:
        with pytest.raises(ControlError) as error:
            client.overview()
        assert WRITE not in repr((client, vars(client), error.value, error.value.__cause__))


def followed(fleet: MemoryFleet, pools: dict[str, int], token: str = READ) -> tuple[Outcome, list[str], list[float]]:
    """How a change ended, what was said of it, and the pauses that it took."""
    said: list[str] = []
    pauses: list[float] = []

    def say(page: EventPage) -> None:
        said.extend(event.text for event in page.events)

    def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        fleet.is_away = len(pauses) < 3

    with control_client(fleet, token) as client:
        client.events()
        outcome = follow(client, MODEL, pools, FIRST_NUMBER - 1, say=say, sleep=sleep)
    return outcome, said, pauses


def under_way(*, ends_with: Callable[[MemoryFleet], object]) -> MemoryFleet:
    """A fleet on its way to one tp4, whose second read finds the end."""
    fleet = MemoryFleet(fleet_view(desired_pools={"tp4": 1}, repartition=UNDER_WAY))
    fleet.log.add(MODEL, "step", "start tp4")
    fleet.script = [None, lambda: ends_with(fleet)]
    return fleet


def reach(fleet: MemoryFleet) -> None:
    fleet.log.add(MODEL, "reached", "tp4 serves")
    fleet.change(repartition=None, effective_pools={"tp4": 1})


def roll_back(fleet: MemoryFleet) -> None:
    fleet.log.add(MODEL, "failure", "tp4 did not start within 600 s")
    fleet.change(repartition=None, desired_pools={"tp2pp2": 1})


def fall_short(fleet: MemoryFleet) -> None:
    fleet.change(repartition=None, effective_pools={"tp2": 1}, shortfall="node-1 is gone")


def delete(fleet: MemoryFleet) -> None:
    del fleet.views[MODEL]


@pytest.mark.parametrize(
    ("ending", "pools", "reached", "sentence"),
    [
        (reach, {"tp4": 1}, True, "acme/tiny is at 1 x tp4."),
        (roll_back, {"tp4": 1}, False, "not brought to 1 x tp4; it is at 1 x tp2pp2: tp4 did not start within 600 s."),
        (fall_short, {"tp4": 1}, False, "acme/tiny was not brought to 1 x tp4; it is at 1 x tp2: node-1 is gone."),
        (delete, {}, True, "acme/tiny is deleted."),
        (delete, {"tp4": 1}, False, "acme/tiny is deleted."),
    ],
)
def test_a_change_is_followed_to_its_end(
    ending: Callable[[MemoryFleet], object], pools: dict[str, int], reached: bool, sentence: str
) -> None:
    fleet = under_way(ends_with=ending)
    outcome, said, _ = followed(fleet, pools)
    assert outcome.reached is reached
    assert outcome.sentence.endswith(sentence)
    assert said == [event.text for event in fleet.log.page(None, MODEL).events]


def test_a_restart_of_the_controller_is_waited_for() -> None:
    fleet = under_way(ends_with=reach)
    fleet.script.insert(1, lambda: setattr(fleet, "is_away", True))
    outcome, _, pauses = followed(fleet, {"tp4": 1})
    assert outcome.reached
    assert pauses == [PAUSE_S] * 3


def test_a_controller_that_stays_away_is_not_waited_for_for_ever() -> None:
    fleet = MemoryFleet()
    fleet.is_away = True
    pauses: list[float] = []
    with control_client(fleet) as client, pytest.raises(ControlError, match="The controller is starting again"):
        follow(client, MODEL, {"tp4": 1}, 0, say=lambda page: None, sleep=pauses.append)
    assert len(pauses) == TRIES - 1


def test_a_token_that_is_refused_is_not_tried_again() -> None:
    pauses: list[float] = []
    with control_client(MemoryFleet(), "nobody") as client, pytest.raises(ControlError, match="is not known"):
        follow(client, MODEL, {"tp4": 1}, 0, say=lambda page: None, sleep=pauses.append)
    assert not pauses


def test_a_target_is_sent_as_it_is() -> None:
    sent: list[PoolsTarget] = []

    def respond(request: httpx.Request) -> httpx.Response:
        sent.append(PoolsTarget.model_validate_json(request.content))
        return httpx.Response(500)

    wanted = target({"tp4": 1}, way="swap", limits={"floor": 0.5}, if_version=3, dry_run=True)
    with answering(respond) as client, pytest.raises(ControlError):
        client.set_pools(MODEL, wanted)
    assert sent == [wanted]
