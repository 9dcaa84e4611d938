import importlib.metadata
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from cli_builders import record
from deployment_builders import answering

from deployments import cli, local_cluster
from deployments.check import port_is_free
from deployments.cli import default_config, main
from deployments.local_cluster import CLUSTER_ID_ENV, free_port
from deployments.run_record import STATE_DIR_ENV, ServedModel, read, write

SIMULATED = Path(cli.__file__).parent / "configs" / "local.yaml"
MOE = Path(cli.__file__).parent / "configs" / "moe.yaml"

QUESTION = [
    "MODEL",
    "--cluster",
    "--input",
    "--output",
    "--spread",
    "--prefix-hits",
    "--precision",
    "--kv-cache",
    "--engine",
    "--all2all",
    "--calibration",
    "--json",
]
ASKING = ["--drain-timeout", "--reason", "--dry-run", "--yes", "--json"]
CHANGE = ["--way", "--floor", "--max-stall", *ASKING]
COMMANDS = {
    "serve": ["CONFIG", "--model", "--shape", "--port", "--block"],
    "status": [],
    "stop": [],
    "check": ["CONFIG", "--model", "--shape", "--port", "--fields"],
    "fleet": ["MODEL", "--watch", "--json"],
    "repartition": ["MODEL", "SHAPE", "--replicas", *CHANGE],
    "scale": ["MODEL", "SHAPE=N", *CHANGE],
    "remove": ["MODEL", *ASKING],
    "events": ["MODEL", "--follow", "--json"],
    "audit": ["--limit", "--json"],
    "keys": ["COMMAND"],
    "plan": [*QUESTION, "--rate", "--concurrency", "--ttft", "--tpot", "--percentile", "--explain", "--emit", "--top"],
    "scaling": [*QUESTION, "--max-gpus", "--running", "--threshold", "--html", "--png"],
    "predict": ["--rows", "--out", "--calibration", "--json"],
    "calibrate": ["ROWS", "--out", "--by", "--from-scratch", "--collectives", "--folds", "--calibration", "--json"],
    "autoscale": ["CONFIG", "--mode", "--once", "--fields"],
    "decisions": ["--directory", "--model", "--why", "--follow", "--json"],
    "approve": ["NUMBER", "--directory", "--reject", "--reason"],
    "freeze": ["--directory", "--off", "--reason"],
    "simulate": [
        *("--trace", "--cluster", "--model", "--policy", "--ttft", "--tpot", "--percentile", "--slo", "--initial"),
        *("--shapes", "--max-gpus", "--start-time", "--truth", "--prefix-hits", "--precision", "--kv-cache"),
        *("--calibration", "--seed", "--out", "--json", "--settings", "--begins"),
    ],
    "whatif": [
        *("--prometheus", "--trace", "--model", "--since", "--scrape-interval", "--token-file", "--ca-file"),
        *("--user", "--password-file"),
        *("--prefix-hits", "--source", "--cluster", "--ttft", "--tpot", "--percentile", "--initial", "--shapes"),
        *("--max-gpus", "--start-time", "--precision", "--kv-cache", "--calibration", "--policies", "--seed"),
        *("--out", "--json", "--settings", "--begins"),
    ],
    "load": [
        "SCENARIO",
        "--url",
        "--control",
        "--model",
        "--duration",
        "--workers",
        "--seed",
        "--reference",
        "--out",
        "--ui",
    ],
    "bench": ["COMMAND"],
    "islands": ["FILE", "--json", "--yaml", "--labels", "--raylets", "--measure", "--processes"],
}


@pytest.fixture(autouse=True)
def record_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the record of what is served would be; nothing is at first."""
    monkeypatch.setenv(STATE_DIR_ENV, str(tmp_path / "state"))
    # What is served on this machine beside the tests has the default port of the control API.
    monkeypatch.setattr(cli, "port_is_free", lambda host, port: port == 8001 or port_is_free(host, port))
    return tmp_path / "state" / "run.json"


@pytest.fixture
def ran(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line; returns its exit code, output and errors, none of which is ever a traceback."""

    def run(*argv: object) -> tuple[int, str, str]:
        try:
            code = main([str(argument) for argument in argv])
        except SystemExit as end:  # how argparse ends
            code = int(end.code or 0)
        output, errors = capsys.readouterr()
        assert "Traceback" not in output + errors
        return code, output, errors

    return run


Ran = Callable[..., tuple[int, str, str]]


@pytest.fixture
def member(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the cluster that `record` tells of."""
    cluster = record(tmp_path).cluster
    assert cluster is not None
    env = os.environ | {CLUSTER_ID_ENV: cluster.cluster_id}
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"], env=env) as process:
        while not list(local_cluster.processes(cluster)):  # until it has become what it was started as
            assert process.poll() is None
        yield process
        process.kill()


# --- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_names_its_options(command: str, ran: Ran) -> None:
    code, output, errors = ran(command, "--help")
    assert (code, errors) == (0, "")
    assert output.startswith(f"usage: archipelago {command}")
    options = set(re.findall(r"^  (?:-\w, )?(--[\w-]+|[A-Z][A-Z=]*)", output, re.MULTILINE))
    assert options - {"--help"} == set(COMMANDS[command])
    assert re.match(r"[A-Z].+\.$", output.split("\n\n")[1], re.DOTALL)  # what it is for, in a sentence


def test_the_version_is_the_one_that_is_installed(ran: Ran) -> None:
    assert ran("--version") == (0, f"archipelago {importlib.metadata.version('archipelago')}\n", "")


def test_the_help_names_every_command(ran: Ran) -> None:
    code, output, _ = ran("--help")
    assert code == 0
    assert re.findall(r"^    (\w+)", output, re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize(
    "argv",
    [
        ["--bogus"],
        ["sever"],
        ["serve", "a.yaml", "b.yaml"],
        ["serve", "--modle", "x"],
        ["check", "--port", "eighty"],
        ["stop", "x"],
        ["plan", "m", "--cluster", "dgx-h100", "--concurrency", "many"],  # 2 would say that there is no plan
    ],
    ids=" ".join,
)
def test_a_command_line_that_makes_no_sense_is_refused_in_a_line(argv: list[str], ran: Ran) -> None:
    code, output, errors = ran(*argv)
    assert (code, output) == (1, "")
    assert re.fullmatch(r"(archipelago( [a-z]+)?): .+[;?] `\1 --help` says what is accepted\n", errors)


@pytest.mark.parametrize(("argv", "code"), [([], 1), (["keys"], 1), (["bench"], 2)], ids=str)
def test_without_a_command_the_commands_are_shown(argv: list[str], code: int, ran: Ran) -> None:
    ended, output, errors = ran(*argv)
    assert (ended, output) == (code, "")
    assert errors == ran(*argv, "--help")[1]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["plna"], "archipelago: argument COMMAND: 'plna' is not accepted; did you mean plan? `"),
        (["keys", "ad"], "archipelago keys: argument COMMAND: 'ad' is not accepted; give one of add, list, remove; `"),
        (["plan", "m", "--ttfp=1s", "--cluster", "c"], "archipelago plan: unrecognized arguments: --ttfp=1s; did you "),
        (["stop", "x"], "archipelago stop: unrecognized arguments: x; `archipelago stop --help`"),
        (["keys", "add", "a", "--role", "king"], "archipelago keys add: argument --role: 'king' is not accepted; give"),
        (["audit", "--limit", "x"], "archipelago audit: argument --limit: 'x' is not accepted; give a whole number; `"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_mistake_is_told_by_the_command_that_knows_what_was_meant(argv: list[str], message: str, ran: Ran) -> None:
    assert ran(*argv)[2].startswith(message)


def test_what_the_gate_of_a_pipeline_cannot_read_is_no_broken_limit(ran: Ran) -> None:
    assert ran("bench", "gate", "result.json")[0] == 2


def test_a_full_disk_is_told_in_a_line() -> None:
    program = "import sys; from deployments.cli import main; sys.exit(main(['check', '--fields']))"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("archipelago: the output cannot be written: No space left on device\n")
    assert "Traceback" not in done.stderr


# --- check -----------------------------------------------------------------------------------------------------------


def test_check_shows_where_every_rank_would_go(ran: Ran) -> None:
    assert ran("check", SIMULATED, "--port", free_port()) == (
        0,
        "tiny-llama, replica 0: tp2pp2: rank 0 on node-0 in island-0, rank 1 on node-0 in island-0, "
        "rank 2 on node-1 in island-1, rank 3 on node-1 in island-1\nno mistakes found\n",
        "",
    )


def test_check_describes_every_field(ran: Ran) -> None:
    code, output, errors = ran("check", "--fields")
    assert (code, errors) == (0, "")
    for field in ("models[].source", "models[].shape", "cluster.islands", "endpoint.port", "limits.drain_timeout_s"):
        assert f"{field}  (" in output


def test_the_configuration_that_is_used_without_one_is_there_and_has_no_mistakes(ran: Ran) -> None:
    assert default_config().is_file()
    assert ran("check", "--port", free_port())[0] == 0


BAD: list[tuple[str, list[str], str]] = [
    ("no such file", ["{dir}/no.yaml"], "{dir}/no.yaml: cannot be read (No such file or directory); give an existing"),
    ("a directory", ["{dir}"], "{dir}: cannot be read (Is a directory); give an existing YAML file"),
    ("not YAML", ["{dir}/bad.yaml"], "{dir}/bad.yaml: line 1, column 10: expected the node content"),
    ("an unknown field", ["{dir}/typo.yaml"], "endpiont: unknown name; did you mean endpoint?"),
    ("a shape that is none", [str(SIMULATED), "--shape", "tp2xx3"], "models[0].shape: 'tp2xx3'"),
    ("a shape without room", [str(SIMULATED), "--shape", "tp4"], "models[0].shape: 'tp4' is not accepted; tp4 needs 4"),
    ("an empty model", [str(SIMULATED), "--model", ""], "models[0].source: '' is not accepted"),
    ("a model that is not there", [str(SIMULATED), "--model", "./gone"], "models[0].source: './gone' is not accepted"),
    ("a port that is none", [str(SIMULATED), "--port", "70000"], "endpoint.port: 70000 is not accepted"),
]


@pytest.mark.parametrize("command", ["check", "serve"])
@pytest.mark.parametrize(("argv", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_bad_configuration_is_a_message_and_nothing_is_started(
    command: str, argv: list[str], message: str, ran: Ran, tmp_path: Path, record_file: Path
) -> None:
    (tmp_path / "bad.yaml").write_text("models: [")
    (tmp_path / "typo.yaml").write_text("models: [{source: tiny-llama}]\nendpiont: {}")
    arguments = [argument.replace("{dir}", str(tmp_path)) for argument in argv]
    port = [] if "--port" in argv else ["--port", str(free_port())]
    code, output, errors = ran(command, *arguments, *port)
    assert (code, output) == (1, "")
    title, *lines = errors.splitlines()
    assert title == "archipelago: the configuration has mistakes"
    assert len(lines) == 1
    assert lines[0].startswith(message.replace("{dir}", str(tmp_path)))
    assert not record_file.exists()


def test_all_mistakes_are_told_at_once(ran: Ran) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        code, _, errors = ran("check", SIMULATED, "--shape", "tp3", "--port", port)
    assert code == 1
    assert [line.split(":")[0] for line in errors.splitlines()] == [
        "archipelago",
        "endpoint.port",
        *["models[0].shape"] * (len(errors.splitlines()) - 2),
    ]


# --- overrides -------------------------------------------------------------------------------------------------------


def test_a_model_and_a_shape_replace_those_of_the_configuration(ran: Ran) -> None:
    code, output, _ = ran("check", SIMULATED, "--model", "tiny-moe", "--shape", "tp2ep2", "--port", free_port())
    assert code == 0
    assert output.startswith(
        "tiny-moe, replica 0: tp2ep2: rank 0 on node-0 in island-0, rank 1 on node-0 in island-0\n"
    )


def test_a_shape_alone_keeps_the_model(ran: Ran) -> None:
    assert "tiny-moe, replica 0: tp2ep2:" in ran("check", MOE, "--shape", "tp2ep2", "--port", free_port())[1]
    code, _, errors = ran("check", SIMULATED, "--shape", "tp2ep2", "--port", free_port())
    assert code == 1
    assert "ep2 needs a mixture of experts; tiny-llama is a dense model" in errors


def test_a_model_takes_its_own_name_and_leaves_what_belongs_to_the_other(ran: Ran, tmp_path: Path) -> None:
    path = tmp_path / "named.yaml"
    path.write_text(
        "models:\n- {source: tiny-llama, name: mine, shape: auto, tool_call_parser: hermes,"
        " chat_template: '{{ messages }}', engine: {kv_cache_memory_bytes: 67108864}}"
    )
    assert "the smallest shape that holds mine" in ran("check", path, "--port", free_port())[1]
    assert (
        "the smallest shape that holds tiny-moe" in ran("check", path, "--model", "tiny-moe", "--port", free_port())[1]
    )


def test_the_port_replaces_that_of_the_configuration(ran: Ran) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        code, _, errors = ran("check", SIMULATED, "--port", port)
    assert code == 1
    assert f"endpoint.port: {port} is not accepted; nothing can listen on it at 127.0.0.1 now" in errors


# --- status and stop -------------------------------------------------------------------------------------------------


def test_status_of_nothing_says_how_to_start(ran: Ran) -> None:
    code, output, errors = ran("status")
    assert (code, output) == (1, "")
    assert errors == "archipelago: nothing is served from this directory; start with `archipelago serve`\n"


def test_stopping_nothing_is_fine(ran: Ran) -> None:
    assert ran("stop") == (0, "archipelago: nothing was started from this directory\n", "")


@pytest.mark.parametrize("command", ["status", "stop"])
def test_where_nothing_runs_ray_is_not_loaded(command: str, tmp_path: Path) -> None:
    program = f"import sys; from deployments.cli import main; main(['{command}']); sys.exit('ray' in sys.modules)"
    env = os.environ | {STATE_DIR_ENV: str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", program], env=env, capture_output=True).returncode == 0


def test_a_cluster_that_has_gone_is_not_served_and_can_be_stopped(ran: Ran, tmp_path: Path, record_file: Path) -> None:
    write(record_file, record(tmp_path))
    assert ran("status")[0] == 1
    code, output, _ = ran("stop")
    assert code == 0
    assert "0 processes have ended" in output
    assert not record_file.exists()


def test_stop_ends_the_cluster_and_forgets_it(
    ran: Ran, tmp_path: Path, record_file: Path, member: subprocess.Popen[bytes]
) -> None:
    write(record_file, record(tmp_path))
    code, output, _ = ran("stop")
    assert code == 0
    assert "stopping tiny-llama" in output
    assert "1 processes have ended" in output
    assert member.poll() is not None
    assert ran("stop")[1] == "archipelago: nothing was started from this directory\n"


def test_what_is_served_is_not_changed_to_another_cluster(
    ran: Ran, tmp_path: Path, record_file: Path, member: subprocess.Popen[bytes]
) -> None:
    models = (ServedModel(name="one", url="http://one:1"), ServedModel(name="two", url="http://two:2"))
    before = record(tmp_path, models=models, configured_cluster='{"kind":"local"}')
    write(record_file, before)
    code, output, errors = ran("serve", SIMULATED)
    assert (code, "changing what is served: one at http://one:1, two at http://two:2" in output) == (1, True)
    assert 'cluster: \'{"kind":"simulated",' in errors
    assert (
        'one, two is served on {"kind":"local"} from this directory; end that first with `archipelago stop`' in errors
    )
    assert read(record_file) == before


def test_the_ports_of_what_is_served_from_here_may_be_asked_for_again(
    ran: Ran, tmp_path: Path, record_file: Path, member: subprocess.Popen[bytes]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as ours:
        port = ours.getsockname()[1]
        write(record_file, record(tmp_path, models=(ServedModel(name="one", url=f"http://127.0.0.1:{port}"),)))
        assert ran("check", SIMULATED, "--port", port)[0] == 0
        member.kill()
        member.wait()
        assert ran("check", SIMULATED, "--port", port)[0] == 1, "somebody else's by now"


def test_a_ray_cluster_that_does_not_answer_is_a_message(
    ran: Ran, tmp_path: Path, record_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(ray, "init", refuse)
    with answering(200) as url:
        write(record_file, record(tmp_path, cluster=None, models=(ServedModel(name="tiny-llama", url=url),)))
        code, _, errors = ran("status")
        assert code == 1
        assert errors.startswith("archipelago: ")
        assert "127.0.0.2:1" in errors
        assert len(errors.splitlines()) == 1
        code, output, _ = ran("stop")
        assert code == 0
        assert "127.0.0.2:1 is gone" in output
    assert not record_file.exists()
