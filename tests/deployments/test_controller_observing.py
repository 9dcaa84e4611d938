"""What a replica is, for every combination of what was decided, what Serve says and whether it has answered."""

import inspect
from itertools import product

import pytest
from controller_builders import MODEL, application
from deployment_builders import layout_of, report_of
from placement_builders import cluster_of
from ray.serve._private import deployment_state
from ray.serve.schema import ApplicationStatus

from deployments.controller.observing import World, is_gone, state_of
from deployments.controller.records import Intent, ReplicaRecord
from deployments.reconcile import Phase

NAME = "acme-tiny--tp2--7"
LAYOUT = layout_of("tp2", cluster_of(2, 2))
RECORD = ReplicaRecord(name=NAME, model=MODEL, layout=LAYOUT, since_s=5.0)
STATUSES = [None, *ApplicationStatus]
GONE = (None, ApplicationStatus.DELETING)


def world(status: ApplicationStatus | None, *, is_answering: bool, seated: bool = True) -> World:
    return World(
        applications={} if status is None else {NAME: application(status, message="it broke")},
        reports={NAME: report_of(LAYOUT, unfinished_requests=3)} if is_answering else {},
        seated=frozenset({NAME}) if seated else frozenset(),
    )


def expected(intent: Intent, status: ApplicationStatus | None, *, is_answering: bool) -> Phase:
    if intent is Intent.STOP:
        return Phase.STOPPING  # whatever Serve says: it is on its way out, and that is no failure
    if status in GONE or status is ApplicationStatus.DEPLOY_FAILED:
        return Phase.FAILED
    match intent:
        case Intent.DRAIN:
            return Phase.DRAINING
        case Intent.MOVE:
            return Phase.MOVING
        case _:
            return Phase.SERVING if is_answering else Phase.STARTING


@pytest.mark.parametrize(("intent", "status", "is_answering"), list(product(Intent, STATUSES, [False, True])))
def test_the_phase_of_a_replica(intent: Intent, status: ApplicationStatus | None, is_answering: bool) -> None:
    record = ReplicaRecord(name=NAME, model=MODEL, layout=LAYOUT, since_s=5.0, intent=intent)
    state = state_of(record, world(status, is_answering=is_answering))
    assert state.phase is expected(intent, status, is_answering=is_answering)
    assert (state.name, state.model, state.layout, state.since_s) == (NAME, MODEL, LAYOUT, 5.0)
    assert state.unfinished_requests == (3 if is_answering else 0)
    assert bool(state.cause) == (state.phase is Phase.FAILED)


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (None, "Serve has no application of it any more"),
        (ApplicationStatus.DELETING, "Serve has no application of it any more"),
        (ApplicationStatus.DEPLOY_FAILED, "it broke"),
    ],
)
def test_a_failure_has_its_cause(status: ApplicationStatus | None, cause: str) -> None:
    assert state_of(RECORD, world(status, is_answering=False)).cause == cause


def test_a_replica_that_no_node_has_room_for_says_what_it_waits_for() -> None:
    needs = '[{"GPU": 1.0, "CPU": 1.0}]'
    phrase = "Resources required for each replica: {required}, "
    assert phrase in inspect.getsource(deployment_state)  # Serve's words, which another version may change
    message = f"It has 1 replicas. {phrase.format(required=needs)}total resources available: {{}}. Use `ray status`."
    deploying = application(ApplicationStatus.DEPLOYING, message=message)
    state = state_of(RECORD, World(applications={NAME: deploying}))
    assert (state.phase, state.cause) == (Phase.STARTING, f"no node has {needs} free for it")


@pytest.mark.parametrize(
    ("status", "seated", "gone"),
    [
        (None, False, True),
        (None, True, False),  # Serve has forgotten it, and its placement group still holds the GPUs
        (ApplicationStatus.DELETING, False, False),
        (ApplicationStatus.RUNNING, True, False),
    ],
)
def test_a_replica_is_gone_when_neither_serve_nor_ray_has_anything_of_it(
    status: ApplicationStatus | None, seated: bool, gone: bool
) -> None:
    assert is_gone(RECORD, world(status, is_answering=False, seated=seated)) is gone


def test_others_do_not_matter() -> None:
    other = World(
        applications={"acme-tiny--tp2--70": application(ApplicationStatus.RUNNING)},
        reports={"acme-tiny--tp2--70": report_of(LAYOUT)},
        seated=frozenset({"acme-tiny--tp2--70"}),
    )
    assert is_gone(RECORD, other)
    assert state_of(RECORD, other).phase is Phase.FAILED
