"""One autoscaler at a time: who has a lease, and what comes of a target under one."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from control_builders import MODEL, MemoryFleet, MemoryLeases, control_client, fleet_view, raw_client, target
from hypothesis import given
from hypothesis import strategies as st

from deployments.control.client import ControlClient, ControlError
from deployments.control.leases import Leases
from deployments.control.wire import Lease, LeaseClaim, LeaseRequest, Problem

LEASE = "/v1/leases/autoscaler"
ANN, BOB = "ann on host-1", "bob on host-2"


@pytest.fixture
def fleet() -> MemoryFleet:
    return MemoryFleet()


@pytest.fixture
def client(fleet: MemoryFleet) -> Iterator[ControlClient]:
    with control_client(fleet) as one:
        yield one


def take(client: ControlClient, holder: str, ttl_s: float = 30.0) -> str:
    """Who has the lease when this one has asked for it."""
    try:
        return client.take_lease("autoscaler", holder, ttl_s).holder
    except ControlError as error:
        problem = error.problem
    assert problem is not None
    assert problem.lease is not None
    return problem.lease.holder


def test_one_has_it_until_it_is_over_or_given_back(client: ControlClient, fleet: MemoryFleet) -> None:
    assert (take(client, ANN), take(client, BOB)) == (ANN, ANN)
    fleet.now_s = 29.9
    assert take(client, BOB) == ANN
    fleet.now_s = 30.0
    assert (take(client, BOB), take(client, ANN)) == (BOB, BOB)
    client.give_back_lease("autoscaler", BOB)
    assert take(client, ANN) == ANN


def test_who_has_it_keeps_it_by_asking_again(client: ControlClient, fleet: MemoryFleet) -> None:
    for now_s in (0.0, 20.0, 40.0, 60.0):
        fleet.now_s = now_s
        assert take(client, ANN) == ANN
        assert take(client, BOB) == ANN


def test_who_may_not_have_it_is_told_who_has_it_and_for_how_long(client: ControlClient, fleet: MemoryFleet) -> None:
    taken = client.take_lease("autoscaler", ANN, 30)
    assert (taken.holder, taken.expires_in_s) == (ANN, 30.0)
    fleet.now_s = 12.0
    with pytest.raises(ControlError, match="autoscaler is held by ann on host-1 for another 18 s") as refused:
        client.take_lease("autoscaler", BOB, 30)
    assert refused.value.problem is not None
    assert (refused.value.problem.status, refused.value.problem.type) == (409, "urn:archipelago:lease-held")
    assert not refused.value.may_pass


def test_nobody_gives_back_what_another_has(client: ControlClient) -> None:
    client.give_back_lease("autoscaler", ANN)  # it is free, and stays so
    take(client, ANN)
    with pytest.raises(ControlError, match="is held by ann"):
        client.give_back_lease("autoscaler", BOB)
    assert take(client, BOB) == ANN


def test_leases_of_other_names_are_others(client: ControlClient) -> None:
    take(client, ANN)
    assert client.take_lease("other", BOB, 1).holder == BOB


def test_a_new_holder_is_an_event_and_one_who_stays_is_none(client: ControlClient) -> None:
    for holder in (ANN, ANN, BOB):
        take(client, holder)
    client.give_back_lease("autoscaler", ANN)
    told = [event.text for event in client.events().events if event.kind == "lease"]
    assert told == [f"{ANN} has the lease autoscaler now.", f"{ANN} has given the lease autoscaler back."]


@given(
    turns=st.lists(
        st.tuples(st.sampled_from(["take", "give back", "wait"]), st.sampled_from([ANN, BOB]), st.floats(0.1, 60)),
        max_size=30,
    )
)
def test_no_two_have_it_at_once(turns: list[tuple[str, str, float]]) -> None:
    now_s = 0.0
    leases = Leases(MemoryLeases(), lambda: now_s, lambda text: None)
    believed: dict[str, float] = {}  # who may think that it has it, and until when
    for what, who, duration_s in turns:
        if what == "wait":
            now_s += duration_s
        elif what == "take":
            if isinstance(leases.take("autoscaler", LeaseRequest(holder=who, ttl_s=duration_s)), Lease):
                believed[who] = now_s + duration_s
        elif leases.give_back("autoscaler", who) is None:
            believed.pop(who, None)
        holders = [one for one, until_s in believed.items() if until_s > now_s]
        assert len(holders) <= 1
        for one in (ANN, BOB):
            missed = leases.missed(LeaseClaim(name="autoscaler", holder=one))
            assert (missed is None) == (one in holders)


CASES = [
    pytest.param(None, None, 0.0, None, id="no-lease-asked-for"),
    pytest.param(ANN, ANN, 29.0, None, id="held"),
    pytest.param(ANN, None, 0.0, "nobody has it", id="never-held"),
    pytest.param(ANN, ANN, 31.0, "nobody has it", id="over"),
    pytest.param(ANN, BOB, 10.0, f"{BOB} has it for another 20 s", id="another-has-it"),
]


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(("claimed", "held", "now_s", "why"), CASES)
def test_a_target_is_taken_from_who_has_the_lease_alone(
    client: ControlClient,
    fleet: MemoryFleet,
    claimed: str | None,
    held: str | None,
    now_s: float,
    why: str | None,
    dry_run: bool,
) -> None:
    if held:
        take(client, held)
    fleet.now_s = now_s
    claim = LeaseClaim(name="autoscaler", holder=claimed) if claimed else None
    wanted = target({"tp4": 1}, lease=claim, dry_run=dry_run)
    if why is None:
        assert client.set_pools(MODEL, wanted).changed
        return
    with pytest.raises(ControlError, match=f"does not hold autoscaler; {why}") as refused:
        client.set_pools(MODEL, wanted)
    assert refused.value.problem is not None
    assert (refused.value.problem.status, refused.value.problem.type) == (409, "urn:archipelago:lease-lost")
    assert fleet.views[MODEL] == fleet_view()
    assert [entry.outcome for entry in fleet.entries] == ([] if dry_run else ["refused"])


GOOD = {"holder": ANN, "ttl_s": 30}


@pytest.mark.parametrize(
    ("method", "path", "body", "said"),
    [
        ("PUT", LEASE, {**GOOD, "ttl_s": 0}, "body.ttl_s: 0 is not accepted; give a number above 0 and at most 3600"),
        ("PUT", LEASE, {**GOOD, "ttl_s": 3601}, "body.ttl_s: 3601 is not accepted; give a number above 0 and at most"),
        ("PUT", LEASE, {**GOOD, "holder": " "}, "body.holder: ' ' is not accepted; give one line of at most 200"),
        ("PUT", LEASE, {**GOOD, "holder": "a\x1b[2Jb"}, "give one line of at most 200 printable characters"),
        ("PUT", LEASE, {"holder": ANN}, "body.ttl_s: missing; give a number above 0"),
        ("PUT", LEASE, {**GOOD, "ttl": 1}, "body.ttl: unknown name; did you mean ttl_s?"),
        ("PUT", "/v1/leases/a%20b", GOOD, "path.name: 'a b' is not accepted; give up to 64 letters"),
        ("DELETE", LEASE, None, "query.holder: missing; give a string"),
        ("DELETE", f"{LEASE}?holder=%20", None, "query.holder: ' ' is not accepted; give one line"),
        (
            "PUT",
            f"/v1/fleet/{MODEL}/pools",
            {"pools": {}, "reason": "x", "lease": {"name": "a b", "holder": "x"}},
            "give up",
        ),
    ],
)
def test_what_is_no_lease_is_refused_field_by_field(
    fleet: MemoryFleet, method: str, path: str, body: object, said: str
) -> None:
    given: dict[str, Any] = {} if body is None else {"json": body}
    with raw_client(fleet) as http:
        answer = http.request(method, path, **given)
    assert answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY, answer.text
    assert said in Problem.model_validate_json(answer.content).detail


def test_a_reader_gets_no_lease(fleet: MemoryFleet) -> None:
    with control_client(fleet, "read-token") as client, pytest.raises(ControlError, match="may only read"):
        client.take_lease("autoscaler", ANN, 30)
