"""A model is removed over the control API while clients stream from it and from another one."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import live_streams
import moving_streams
import pytest
import ray
from running_system import Deployed, prompts, until
from simulated_fleet import System, answers, plan_of, seen, when, when_busy

from deployments.control.client import ControlError
from deployments.control.wire import Limits, PoolsTarget
from deployments.controller.records import Store

pytestmark = pytest.mark.engine

Undisturbed = Callable[[Deployed], Any]
REASON = "nobody asks for it"
LONG_TOKENS = 1900  # at about 50 ms each: far beyond any drain of these tests


def ask_to_remove(deployed: Deployed, drain_timeout_s: float) -> None:
    limits = Limits(drain_timeout_s=drain_timeout_s)
    deployed.control.set_pools(deployed.model, PoolsTarget(pools={}, reason=REASON, limits=limits))


def until_gone(deployed: Deployed) -> None:
    until(lambda: deployed.control.overview().fleet(deployed.model) is None, f"{deployed.model} has gone")


def new_request(deployed: Deployed) -> httpx.Response:
    body = {"model": deployed.model, "prompt": prompts(1)[0], "max_tokens": 4}
    return httpx.post(f"{deployed.url}/v1/completions", json=body, timeout=60, trust_env=False)


def assert_nothing_is_left(system: System, deployed: Deployed, after: int) -> None:
    """Neither a record, an application, a placement group nor a listener; and it is on record who wanted it so."""
    del system.served[deployed.model]
    system.assert_tidy()
    assert deployed.model not in ray.get(system.controller.models.remote())
    found = Store()
    assert deployed.model not in found.models
    assert deployed.model not in {replica.model for replica in found.replicas.values()}
    assert not answers(deployed.url)
    with pytest.raises(ControlError, match="is not known"):
        deployed.view()
    events = deployed.control.events(after, model=deployed.model).events
    assert [event.text for event in events if event.kind == "target"] == [f"tester wants no pools: {REASON}"]
    assert events[-1].text == "The model is no longer served."
    (entry,) = deployed.control.audit(1)
    assert (entry.model, entry.what, entry.who, entry.reason) == (deployed.model, "delete", "tester", REASON)
    until(
        lambda: deployed.model not in {one.labels["model"] for one in deployed.control.metrics_targets()},
        "Prometheus is not sent there any more",
    )


@pytest.mark.slow
def test_a_model_that_is_removed_lets_its_streams_finish_and_another_one_does_not_notice(
    system: System, undisturbed: Undisturbed
) -> None:
    usual = system.deploy({"tp2": 1})
    expected = undisturbed(usual)
    before = usual.view()
    leaving = system.serve(plan_of("leaving"), {"tp2": 2})
    newest = usual.control.events().newest
    refused: list[httpx.Response] = []

    def remove() -> None:
        when_busy(leaving)
        ask_to_remove(leaving, drain_timeout_s=120)
        refused.append(until(lambda: is_refused(new_request(leaving)), "new requests are refused", every_s=0.02))

    def stream_and_remove() -> None:
        when_busy(usual)
        found = moving_streams.run(leaving.url, live_streams.requests(leaving.model), remove)
        assert [answer.said() for answer in found] == [answer.said() for answer in expected]
        until_gone(leaving)

    found = live_streams.during(usual.url, live_streams.requests(usual.model), stream_and_remove)
    live_streams.assert_unnoticed(found, expected)
    after = seen(usual)
    assert after is not None
    assert [replica.name for replica in after.replicas] == [replica.name for replica in before.replicas]
    assert after.version == before.version
    assert refused[0].status_code == httpx.codes.SERVICE_UNAVAILABLE
    assert_nothing_is_left(system, leaving, newest)
    # Under the same name comes another model, for which nothing that was decided before holds.
    again = system.serve(plan_of("leaving"), {"tp2": 1})
    assert again.view().version > 2
    assert new_request(again).status_code == httpx.codes.OK
    system.remove("leaving")


def is_refused(response: httpx.Response) -> httpx.Response | None:
    return response if response.status_code != httpx.codes.OK else None


@pytest.mark.slow
def test_what_still_runs_when_the_drain_is_over_is_told_so(system: System) -> None:
    """In the middle of a repartition: there is no replica left to migrate to, and the ingress stays to say it."""
    system.deploy({"tp2": 1})
    leaving = system.serve(plan_of("hurried"), {"tp2": 1})
    newest = leaving.control.events().newest
    sent = [
        {**body, "max_tokens": LONG_TOKENS, "min_tokens": LONG_TOKENS, "ignore_eos": True}
        for body in live_streams.requests(leaving.model)
        if "stop" not in body
    ]

    def remove_amid_a_repartition() -> None:
        when(leaving, lambda view: sum(one.unfinished_requests for one in view.replicas) >= len(sent), "all run")
        leaving.control.set_pools(leaving.model, PoolsTarget(pools={"pp2": 1}, reason="test"))
        when(leaving, lambda view: any(one.phase == "starting" for one in view.replicas), "another one starts")
        ask_to_remove(leaving, drain_timeout_s=1)

    found = moving_streams.run(leaving.url, sent, remove_amid_a_repartition)
    until_gone(leaving)
    for answer in found:
        assert any(answer.token_ids.values()), "it had begun"
        assert json.loads(answer.error)["code"] == 500, answer.error  # of vLLM, within the stream: not cut off
    texts = [event.text for event in leaving.control.events(newest, model=leaving.model).events]
    assert any("The model goes, and drain_timeout_s = 1 is over." in text for text in texts)
    assert any("It is no longer wanted." in text for text in texts), "what was starting"
    assert not answers(leaving.url)
    del system.served["hurried"]
    system.assert_tidy()
