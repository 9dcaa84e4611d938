"""Keys, quotas, TLS and Ray's token, from `archipelago keys add` to the engine, over the real thing."""

import os
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from access_builders import certificate

from deployments import local_cluster, run_record

pytestmark = pytest.mark.engine

Run = Callable[..., subprocess.CompletedProcess[str]]
CONFIG = """\
models:
  - source: tiny-llama
    shape: tp1
    engine:
      dtype: float32
      enforce_eager: true
      max_model_len: 512
      max_num_seqs: 4
      block_size: 32
      kv_cache_memory_bytes: 67108864
cluster: {{kind: simulated, islands: 1, gpus_per_island: 1}}
endpoint:
  port: {port}
  api_keys: users.json
  tls: {{certificate: {tls.certificate}, key: {tls.key}}}
control:
  port: {control_port}
  api_keys: operators.json
  tls: {{certificate: {tls.certificate}, key: {tls.key}}}
"""
MESSAGE = {"model": "tiny-llama", "messages": [{"role": "user", "content": "Hello"}], "ignore_eos": True}


@pytest.fixture(scope="module")
def archipelago(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a command with a state directory of its own."""
    directory = tmp_path_factory.mktemp("access")
    env = os.environ | {run_record.STATE_DIR_ENV: str(directory / "state"), "COLUMNS": "120"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [Path(sys.executable).with_name("archipelago"), *arguments]
        return subprocess.run(command, env=env, cwd=directory, capture_output=True, text=True, timeout=400)

    run.directory = directory  # type: ignore[attr-defined]
    return run


@pytest.fixture(scope="module")
def directory(archipelago: Run) -> Path:
    """Where the commands run."""
    found: Path = archipelago.directory  # type: ignore[attr-defined]
    return found


@pytest.fixture(scope="module")
def keys(archipelago: Run) -> dict[str, str]:
    """Keys by name."""
    made = {
        "alice": ("--file", "users.json"),
        "reader": ("--file", "operators.json", "--role", "read"),
        "operator": ("--file", "operators.json", "--role", "operate"),
    }
    return {name: archipelago("keys", "add", name, *options).stdout.strip() for name, options in made.items()}


@pytest.fixture(scope="module")
def system(archipelago: Run, directory: Path, keys: dict[str, str]) -> Iterator[run_record.RunRecord]:
    """What is served."""
    tls = certificate(directory)
    ports = {"port": local_cluster.free_port(), "control_port": local_cluster.free_port()}
    (directory / "config.yaml").write_text(CONFIG.format(tls=tls, **ports))
    try:
        served = archipelago("serve", "config.yaml")
        assert served.returncode == 0, served.stderr
        record = run_record.read(directory / "state" / "run.json")
        assert record is not None
        yield record
    finally:
        assert archipelago("stop").returncode == 0


@pytest.fixture(scope="module")
def client(system: run_record.RunRecord, directory: Path) -> Iterator[httpx.Client]:
    """A client of the endpoint that shows no key by itself."""
    trusted = ssl.create_default_context(cafile=str(directory / "server.pem"))
    url = system.models[0].url.replace("127.0.0.1", "localhost")
    with httpx.Client(base_url=url, verify=trusted, timeout=120, trust_env=False) as http:
        yield http


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_who_has_a_key_is_answered_and_nobody_else(client: httpx.Client, keys: dict[str, str]) -> None:
    body = MESSAGE | {"max_tokens": 4}
    assert client.post("/v1/chat/completions", json=body, headers=bearer(keys["alice"])).status_code == 200
    message = body | {"max_tokens": 4}
    assert client.post("/v1/messages", json=message, headers={"x-api-key": keys["alice"]}).status_code == 200
    for path in ("/v1/chat/completions", "/v1/messages", "/tokenize"):
        assert client.post(path, json=body).status_code == 401
        assert client.post(path, json=body, headers=bearer(keys["operator"])).status_code == 401
    for path, status in (("/health", 200), ("/metrics", 401), ("/version", 401), ("/v1/models", 401)):
        assert client.get(path).status_code == status


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_are_charged_as_the_engine_counts_them(
    stream: bool, client: httpx.Client, archipelago: Run, keys: dict[str, str]
) -> None:
    name = f"counted-{stream}"
    key = archipelago("keys", "add", name, "--file", "users.json", "--tokens-per-minute", "20").stdout.strip()
    body = MESSAGE | {"max_tokens": 64, "stream": stream}
    answers = []
    while not answers or answers[-1].status_code == 401:  # until the ingress has seen the new key
        answers.append(client.post("/v1/chat/completions", json=body, headers=bearer(key)))
    assert answers[-1].status_code == 200
    refused = client.post("/v1/chat/completions", json=body, headers=bearer(key))
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1  # more than 44 tokens are overdrawn, and one comes every 3 s
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert client.post("/v1/chat/completions", json=MESSAGE, headers=bearer(keys["alice"])).status_code == 200


def test_the_control_api_has_keys_and_roles_of_its_own(system: run_record.RunRecord, keys: dict[str, str]) -> None:
    with httpx.Client(base_url=system.control_url, verify=False, timeout=30, trust_env=False) as http:
        lease = {"holder": "test", "ttl_s": 1.0}
        for name, read, write in (("alice", 401, 401), ("reader", 200, 403), ("operator", 200, 200)):
            assert http.get("/v1/fleet", headers=bearer(keys[name])).status_code == read
            assert http.put("/v1/leases/x", json=lease, headers=bearer(keys[name])).status_code == write


def test_the_commands_find_the_control_api_over_tls(archipelago: Run, system: run_record.RunRecord) -> None:
    assert system.control_url.startswith("https://")
    for command in ("fleet", "status"):
        done = archipelago(command)
        assert done.returncode == 0, done.stderr
        assert "tiny-llama" in done.stdout


def test_no_secret_is_in_a_process_list_an_environment_or_a_log(
    system: run_record.RunRecord, directory: Path, keys: dict[str, str]
) -> None:
    assert system.cluster is not None
    ray_token = (Path(system.cluster.temp_dir) / local_cluster.TOKEN_FILE).read_text()
    secrets = [*keys.values(), ray_token, (directory / "state" / "control-token").read_text()]
    members = list(local_cluster.processes(system.cluster))
    assert members
    for process in members:
        try:
            shown = " ".join((*process.cmdline(), *map(str, process.environ().items())))
        except psutil.Error:
            continue
        assert not [secret for secret in secrets if secret in shown]
    for path in (Path(system.cluster.temp_dir) / "session_latest" / "logs").rglob("*"):
        if path.is_file():
            text = path.read_text(errors="replace")
            assert not [secret for secret in secrets if secret in text], path


def test_without_its_token_nobody_joins_the_cluster(system: run_record.RunRecord) -> None:
    code = f"import ray; ray.init(address={system.ray_address!r}, log_to_driver=False); print('joined')"
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    stranger = subprocess.Popen(
        [sys.executable, "-c", code], env=env | {"RAY_AUTH_MODE": "disabled"}, stdout=subprocess.PIPE, text=True
    )
    try:
        output, _ = stranger.communicate(timeout=20)
    except subprocess.TimeoutExpired:  # Ray tries again for a minute
        stranger.kill()
        output, _ = stranger.communicate()
    assert "joined" not in output
