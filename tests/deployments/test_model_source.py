import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from deployments.config import ModelConfig
from deployments.config_messages import ConfigError
from deployments.model_source import download_config, resolve_source
from deployments.tiny_models import hf_config

CONFIG = json.dumps(hf_config("tiny-moe")).encode()


class Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as one file needs: acme/moe has a config.json, nothing else exists."""

    def do_HEAD(self) -> None:
        is_found = self.path == "/acme/moe/resolve/main/config.json"
        self.send_response(200 if is_found else 404)
        self.send_header("Content-Length", str(len(CONFIG) if is_found else 0))
        if is_found:
            self.send_header("ETag", '"1"')
            self.send_header("X-Repo-Commit", "c" * 40)
        else:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(CONFIG)

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


def test_a_downloaded_config_is_found_in_the_cache(environ: dict[str, str]) -> None:
    model = ModelConfig(source="acme/moe")
    assert resolve_source(model, environ).hf_config is None
    download_config(model, environ)
    assert resolve_source(model, environ).hf_config == hf_config("tiny-moe")
    assert resolve_source(model, environ).location == "acme/moe"


def test_a_model_the_hub_does_not_have(environ: dict[str, str]) -> None:
    with pytest.raises(
        ConfigError,
        match=r"models\[0\]\.source: 'acme/none' is not accepted; its config.json cannot be downloaded \(404",
    ):
        download_config(ModelConfig(source="acme/none"), environ)


@pytest.mark.parametrize("source", ["~nobody-has-this-name/model", "x" * 5000, "\0", "a b", "org/name/more"])
def test_what_cannot_be_a_model(source: str, environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"models\[0\]\.source: '.*' is not accepted; |\.\.\. is not accepted"):
        resolve_source(ModelConfig(source=source, name="m"), environ)
