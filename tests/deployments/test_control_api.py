from typing import Any

import httpx
import pytest
from control_builders import FIRST_NUMBER, GPUS, MODEL, UNDER_WAY, MemoryFleet, fleet, fleet_view, http, raw_client

from deployments.control.gate import MAX_BODY_BYTES
from deployments.control.wire import MAX_WAIT_S, Problem

__all__ = ["fleet", "http"]  # fixtures
POOLS = f"/v1/fleet/{MODEL}/pools"
WHY = {"reason": "more is coming"}


def problem(response: httpx.Response, status: int) -> Problem:
    """The problem that a response must be."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    found = Problem.model_validate_json(response.content)
    assert found.status == status
    assert "\n" not in found.detail
    return found


def test_the_overview_has_the_hardware_and_every_fleet(http: httpx.Client) -> None:
    found = http.get("/v1/fleet").json()
    assert [node["free_gpus"] for node in found["cluster"]["nodes"]] == [2, 2]
    assert [fleet["model"] for fleet in found["fleets"]] == [MODEL, "other"]


@pytest.mark.parametrize("model", [MODEL, "acme%2Ftiny", "a/b/pools", "x@y:z+1"])
def test_any_name_of_a_model_is_a_path(model: str) -> None:
    name = model.replace("%2F", "/")
    with raw_client(MemoryFleet(fleet_view(name))) as http:
        assert http.get(f"/v1/fleet/{model}").json()["model"] == name
        taken = http.put(f"/v1/fleet/{model}/pools", json={"pools": {"tp4": 1}, **WHY})
        assert taken.json()["version"] == 4


def test_a_model_that_is_not_there_is_named_with_those_that_are(http: httpx.Client) -> None:
    for response in (http.get("/v1/fleet/othe"), http.put("/v1/fleet/othe/pools", json={"pools": {"tp1": 1}, **WHY})):
        found = problem(response, 404)
        assert found.detail == "model: 'othe' is not known; did you mean other?"
        assert found.known_models == (MODEL, "other")


def test_a_target_asked_for_twice_is_taken_once(http: httpx.Client, fleet: MemoryFleet) -> None:
    target = {"pools": {"tp4": 1}, "if_version": 3, **WHY}
    first, second = http.put(POOLS, json=target).json(), http.put(POOLS, json=target).json()
    assert (first["version"], first["changed"]) == (4, True)
    # if_version is old by now; the sender cannot know, since the first answer may have been lost.
    assert (second["version"], second["changed"]) == (4, False)
    assert fleet.views[MODEL].version == 4


def test_a_dry_run_changes_nothing(http: httpx.Client, fleet: MemoryFleet) -> None:
    answer = http.put(POOLS, json={"pools": {"tp4": 1}, "dry_run": True, **WHY}).json()
    assert answer["changed"] is True
    assert answer["version"] == 3
    assert [step["step"] for step in answer["forecast"]["timeline"]] == ["start", "drain"]
    assert fleet.views[MODEL] == fleet_view()


def test_a_stale_version_is_refused_with_the_fleet_as_it_is(http: httpx.Client, fleet: MemoryFleet) -> None:
    found = problem(http.put(POOLS, json={"pools": {"tp4": 1}, "if_version": 2, **WHY}), 409)
    assert found.type == "urn:archipelago:stale-version"
    assert "if_version: 2 is not the version of acme/tiny any more; it is 3, with 1 x tp2pp2" in found.detail
    assert found.current == fleet.views[MODEL]


def test_one_repartition_at_a_time(http: httpx.Client, fleet: MemoryFleet) -> None:
    fleet.change(desired_pools={"tp4": 2}, repartition=UNDER_WAY)
    found = problem(http.put(POOLS, json={"pools": {"tp2": 1}, **WHY}), 409)
    assert found.type == "urn:archipelago:busy"
    assert "1 x tp2 is not accepted while acme/tiny is repartitioned to 2 x tp4" in found.detail
    assert found.current == fleet.views[MODEL]
    assert http.put(POOLS, json={"pools": {"tp4": 2}, **WHY}).json()["changed"] is False
    assert http.put(POOLS, json={"pools": {}, **WHY}).json()["changed"] is True, "a model may always be removed"


def test_what_does_not_fit_is_refused_with_the_constraint_and_the_nearest(http: httpx.Client) -> None:
    found = problem(http.put(POOLS, json={"pools": {"tp8": 2}, **WHY}), 422)
    assert found.type == "urn:archipelago:does-not-fit"
    assert found.detail == f"pools: 2 x tp8 does not fit: it needs 16 GPUs; there are {GPUS}. Nearest: tp4, twice."
    assert found.obstacle is not None
    assert found.obstacle.nearest == "tp4, twice"


def test_shapes_are_the_same_however_they_are_written(http: httpx.Client) -> None:
    assert http.put(POOLS, json={"pools": {"pp2tp2": 1, "tp8": 0}, **WHY}).json()["changed"] is False


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ({"pools": {"tp3x": 1}, **WHY}, "body.pools: {'tp3x': 1} is not accepted; 'tp3x' is not a shape"),
        ({"pools": {"tp2": -1}, **WHY}, "give tp2 a whole number of replicas from 0 to 4096, not -1"),
        ({"pools": {"tp2": True}, **WHY}, "give tp2 a whole number of replicas from 0 to 4096, not True"),
        ({"pools": {"tp2": 1.5}, **WHY}, "give tp2 a whole number of replicas from 0 to 4096, not 1.5"),
        ({"pools": {"tp2pp4": 1, "pp4tp2": 2}, **WHY}, "give tp2pp4 once"),
        ({"pools": [], **WHY}, "body.pools: [] is not accepted; give a mapping"),
        ({"pools": {f"tp{n}": 1 for n in range(1, 66)}, **WHY}, "give at most 64 shapes, not 65"),
        ({"pools": {}}, "body.reason: missing; give a string"),
        (
            {"pools": {}, "reason": "  "},
            "body.reason: '  ' is not accepted; give one line of at most 500 printable characters",
        ),
        ({"pools": {}, "reason": "a\x1b[2Jb"}, "give one line of at most 500 printable characters"),
        ({"pools": {}, "reason": "x" * 501}, "give one line of at most 500 printable characters"),
        ({"pools": {}, **WHY, "dry_run": 1}, "body.dry_run: 1 is not accepted; give true or false."),
        ({"pools": {}, **WHY, "way": "fast"}, "body.way: 'fast' is not accepted; give 'surge', 'rolling' or 'swap'."),
        ({"pools": {}, **WHY, "limits": {"floor": 1.5}}, "body.limits.floor: 1.5 is not accepted; give a number from"),
        ({"pools": {}, **WHY, "limits": {"start_timeout_s": 0}}, "body.limits.start_timeout_s: 0 is not accepted"),
        ({"pools": {}, **WHY, "if_version": "3"}, "body.if_version: '3' is not accepted; give an integer"),
        ({"pools": {}, **WHY, "dry_runs": True}, "body.dry_runs: unknown name; did you mean dry_run?"),
        (None, "body: missing; give"),
        ([], "body: [] is not accepted; give"),
    ],
)
def test_a_target_that_is_not_one_is_refused_field_by_field(
    http: httpx.Client, fleet: MemoryFleet, target: Any, said: str
) -> None:
    body = {} if target is None else {"json": target}
    assert said in problem(http.put(POOLS, **body), 422).detail
    assert fleet.views[MODEL] == fleet_view()
    assert not fleet.entries


def test_all_mistakes_are_told_at_once(http: httpx.Client) -> None:
    detail = problem(http.put(POOLS, json={"pools": {"x": 1}, "way": "y"}), 422).detail
    assert all(f"body.{field}: " in detail for field in ("pools", "way", "reason"))


def test_a_body_that_is_not_json_is_told_where(http: httpx.Client) -> None:
    headers = {"Content-Type": "application/json"}
    found = problem(http.put(POOLS, content='{"pools": }', headers=headers), 400)
    assert found.detail == "body: not JSON (Expecting value at character 10); give a JSON mapping."
    problem(http.put(POOLS, content='{"pools": {}}', headers={"Content-Type": "text/plain"}), 422)
    for content in (b'{"reason": "\xff"}', b"[" * 60_000):
        assert "body: not JSON in UTF-8" in problem(http.put(POOLS, content=content, headers=headers), 400).detail


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_body_is_bounded(http: httpx.Client, fleet: MemoryFleet, is_announced: bool) -> None:
    body = b'{"reason": "' + b"x" * MAX_BODY_BYTES + b'"}'
    content = body if is_announced else (body[i : i + 1000] for i in range(0, len(body), 1000))
    found = problem(http.put(POOLS, content=content, headers={"Content-Type": "application/json"}), 413)
    assert f"give at most {MAX_BODY_BYTES} bytes" in found.detail


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("events?after=-1", "query.after: '-1' is not accepted; give an integer of at least 0"),
        ("events?after=x", "query.after: 'x' is not accepted; give an integer of at least 0"),
        (f"events?wait_s={MAX_WAIT_S + 1}", "give a number from 0 to 60"),
        ("events?wait_s=nan", "query.wait_s: 'nan' is not accepted"),
        ("events?wait=1", "query.wait: unknown name; did you mean wait_s?"),
        (f"events?after={FIRST_NUMBER + 5}", f"query.after: {FIRST_NUMBER + 5} is not accepted; the newest event is"),
        (f"events/stream?after={FIRST_NUMBER + 5}", "the newest event is"),
        ("audit?limit=0", "query.limit: '0' is not accepted; give an integer from 1 to 10000"),
    ],
)
def test_a_query_is_refused_field_by_field(http: httpx.Client, query: str, said: str) -> None:
    assert said in problem(http.get(f"/v1/{query}"), 422).detail


def test_a_controller_that_is_away_is_told_apart_from_a_mistake(http: httpx.Client, fleet: MemoryFleet) -> None:
    fleet.is_away = True
    response = http.get("/v1/fleet")
    assert problem(response, 503).detail == "The controller is starting again."
    assert int(response.headers["retry-after"]) > 0
    assert http.get("/healthz").json() == {"status": "ok"}


def test_a_failure_of_ours_tells_no_secret(http: httpx.Client, fleet: MemoryFleet) -> None:
    fleet.script = [lambda: 1 / 0]
    assert "division" not in problem(http.get("/v1/fleet"), 500).detail


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/nothing", 404), ("DELETE", "/v1/fleet", 405)])
def test_a_route_that_is_not_there_is_a_problem_too(http: httpx.Client, method: str, path: str, status: int) -> None:
    assert f"{method} {path}: there is no such route" in problem(http.request(method, path), status).detail


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PATCH", "/v1/leases/autoscaler", "DELETE, PUT"),
        ("DELETE", "/v1/freeze", "GET, PUT"),
        ("DELETE", f"/v1/fleet/{MODEL}", "GET"),
        ("POST", POOLS, "GET, PUT"),  # GET: a model may be called acme/tiny/pools
        ("PUT", "/fleet", "GET, HEAD"),
    ],
)
def test_a_method_that_is_not_there_is_told_with_all_that_are(
    http: httpx.Client, method: str, path: str, allowed: str
) -> None:
    response = http.request(method, path)
    problem(response, 405)
    assert response.headers["allow"] == allowed
    assert "allow" not in http.get("/v1/nothing").headers


def test_no_other_site_may_use_a_browser_s_access(http: httpx.Client) -> None:
    response = http.get("/v1/fleet", headers={"Origin": "https://evil.test"})
    assert not any(name.startswith("access-control") for name in response.headers)


def test_openapi_describes_bodies_answers_and_the_token(http: httpx.Client) -> None:
    schema = http.get("/openapi.json").json()
    put = schema["paths"]["/v1/fleet/{model}/pools"]["put"]
    assert put["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/PoolsTarget")
    assert put["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/Accepted")
    for operation in (operation for path in schema["paths"].values() for operation in path.values()):
        if operation.get("security"):  # 401 without a token, 503 while the controller is away
            for status in ("4XX", "5XX"):
                assert "application/problem+json" in operation["responses"][status]["content"], operation["summary"]
    assert schema["paths"]["/metrics"]["get"]["security"] == put["security"]
    assert put["security"] == [{"HTTPBearer": []}]
    assert {"/v1/fleet", "/v1/fleet/{model}", "/v1/events", "/v1/events/stream", "/v1/audit"} < set(schema["paths"])


def test_the_audit_log_names_who_what_and_what_came_of_it(http: httpx.Client) -> None:
    for pools in ({"tp4": 1}, {"tp4": 1}, {"tp8": 3}):
        http.put(POOLS, json={"pools": pools, **WHY})
    http.put("/v1/fleet/nobody/pools", json={"pools": {}, **WHY})
    entries = http.get("/v1/audit").json()["entries"]
    assert [entry["outcome"] for entry in entries] == ["accepted", "unchanged", "refused", "refused"]
    assert {entry["who"] for entry in entries} == {"alice"}
    assert (entries[0]["before"], entries[0]["after"]) == ({"tp2pp2": 1}, {"tp4": 1})
    assert "'nobody' is not known" in entries[3]["refusal"]
    assert entries[3]["what"] == "delete"
    assert len(http.get("/v1/audit?limit=2").json()["entries"]) == 2
