"""Serve's log outlives what vLLM does to logging."""

import io
import logging
from collections.abc import Iterator
from logging.config import dictConfig
from logging.handlers import MemoryHandler

import pytest

from deployments.serve_log import serve_log_kept


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What Serve's logger writes, a message late."""
    text = io.StringIO()
    buffer = MemoryHandler(capacity=2, target=logging.StreamHandler(text))
    log = logging.getLogger("ray.serve")
    log.addHandler(buffer)
    yield text
    log.removeHandler(buffer)


def test_it_is_written_after_logging_was_configured(written: io.StringIO) -> None:
    log = logging.getLogger("ray.serve")
    with serve_log_kept():
        dictConfig({"version": 1, "disable_existing_loggers": False})
    for message in ("one", "two"):
        log.error(message)
    assert written.getvalue().split() == ["one", "two"]
