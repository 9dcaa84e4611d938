from pathlib import Path
from typing import Any

import pytest

from loadtests.scenario import Scenario
from loadtests.scenario_reading import ScenarioError, parse_scenario, read_scenario, shipped_names
from loadtests.schedule import Request, requests_of, share_of
from loadtests.traces import TraceError

ENVIRON = {
    "ARCHIPELAGO_CONTROL_URL": "http://127.0.0.1:1",
    "POOLS_BEFORE": "{tp2pp2: 1}",
    "POOLS_AFTER": "{tp1: 2, tp2: 1}",
    "NODE_PID": "4242",
}
POISSON = {"kind": "poisson", "rate": 5}
FIXED = {"input": {"kind": "fixed", "tokens": 9}, "output": {"kind": "fixed", "tokens": 4}}
GOOD: dict[str, Any] = {"name": "t", "duration_s": 60, "arrivals": POISSON, "lengths": FIXED}


def parsed(**changes: Any) -> Scenario:
    values = {key: value for key, value in {**GOOD, **changes}.items() if value != "gone"}
    return parse_scenario(values, Path("/folder/mine.yaml"), {"N": "3", "HALF": "{"})


@pytest.mark.parametrize("name", shipped_names())
def test_every_scenario_that_is_shipped_can_be_run(name: str) -> None:
    scenario = read_scenario(name, ENVIRON)
    assert scenario.about
    assert any(True for _ in requests_of(scenario))


def test_all_that_were_promised_are_shipped() -> None:
    assert {"smoke", "steady-chat", "code-bursts", "long-prompts", "mix-shift", "spike", "soak"} <= set(shipped_names())
    assert {"repartition-under-load", "node-loss"} <= set(shipped_names())


def test_the_smoke_is_a_minute_that_the_tiny_model_can_bear() -> None:
    scenario = read_scenario("smoke", {})
    requests = list(requests_of(scenario))
    assert scenario.duration_s == 60
    assert 10 <= len(requests) <= 60
    assert max(each.input_tokens + each.output_tokens for each in requests) < 256


MISTAKES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("a typing error", {"duraton_s": 3}, ["duraton_s", "did you mean duration_s?"]),
    ("one inside", {"slo": {"ttft": 3}}, ["slo.ttft", "did you mean ttft_s?"]),
    ("a field of another kind", {"arrivals": {**POISSON, "cv": 2}}, ["arrivals.cv", "no field of this section"]),
    ("missing", {"duration_s": "gone"}, ["duration_s: missing"]),
    ("negative", {"duration_s": -1}, ["duration_s", "-1", "greater than 0"]),
    ("no number", {"arrivals": {"kind": "poisson", "rate": "fast"}}, ["arrivals.rate", "'fast'", "number"]),
    ("infinite", {"duration_s": float("inf")}, ["duration_s", "inf", "finite"]),
    ("no process", {"arrivals": {"rate": 1}}, ["arrivals.kind", "null", "'poisson'", "'trace'"]),
    ("an unknown process", {"arrivals": {"kind": "poison", "rate": 1}}, ["arrivals.kind", "'poison'", "'poisson'"]),
    ("no tokens", {"lengths": {**FIXED, "input": {"kind": "fixed", "tokens": 0}}}, ["lengths.input.tokens", "0"]),
    ("upside down", {"lengths": {**FIXED, "input": {"kind": "uniform", "least": 9, "most": 3}}}, ["most", "(9)"]),
    ("no mapping", {"lengths": 3}, ["lengths", "3", "mapping"]),
    ("half an address", {"url": "http://[::1"}, ["url", "'http://[::1'", "give it like http://"]),
    ("no name of a host", {"url": "http://.."}, ["url", "'http://..'", "give it like http://"]),
    ("no port", {"control": {"url": "http://x:99999"}}, ["control.url", "'http://x:99999'", "give it like http://"]),
    ("a number for a name", {"slo": {3: 4}}, ["slo[3]", "no field of this section"]),
    ("a variable that is no YAML", {"seed": "${HALF}"}, ["seed", "'{'", "not YAML; set HALF anew"]),
    ("a space", {"url": "http://x/a b"}, ["url", "'http://x/a b'", "give it like http://"]),
    ("another scheme", {"url": "ftp://x"}, ["url", "'ftp://x'", "give it like http://"]),
    ("no arrivals", {"arrivals": "gone"}, ["arrivals", "closed_loop"]),
    ("both loops", {"closed_loop": {"clients": 3}}, ["one of the two"]),
    ("no lengths", {"lengths": "gone"}, ["give lengths"]),
    ("an event without deed", {"events": [{"at_s": 3}]}, ["events[0]", "kill_pid, repartition, drain_node, command"]),
    ("two deeds", {"events": [{"at_s": 3, "kill_pid": 9, "command": ["true"]}]}, ["events[0]", "exactly one"]),
    ("everybody", {"events": [{"at_s": 3, "kill_pid": -1}]}, ["events[0].kill_pid", "-1"]),
    ("no shape", {"events": [{"at_s": 3, "repartition": {"pools": {"big": 1}}}]}, ["'big'", "tp4pp2"]),
    ("no control", {"events": [{"at_s": 3, "repartition": {"pools": {"tp1": 1}}}]}, ["control"]),
    ("texts of chance", {"check_text": "ref.jsonl"}, ["check_text: 'ref.jsonl'", "greedy: true"]),
    ("a class twice", {"classes": [{"name": "a"}, {"name": "a"}]}, ["classes"]),
    ("a mix of strangers", {"classes": [{"name": "a"}], "mix": [{"from_s": 0, "shares": {"b": 1}}]}, ["mix: b"]),
    ("no variable", {"seed": "${NOT_THERE}"}, ["seed", "NOT_THERE", "set it"]),
]


@pytest.mark.parametrize(("changes", "words"), [pytest.param(*rest, id=name) for name, *rest in MISTAKES])
def test_a_mistake_is_told_with_its_field_and_its_value(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ScenarioError) as caught:
        parsed(**changes)
    assert len(str(caught.value).splitlines()) == 1
    for word in ("/folder/mine.yaml", *words):
        assert word in str(caught.value)


def test_every_mistake_has_a_line() -> None:
    with pytest.raises(ScenarioError) as caught:
        parsed(duration_s=0, seed=-1, workers=0)
    assert len(str(caught.value).splitlines()) == 3


def test_a_name_that_is_no_scenario_says_which_there_are() -> None:
    with pytest.raises(ScenarioError, match="smoke"):
        read_scenario("smokey", {})


def test_variables_of_the_environment_are_put_in_as_what_they_are() -> None:
    scenario = parsed(seed="${N}", about="run ${N}", lengths={**FIXED, "input": {"kind": "fixed", "tokens": "${N}"}})
    assert (scenario.seed, scenario.about) == (3, "run 3")
    assert next(requests_of(scenario)).input_tokens == 3


def test_paths_are_relative_to_the_scenario() -> None:
    scenario = parsed(greedy=True, check_text="ref.jsonl", arrivals={"kind": "trace", "file": "t.csv"})
    assert scenario.check_text == "/folder/ref.jsonl"
    with pytest.raises(TraceError, match=r"/folder/t\.csv"):
        next(requests_of(scenario))


# --- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_workers_share_the_requests_without_overlap(workers: int) -> None:
    whole = list(requests_of(parsed()))
    shares = [share_of(requests_of(parsed()), worker, workers) for worker in range(workers)]
    assert sorted((each for share in shares for each in share), key=lambda each: each.id) == whole
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_equal_seeds_give_equal_requests_and_others_do_not() -> None:
    lengths = {"input": {"kind": "lognormal", "median": 50, "sigma": 1, "most": 999}, "output": FIXED["output"]}
    assert list(requests_of(parsed(lengths=lengths))) == list(requests_of(parsed(lengths=lengths)))
    assert list(requests_of(parsed(lengths=lengths))) != list(requests_of(parsed(lengths=lengths, seed=1)))


def test_the_mix_shifts_when_it_should() -> None:
    classes = [{"name": "chat", "share": 3}, {"name": "code", "share": 1}]
    mix = [{"from_s": 200, "shares": {"code": 1}}, {"from_s": 400, "shares": {"chat": 1}}]
    arrivals = {"kind": "constant", "rate": 5}
    found = list(requests_of(parsed(duration_s=600, arrivals=arrivals, classes=classes, mix=mix)))

    def chat(from_s: float) -> float:
        names = [each.class_name for each in found if from_s <= each.at_s < from_s + 200]
        return names.count("chat") / len(names)

    assert chat(0) == pytest.approx(0.75, abs=0.05)
    assert (chat(200), chat(400)) == (0, 1)


def test_servegens_clients_are_added_up() -> None:
    clients = [{"rates": [4, 0, 4]}, {"rates": [0, 10], "cv": 0}]
    arrivals = {"kind": "servegen", "window_s": 100, "clients": clients}
    times = [each.at_s for each in requests_of(parsed(duration_s=1000, arrivals=arrivals))]
    assert times == sorted(times)
    assert [sum(start <= at_s < start + 100 for at_s in times) for start in (100, 300)] == [1000, 0]
    assert sum(at_s < 100 for at_s in times) == pytest.approx(400, abs=100)


def trace(folder: Path, **changes: Any) -> list[Request]:
    path = folder / "t.csv"
    rows = ("0,10,1,a", "5,20,2,", "9,30,3,b", "20,40,4,a")
    path.write_text("arrival_s,input_tokens,output_tokens,class\n" + "\n".join(rows) + "\n")
    arrivals = {"kind": "trace", "file": str(path), **changes.pop("arrivals", {})}
    return list(requests_of(parsed(duration_s=10, **{"lengths": "gone", **changes}, arrivals=arrivals)))


def test_a_trace_is_played_as_it_was_recorded(tmp_path: Path) -> None:
    found = [(each.at_s, each.input_tokens, each.output_tokens, each.class_name) for each in trace(tmp_path)]
    assert found == [(0, 10, 1, "a"), (5, 20, 2, None), (9, 30, 3, "b")]
    assert [each.at_s for each in trace(tmp_path, arrivals={"from_s": 5.0})] == [0, 4]
    assert {each.input_tokens for each in trace(tmp_path, lengths=FIXED)} == {9}


def test_a_window_of_a_trace_without_rows_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="from_s"):
        trace(tmp_path, arrivals={"from_s": 50.0})
