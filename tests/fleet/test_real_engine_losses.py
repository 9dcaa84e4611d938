"""Processes of the real engine, and those around it, die while its fleet is cut anew under 50 streams of every kind.

`test_controller_losses` has every moment of a repartition, on the simulated engine; here are those where vLLM takes
part.
"""

import signal
from collections.abc import Callable
from typing import Any

import live_streams
import moving_streams
import psutil
import pytest
from moving_streams import Answer
from repartition_losses import lose_amid, replica_process
from running_system import ENGINE_ARGS, Deployed, until
from simulated_fleet import (
    FLEET_CONTROLLER,
    HEAD,
    SERVE_CONTROLLER,
    System,
    names_of,
    plan_of,
    settled,
    shapes_of,
)

from deployments import fleet

pytestmark = [pytest.mark.engine, pytest.mark.slow]

MODEL = "real"
STEP_TIMEOUT_S = 20.0
NOTICED_S = 10.0  # beyond it, on a machine that is busy: a look each second, and the way to another replica
TOKENS = 500  # seconds of generation, so that there is a drain to be met
INGRESS = f"ServeReplica:{MODEL}--ingress--"

Find = Callable[[System, set[str]], psutil.Process]  # a process of this replica
Undisturbed = Callable[[Deployed], list[Answer]]


@pytest.fixture
def deployed(system: System) -> Deployed:
    """The real engine, alone on the cluster: one replica, of tp2 or pp2."""
    for model in set(system.served) - {MODEL}:
        system.remove(model)
    if MODEL not in system.served:
        plan = plan_of(MODEL, ENGINE_ARGS, ingresses=2, step_timeout_s=STEP_TIMEOUT_S, simulated=None, spec=None)
        return system.serve(plan, {"tp2": 1})
    until(lambda: settled(system.served[MODEL]), "it serves", timeout_s=240)
    return system.served[MODEL]


@pytest.fixture(scope="module")
def undisturbed() -> Undisturbed:
    """What clients are told when nothing happens; asked once."""
    kept: list[Answer] = []

    def ask(deployed: Deployed) -> list[Answer]:
        kept.extend([] if kept else moving_streams.run(deployed.url, requests()))
        return kept

    return ask


def requests() -> list[dict[str, Any]]:
    return moving_streams.bodies(MODEL, live_streams.STREAMS, TOKENS)


def workers(replica: set[str]) -> list[psutil.Process]:
    """In the order of their ranks."""
    (report,) = fleet.reports(replica).values()
    assert not isinstance(report, str), report
    return [psutil.Process(one.pid) for one in report.found.workers]


def worker(system: System, replica: set[str]) -> psutil.Process:
    """That of the last rank: of the other stage, or of the other part of every layer, than the first."""
    return workers(replica)[-1]


def engine_core(system: System, replica: set[str]) -> psutil.Process:
    children = replica_process(system, replica).children(recursive=True)
    (core,) = [child for child in children if "EngineCore" in " ".join(child.cmdline())]
    return core


def raylet(system: System, replica: set[str]) -> psutil.Process:
    """That of a node which the replica has GPUs of; not of the head, with which the whole cluster goes."""
    view = system.served[MODEL].view()
    (mine,) = [one for one in view.replicas if one.name in replica]
    return system.raylet(max({seat.node for seat in mine.seats} - {HEAD}, default="node-1"))


def fleet_controller(system: System, replica: set[str]) -> psutil.Process:
    return system.processes(FLEET_CONTROLLER)[0]


def serve_controller(system: System, replica: set[str]) -> psutil.Process:
    return system.processes(SERVE_CONTROLLER)[0]


OLD, NEW = "goes", "comes"
# What goes is lost while it has requests; what comes once it serves: before, its start fails (`test_targets`).
# Moments that a tiny model is through with too soon to be met are those of the simulated engine alone.
CELLS: list[tuple[Find, str, str]] = [
    *((worker, OLD, moment) for moment in ("starting", "draining", "moving-into-the-ingress")),
    (worker, NEW, "draining"),
    *((engine_core, OLD, moment) for moment in ("starting", "draining")),
    (engine_core, NEW, "draining"),
    *((replica_process, OLD, moment) for moment in ("starting", "draining")),
    (replica_process, NEW, "draining"),
    *((raylet, OLD, moment) for moment in ("starting", "draining")),
    *((fleet_controller, NEW, moment) for moment in ("starting", "draining", "starting-while-held")),
    *((serve_controller, NEW, moment) for moment in ("starting", "draining", "starting-while-held")),
]


@pytest.mark.parametrize(
    ("find", "whose", "moment"), CELLS, ids=[f"{find.__name__}-{whose}-{moment}" for find, whose, moment in CELLS]
)
def test_no_stream_shows_what_died(
    find: Find, whose: str, moment: str, system: System, deployed: Deployed, undisturbed: Undisturbed
) -> None:
    lose(find, whose, moment, system, deployed, undisturbed)


@pytest.mark.parametrize("moment", ["starting", "draining"])
def test_no_stream_shows_that_a_worker_hung(
    moment: str, system: System, deployed: Deployed, undisturbed: Undisturbed
) -> None:
    """Nothing has died, and no step comes: its replica ends itself when `limits.step_timeout_s` is over.

    Until the one that comes serves, it is the only one: what it had waits for a start then.
    """
    found = lose(worker, OLD, moment, system, deployed, undisturbed, by=signal.SIGSTOP)
    (replica,) = deployed.view().replicas
    start_s = deployed.view().start_s[replica.shape] if moment == "starting" else 0.0
    longest_s = max(answer.longest_gap_s for answers in found for answer in answers)
    assert longest_s < STEP_TIMEOUT_S + NOTICED_S + start_s


def lose(
    find: Find,
    whose: str,
    moment: str,
    system: System,
    deployed: Deployed,
    undisturbed: Undisturbed,
    by: signal.Signals = signal.SIGKILL,
) -> list[list[Answer]]:
    """From tp2 to pp2, or back; all answers to each request."""
    expected = undisturbed(deployed)
    before = deployed.view()
    wanted = "pp2" if shapes_of(before) == ["tp2"] else "tp2"
    let_others_start(system, names_of(before))
    going = find(system, names_of(before))  # looked for beforehand: a drain is soon over
    found, _ = lose_amid(
        deployed, wanted, moment, lambda begun: going if whose == OLD else find(system, begun), requests(), by
    )
    for index, answers in enumerate(found):
        for answer in answers:
            moving_streams.assert_same_stream(index, answer, expected[index])
    assert shapes_of(deployed.view()) == [wanted]
    system.assert_tidy()
    return found


def let_others_start(system: System, replica: set[str]) -> None:
    """On few cores an engine would take minutes to start beside one that serves 50 streams as fast as it can."""
    mine = replica_process(system, replica)
    for process in (mine, *mine.children(recursive=True), *workers(replica)):
        process.nice(10)


def test_only_the_streams_of_an_ingress_end_with_it(
    system: System, deployed: Deployed, undisturbed: Undisturbed
) -> None:
    """Its clients see a broken connection, which they can try again; those of the other ingress see nothing."""
    expected = undisturbed(deployed)
    until(lambda: len(system.processes(INGRESS)) == 2, "two ingresses listen")
    before = deployed.view()
    wanted = "pp2" if shapes_of(before) == ["tp2"] else "tp2"
    let_others_start(system, names_of(before))
    found, _ = lose_amid(deployed, wanted, "starting", lambda begun: system.processes(INGRESS)[0], requests())
    broken = [index for index, answers in enumerate(found) if "Error" in answers[-1].error]
    assert 0 < len(broken) < len(found)
    for index, answers in enumerate(found):
        for answer in answers[: -1 if index in broken else None]:
            moving_streams.assert_same_stream(index, answer, expected[index])
    until(lambda: len(system.processes(INGRESS)) == 2, "two ingresses listen again")
    system.assert_tidy()
