"""The Hugging Face hub, asked for the small files that say what a model is: once, and not for long."""

import logging
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

from placement.given import HubError

CONFIG = "config.json"
MODULES = "modules.json"  # of Sentence Transformers; most models have none


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where the models of the hub are kept on this machine."""
    home = environ.get("HF_HOME") or Path(environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()


def fetch(repo: str, environ: Mapping[str, str], *, revision: str | None, token: str | None) -> None:
    """Put both files of a model into the local cache, and tell the user, who may have to wait for them.

    Raises `HubError`, where the hub does not answer after `HF_HUB_ETAG_TIMEOUT` seconds, which are 10 by default.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    endpoint, cache = environ.get("HF_ENDPOINT"), cache_folder(environ)
    address = endpoint or constants.ENDPOINT
    name = urlsplit(address).netloc or address
    if constants.is_offline_mode():
        raise HubError(f"it is not in {cache}, and {name} is not asked: HF_HUB_OFFLINE is set")
    sys.stderr.write(f"archipelago: asking {name} for the config of {repo}\n")
    # It would say of each of its tries that the hub does not answer.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    url, wait_s = hf_hub_url(repo, CONFIG, revision=revision, endpoint=endpoint), constants.HF_HUB_ETAG_TIMEOUT
    # A download that finds nothing tries seven times, for up to a minute each.
    if error := _failure(lambda: get_hf_file_metadata(url, token=token, timeout=wait_s), wait_s):
        raise HubError(_reason(error, name, wait_s)) from error

    def download(file: str) -> None:
        hf_hub_download(repo, file, revision=revision, token=token, endpoint=endpoint, cache_dir=cache)

    try:
        download(CONFIG)
        with suppress(EntryNotFoundError):
            download(MODULES)
    except (OSError, ValueError, EntryNotFoundError) as error:
        raise HubError(_first_line(error)) from error


def _failure(ask: Callable[[], object], wait_s: float) -> Exception | None:
    """What `ask` raises, a TimeoutError where it takes longer; it may go on then, until the process ends."""
    failure: Future[Exception | None] = Future()

    def run() -> None:
        try:
            ask()
        except Exception as error:  # noqa: BLE001  # those of the hub's HTTP library, which differs by version
            failure.set_result(error)
        else:
            failure.set_result(None)

    # Its own timeout is for each address that a name has, and not for finding them.
    Thread(target=run, daemon=True).start()
    try:
        return failure.result(wait_s)
    except TimeoutError as error:
        return error


def _reason(error: Exception, name: str, wait_s: float) -> str:
    from huggingface_hub import errors

    match error:
        case errors.GatedRepoError():
            return f"{name} shows it only to whom its owners let; set HF_TOKEN to the token of one"
        case errors.RepositoryNotFoundError():
            return f"{name} has no such model, or shows it only with a token (HF_TOKEN)"
        case errors.RevisionNotFoundError():
            return f"{name} has no such revision of it"
        case errors.EntryNotFoundError():
            return f"{name} has it, but without a {CONFIG}"
        case errors.HfHubHTTPError():
            return f"{name} says: {_first_line(error)}"
        case TimeoutError():
            return f"{name} does not answer within {wait_s:g} s"
        case _:
            return f"{name} does not answer: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
