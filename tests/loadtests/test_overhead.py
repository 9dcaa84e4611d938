import http.server
import io
import json
import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from rich.console import Console

from deployments import cli
from loadtests import overhead
from loadtests.cpu_use import CpuUse
from loadtests.overhead_figures import FailedRequestsError, Figures, Ratio, figures_of, medians, quantile, ratios
from loadtests.overhead_report import OURS, Turn, document, print_report
from loadtests.peers import PEERS, PeerSetup, llm_application, peer_environ, peer_flags
from loadtests.server_memory import RoleMemory
from loadtests.servers import Server, ServerError, configuration
from loadtests.stream_client import Sample

PEER = "vLLM"

# --- statistics ------------------------------------------------------------------------------------------------------


def sample(*times_s: float, sent_s: float = 0.0, error: str | None = None) -> Sample:
    """A request whose tokens came one by one at these times after it was sent."""
    first_s, last_s = min(times_s, default=None), max(times_s, default=None)
    end_s = sent_s + (last_s or 0)
    return Sample(sent_s=sent_s, end_s=end_s, first_s=first_s, last_s=last_s, tokens=len(times_s), error=error)


def figures(**changes: float) -> Figures:
    usual = {"tokens_per_s": 64.0, "ttft_p50_s": 0.064, "ttft_p95_s": 0.08, "tpot_p50_s": 0.016}
    return Figures(**usual | changes)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        pytest.param([3.0], 0.95, 3.0, id="one value"),
        pytest.param([4.0, 1.0, 3.0, 2.0], 0.5, 2.5, id="between two, whatever their order"),
        pytest.param([1.0, 2.0, 9.0], 0.5, 2.0, id="the middle one"),
        pytest.param([float(value) for value in range(101)], 0.95, 95.0, id="95 of 100"),
        pytest.param([0.0, 10.0], 0.95, 9.5, id="interpolated"),
    ],
)
def test_quantiles(values: list[float], share: float, expected: float) -> None:
    assert quantile(values, share) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        pytest.param(
            [sample(0.5, 1.0, 1.5, 2.0)],
            Figures(tokens_per_s=2, ttft_p50_s=0.5, ttft_p95_s=0.5, tpot_p50_s=0.5),
            id="one request",
        ),
        pytest.param(
            [sample(1, 2, 3, 4), sample(2, 3, 4, 5, sent_s=3)],
            Figures(tokens_per_s=1, ttft_p50_s=1.5, ttft_p95_s=1.95, tpot_p50_s=1),
            id="the wall clock runs from the first start to the last end",
        ),
        pytest.param(
            [sample(0.1, 0.2, 0.3, 0.4), sample(0.1, 0.2, 0.3, 0.7), sample(0.1, 1.1, 2.1, 3.1, sent_s=0.9)],
            Figures(tokens_per_s=3, ttft_p50_s=0.1, ttft_p95_s=0.1, tpot_p50_s=0.2),
            id="requests side by side; the median is of requests, not of tokens",
        ),
    ],
)
def test_figures_of_a_run(samples: list[Sample], expected: Figures) -> None:
    found = figures_of(samples, output_tokens=4)
    assert vars_of(found) == pytest.approx(vars_of(expected))


def vars_of(found: Figures | Ratio) -> dict[str, float]:
    return {name: getattr(found, name) for name in type(found).__dataclass_fields__}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        pytest.param(sample(1.0, error="HTTP 503: busy"), "HTTP 503: busy", id="an error"),
        pytest.param(sample(1.0, 2.0, 3.0), "3 tokens instead of 2", id="too many tokens"),
        pytest.param(sample(), "0 tokens instead of 2", id="none"),
        pytest.param(
            Sample(sent_s=0, end_s=1, first_s=None, last_s=None, tokens=2, error=None),
            "tokens were reported but no event carried one",
            id="tokens that never arrived",
        ),
    ],
)
def test_one_failed_request_spoils_the_run(bad: Sample, reason: str) -> None:
    with pytest.raises(FailedRequestsError) as caught:
        figures_of([sample(1.0, 2.0), bad, sample(1.0, 2.0)], output_tokens=2)
    assert str(caught.value) == f"1 of 3 requests failed; the first: {reason}"


def test_medians_are_taken_figure_by_figure() -> None:
    rounds = [figures(tokens_per_s=speed, ttft_p50_s=wait) for speed, wait in ((60, 0.3), (90, 0.1), (70, 0.2))]
    assert medians(rounds) == figures(tokens_per_s=70, ttft_p50_s=0.2)


@pytest.mark.parametrize(
    ("ours", "peer", "expected"),
    [
        pytest.param([50], [100], Ratio(of_medians=0.5, lowest=0.5, highest=0.5), id="one round"),
        pytest.param([100, 100], [100, 100], Ratio(of_medians=1, lowest=1, highest=1), id="no difference"),
        pytest.param([90, 80, 300], [100, 100, 200], Ratio(of_medians=0.9, lowest=0.8, highest=1.5), id="an outlier"),
        pytest.param([50, 100], [50, 100], Ratio(of_medians=1, lowest=1, highest=1), id="rounds are compared in pairs"),
    ],
)
def test_ratios(ours: list[float], peer: list[float], expected: Ratio) -> None:
    found = ratios([figures(tokens_per_s=speed) for speed in ours], [figures(tokens_per_s=speed) for speed in peer])
    assert vars_of(found["tokens_per_s"]) == pytest.approx(vars_of(expected))
    assert found["ttft_p50_s"] == Ratio(of_medians=1, lowest=1, highest=1)


# --- the same for both servers ---------------------------------------------------------------------------------------


def test_the_servers_take_turns_and_ours_is_the_very_first() -> None:
    assert overhead.order_of_turns(3, PEER) == [(0, OURS), (0, PEER), (1, PEER), (1, OURS), (2, OURS), (2, PEER)]


def test_both_servers_get_the_same_engine_arguments() -> None:
    engine = configuration("m", 1)["models"][0]["engine"]
    flags = peer_flags("/models/m", 1)
    for name, value in engine.items():
        flag = name.replace("_", "-")
        written = {True: f"--{flag}", False: f"--no-{flag}"}[value] if isinstance(value, bool) else f"--{flag}={value}"
        assert written in flags
    assert set(flags[:2]) == {"--model=/models/m", "--served-model-name=bench"}
    assert len(flags) == len(engine) + 2


def test_ray_serve_llm_gets_the_same_engine_arguments_model_and_name() -> None:
    engine = configuration("m", 1)["models"][0]["engine"]
    application = llm_application("/models/m", 8001)
    (llm,) = application["applications"][0]["args"]["llm_configs"]
    assert llm["engine_kwargs"].items() >= engine.items()
    assert llm["model_loading_config"] == {"model_id": "bench", "model_source": "/models/m"}
    assert application["http_options"]["port"] == 8001


def test_ray_serve_llm_is_not_compared_where_it_would_look_for_gpus(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="compared with tp1 only, not with tp2"):
        PEERS["ray.serve.llm"](PeerSetup(model_path="/models/m", threads={}), 2, tmp_path)


@pytest.mark.parametrize(
    ("tensor_parallel", "more_flags"),
    [(1, []), (2, ["--tensor-parallel-size=2", "--distributed-executor-backend=mp"])],
)
def test_the_shape_reaches_both_servers(tensor_parallel: int, more_flags: list[str]) -> None:
    ours = configuration("m", tensor_parallel)
    assert ours["models"][0]["shape"] == f"tp{tensor_parallel}"
    assert ours["cluster"]["islands"] == 1
    assert ours["cluster"]["gpus_per_island"] >= tensor_parallel
    assert peer_flags("m", tensor_parallel) == peer_flags("m", 1) + more_flags


@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_our_configuration_is_one_that_archipelago_accepts(tensor_parallel: int, tmp_path: Path) -> None:
    config = tmp_path / "archipelago.yaml"
    config.write_text(yaml.safe_dump(configuration("bench-100m", tensor_parallel)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert cli.main(["check", str(config), "--port", str(port)]) == 0


def test_the_peer_has_our_threads_and_no_cache_size_from_the_environment() -> None:
    environ = {"PATH": "/bin", "OMP_NUM_THREADS": "64", "VLLM_CPU_KVCACHE_SPACE": "40"}
    threads = {"OMP_NUM_THREADS": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    expected = {"PATH": "/bin", "VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", **threads}
    assert peer_environ(environ, threads) == expected


# --- the report ------------------------------------------------------------------------------------------------------


@pytest.fixture
def turns() -> list[Turn]:
    """Two rounds, ours at half the peer's speed in the first and three quarters in the second."""

    def turn(server: str, index: int, speed: float, memory_mib: int) -> Turn:
        memory = (RoleMemory(role="worker", processes=2, pss_bytes=memory_mib * 2**20),)
        return Turn(
            server=server,
            round=index,
            launch_to_token_s=speed / 10,
            figures={1: figures(tokens_per_s=speed), 8: figures(tokens_per_s=4 * speed)},
            cpu=dict.fromkeys((1, 8), CpuUse(server=1.5, load=0.1, others=speed / 1000)),
            memory=memory,
        )

    return [turn(OURS, 0, 50, 700), turn(PEER, 0, 100, 500), turn(PEER, 1, 80, 501), turn(OURS, 1, 60, 701)]


def test_the_tables_show_medians_ratios_starts_and_memory(turns: list[Turn]) -> None:
    console = Console(width=140, highlight=False, record=True, file=io.StringIO())
    print_report(turns, console)
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in console.export_text().splitlines()]
    assert ["1", OURS, "55.0", "64.0", "80.0", "16.0", "1.50", "0.06"] in rows
    assert ["1", PEER, "90.0", "64.0", "80.0", "16.0", "1.50", "0.09"] in rows
    assert ["8", PEER, "360.0", "64.0", "80.0", "16.0", "1.50", "0.09"] in rows
    assert ["tok/s", *["0.611 (0.500-0.750)"] * 2] in rows
    assert ["TTFT p95", *["1.000 (1.000-1.000)"] * 2] in rows
    assert [f"{OURS}: 5.5 s (5.0-6.0) from launch to the first token"] in rows
    assert ["worker", "2", "700"] in rows
    assert ["all", "2", "500"] in rows


@pytest.mark.parametrize("peer", PEERS)
def test_no_word_of_the_tables_is_cut_where_they_have_the_least_room(peer: str, turns: list[Turn]) -> None:
    console = Console(width=overhead.NARROWEST, record=True, file=io.StringIO())
    print_report([replace(turn, server=turn.server if turn.server == OURS else peer) for turn in turns], console)
    text = console.export_text()
    assert "…" not in text
    for word in (OURS, peer, "clients", "tok/s", "TTFT", "p95 ms", "0.611 (0.500-0.750)", "memory"):
        assert word in text


def test_the_document_holds_every_turn_in_base_units(turns: list[Turn]) -> None:
    written: dict[str, Any] = json.loads(json.dumps(document(turns, {"cores": 2})))
    assert written["conditions"] == {"cores": 2}
    assert written["ratios"]["1"]["tokens_per_s"]["lowest"] == 0.5
    assert [(turn["server"], turn["round"]) for turn in written["turns"]] == [
        (OURS, 0),
        (PEER, 0),
        (PEER, 1),
        (OURS, 1),
    ]
    assert written["turns"][1]["figures"]["8"]["ttft_p95_s"] == 0.08
    assert written["turns"][3]["memory"] == [{"role": "worker", "processes": 2, "pss_bytes": 701 * 2**20}]


# --- a turn ----------------------------------------------------------------------------------------------------------


class Endpoint(http.server.BaseHTTPRequestHandler):
    """Answers every completion at once with as many tokens as were asked for."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["max_tokens"]
        events: list[dict[str, Any]] = [
            {"choices": [{"text": "a", "token_ids": [7], "finish_reason": "length"}]}
        ] * asked
        events.append({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": asked}})
        body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def test_a_turn_measures_every_concurrency_and_reads_the_servers_processes() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as endpoint:
        threading.Thread(target=endpoint.serve_forever, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{endpoint.server_port}"
            server = Server(url=url, launch_to_token_s=1.5, processes=lambda: [psutil.Process()])
            turn = overhead.measure(server, OURS, index=0, requests_per_client=2)
        finally:
            endpoint.shutdown()
    assert (turn.server, turn.round, turn.launch_to_token_s) == (OURS, 0, 1.5)
    assert set(turn.figures) == set(turn.cpu) == {1, 8}
    assert all(figures.tokens_per_s > 0 for figures in turn.figures.values())
    assert turn.cpu[8].load > 0
    assert sum(role.processes for role in turn.memory) == 1


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--shape", "tp2pp2"], "invalid choice: 'tp2pp2'"),
        (["--rounds", "0"], "'0': give a whole number above 0"),
        (["--requests", "many"], "'many': give a whole number above 0"),
    ],
)
def test_a_mistake_on_the_command_line_is_explained(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        overhead.parser().parse_args(argv)
    assert message in capsys.readouterr().err
