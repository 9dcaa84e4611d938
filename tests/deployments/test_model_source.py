import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from deployments.config import ModelConfig
from deployments.config_messages import ConfigError
from deployments.model_source import download_config, find_config, resolve_source
from deployments.tiny_models import hf_config
from placement.given import HubError

CONFIG = json.dumps(hf_config("tiny-moe")).encode()
MODULES = json.dumps([{"type": "sentence_transformers.models.Pooling"}]).encode()
FILES = {
    "/acme/moe/resolve/main/config.json": CONFIG,
    "/acme/embedder/resolve/main/config.json": CONFIG,
    "/acme/embedder/resolve/main/modules.json": MODULES,
}
REFUSED = {"/acme/gated/": (403, "GatedRepo"), "/acme/": (404, "EntryNotFound"), "/broken/": (500, "")}


class Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as small files need: a few of them are there, and all else is refused."""

    def do_HEAD(self) -> None:
        file = FILES.get(self.path)
        default = (404, "RevisionNotFound") if "/old/" in self.path else (401, "RepoNotFound")
        status, code = next((why for start, why in REFUSED.items() if self.path.startswith(start)), default)
        self.send_response(status if file is None else 200)
        self.send_header("Content-Length", str(len(file or b"")))
        self.send_header("X-Repo-Commit", "c" * 40)
        if file is None:
            self.send_header("X-Error-Code", code)
        else:
            self.send_header("ETag", f'"{hash(file)}"')
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(FILES[self.path])

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment with an empty cache, whose hub is the one above."""
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path)}
        server.shutdown()
        thread.join()


def hub_name(environ: dict[str, str]) -> str:
    return environ["HF_ENDPOINT"].removeprefix("http://")


def why_not(model: ModelConfig, environ: dict[str, str]) -> str:
    """What a refusal says in brackets; the rest of it is always the same."""
    with pytest.raises(ConfigError) as caught:
        download_config(model, environ)
    start = f"models[0].source: {model.source!r} is not accepted; its config.json cannot be downloaded ("
    end = "); give another Hugging Face id, a directory, or one of tiny-llama, tiny-moe, bench-100m"
    (line,) = caught.value.problems
    assert line.startswith(start)
    assert line.endswith(end)
    return line.removeprefix(start).removesuffix(end)


def test_a_downloaded_config_is_found_in_the_cache(environ: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    model = ModelConfig(source="acme/moe")
    assert resolve_source(model, environ).hf_config is None
    download_config(model, environ)
    assert f"archipelago: asking {hub_name(environ)} for the config of acme/moe\n" in capsys.readouterr().err
    found = resolve_source(model, environ)
    assert (found.hf_config, found.location, found.embeds) == (hf_config("tiny-moe"), "acme/moe", False)


def test_a_downloaded_model_that_embeds_is_known_as_one(environ: dict[str, str]) -> None:
    model = ModelConfig(source="acme/embedder")
    download_config(model, environ)
    assert resolve_source(model, environ).embeds


@pytest.mark.parametrize(
    ("source", "revision", "why"),
    [
        ("nobody/none", None, "HUB has no such model, or shows it only with a token (HF_TOKEN)"),
        ("nobody/none", "old", "HUB has no such revision of it"),
        ("acme/weights", None, "HUB has it, but without a config.json"),
        ("acme/gated", None, "HUB shows it only to whom its owners let; set HF_TOKEN to the token of one"),
    ],
)
def test_a_model_the_hub_does_not_give(source: str, revision: str | None, why: str, environ: dict[str, str]) -> None:
    model = ModelConfig(source=source, engine={"revision": revision} if revision else {})
    assert why_not(model, environ) == why.replace("HUB", hub_name(environ))


def test_a_hub_that_fails_is_asked_once(environ: dict[str, str]) -> None:
    begun_s = time.monotonic()
    assert why_not(ModelConfig(source="broken/one"), environ).startswith(f"{hub_name(environ)} says: Server error '500")
    assert time.monotonic() - begun_s < 3  # the seconds between tries would be 23


def test_a_hub_that_nobody_listens_at(tmp_path: Path) -> None:
    environ = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    why = why_not(ModelConfig(source="acme/moe"), environ)
    assert why == "127.0.0.1:9 does not answer: [Errno 111] Connection refused"


def test_a_hub_without_an_answer_is_waited_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        name = f"127.0.0.1:{silent.getsockname()[1]}"
        begun_s = time.monotonic()
        why = why_not(ModelConfig(source="acme/moe"), {"HF_ENDPOINT": f"http://{name}", "HF_HOME": str(tmp_path)})
    assert why in (f"{name} does not answer within 1 s", f"{name} does not answer: timed out")
    assert time.monotonic() - begun_s < 3


def test_an_endpoint_that_is_no_address(tmp_path: Path) -> None:
    why = why_not(ModelConfig(source="acme/moe"), {"HF_ENDPOINT": "mirror", "HF_HOME": str(tmp_path)})
    assert why.startswith("mirror does not answer: Request URL is missing an 'http://' or 'https://' protocol")


def test_a_hub_that_must_not_be_asked(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cache, name = Path(environ["HF_HOME"], "hub"), hub_name(environ)
    why = why_not(ModelConfig(source="acme/moe"), environ)
    assert why == f"it is not in {cache}, and {name} is not asked: HF_HUB_OFFLINE is set"
    assert capsys.readouterr().err == ""


def test_a_config_is_found_or_the_hub_says_why_not(environ: dict[str, str]) -> None:
    assert find_config("acme/moe", environ) == hf_config("tiny-moe")
    assert find_config("tiny-llama", environ) == hf_config("tiny-llama")
    assert find_config("no/hub/id", environ) is None
    with pytest.raises(HubError, match="has no such model"):
        find_config("nobody/none", environ)


@pytest.mark.parametrize("source", ["~nobody-has-this-name/model", "x" * 5000, "\0", "a b", "org/name/more"])
def test_what_cannot_be_a_model(source: str, environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"models\[0\]\.source: '.*' is not accepted; |\.\.\. is not accepted"):
        resolve_source(ModelConfig(source=source, name="m"), environ)
