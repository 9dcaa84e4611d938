import json
from datetime import UTC
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from deployments.control import values, wire
from deployments.control.wire import Event, FleetView, PoolsTarget
from placement import Shape

texts = st.text(max_size=20)
counts = st.integers(0, 2**60)
durations_s = st.floats(0, 1e9, allow_nan=False)
shapes = st.builds(Shape, tp=st.integers(1, 99), pp=st.integers(1, 99), ep=st.integers(1, 99), dp=st.integers(1, 99))
pools = st.dictionaries(shapes.map(str), st.integers(0, values.MAX_REPLICAS), max_size=5)
moments = st.datetimes(timezones=st.just(UTC))
reasons = st.text(st.characters(categories=("L", "N", "P", "S"), codec="utf-8"), min_size=1, max_size=50)
limits = st.builds(
    wire.Limits,
    floor=st.none() | st.floats(0, 1),
    max_stall_s=st.none() | st.floats(0, 100),
    drain_timeout_s=st.none() | st.floats(0, 100),
    start_timeout_s=st.none() | st.floats(0.1, 100),
)
claims = st.builds(wire.LeaseClaim, name=st.from_regex(r"[a-z0-9._-]{1,64}", fullmatch=True), holder=reasons)
targets = st.builds(PoolsTarget, pools=pools, reason=reasons, limits=limits, lease=st.none() | claims)
obstacles = st.builds(wire.Obstacle, constraint=texts, nearest=texts)
forecasts = st.builds(
    wire.ForecastView,
    timeline=st.lists(st.builds(wire.ForecastStep, at_s=durations_s), max_size=3).map(tuple),
    stall_s=durations_s,
    gpus_needed=counts,
    infeasible=st.none() | obstacles,
)
replicas = st.builds(
    wire.ReplicaView,
    in_phase_s=durations_s,
    unfinished_requests=counts,
    tokens_per_s=st.none() | durations_s,
    seats=st.lists(st.builds(wire.SeatView, rank=counts, slot=counts), max_size=3).map(tuple),
)
fleets = st.builds(
    FleetView,
    version=counts,
    desired_pools=pools,
    effective_pools=pools,
    replicas=st.lists(replicas, max_size=2).map(tuple),
    repartition=st.none()
    | st.builds(wire.RepartitionView, step=counts, steps=counts, announced_stall_s=durations_s, running_s=durations_s),
    start_s=st.dictionaries(shapes.map(str), durations_s, max_size=3),
    transitions=st.lists(st.builds(wire.Transitions, count=counts), max_size=3).map(tuple),
)
nodes = st.builds(wire.NodeView, gpus=counts, free_gpus=counts, gpu_memory_bytes=st.none() | counts)
overviews = st.builds(
    wire.Overview,
    cluster=st.builds(wire.ClusterView, nodes=st.lists(nodes, max_size=3).map(tuple)),
    fleets=st.lists(fleets, max_size=2).map(tuple),
)
events = st.builds(Event, number=counts, at=moments)
pages = st.builds(wire.EventPage, events=st.lists(events, max_size=3).map(tuple), newest=counts)
entries = st.builds(wire.AuditEntry, at=moments, before=pools, after=pools)
accepted = st.builds(wire.Accepted, version=counts, forecast=forecasts)
leases = st.builds(wire.Lease, expires_in_s=durations_s)
addresses = st.lists(
    st.builds(wire.MetricsTarget, targets=st.tuples(texts), labels=st.just({"model": "m"})), max_size=2
)
metrics_targets = addresses.map(tuple).map(wire.MetricsTargets)
problems = st.builds(wire.Problem, status=st.integers(400, 599), current=st.none() | fleets, lease=st.none() | leases)


@given(value=st.one_of(targets, forecasts, overviews, pages, entries, accepted, leases, metrics_targets, problems))
def test_what_is_sent_is_what_arrives(value: BaseModel) -> None:
    assert type(value).model_validate_json(value.model_dump_json()) == value


@given(
    parts=st.lists(
        st.tuples(st.sampled_from(["tp2", "pp2tp2", "tp2pp2dp1", "tp4"]), st.integers(0, 3)),
        unique_by=lambda part: Shape.parse(part[0]),
    )
)
def test_pools_are_in_one_form_however_they_are_written(parts: list[tuple[str, int]]) -> None:
    one_way = PoolsTarget(pools=dict(parts), reason="a test").pools
    other_way = PoolsTarget(pools=dict(reversed(parts)), reason="a test").pools
    assert one_way == other_way == {str(Shape.parse(text)): count for text, count in parts if count}
    assert list(one_way) == list(other_way)


EVENT = {"number": 1, "at": "2026-01-02T03:04:05Z", "model": "m", "kind": "step", "text": "t"}


@pytest.mark.parametrize(
    "change",
    [{"extra": 1}, {"kind": "other"}, {"number": -1}, {"number": "1"}, {"at": "2026-01-02T03:04:05"}, {"text": None}],
)
def test_what_is_not_known_is_refused(change: dict[str, Any]) -> None:
    assert Event.model_validate_json(json.dumps(EVENT)).number == 1
    with pytest.raises(ValidationError):
        Event.model_validate_json(json.dumps({**EVENT, **change}))


def test_values_do_not_change() -> None:
    event = Event.model_validate_json(json.dumps(EVENT))
    with pytest.raises(ValidationError):
        event.text = "other"  # type: ignore[misc]
