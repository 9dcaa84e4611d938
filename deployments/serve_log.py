"""Serve's log, in a process in which vLLM configures logging too."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler


@contextmanager
def serve_log_kept() -> Iterator[None]:
    """Leave Serve's handlers as they were, whatever is done to logging inside.

    vLLM configures it by `dictConfig` when it is imported and when an engine is configured (vllm/logger.py), which
    closes every handler of the process (logging/config.py, `_clearExistingHandlers`). Serve's buffers, and then has no
    target: it keeps all messages and writes none. Worse, a Serve controller that was started again asks each replica
    where its log is, and takes the AttributeError for its end (ray/serve/_private/logging_utils.py:252).
    """
    buffers = [one for one in logging.getLogger("ray.serve").handlers if isinstance(one, MemoryHandler)]
    targets = [one.target for one in buffers]
    try:
        yield
    finally:
        for buffer, target in zip(buffers, targets, strict=True):
            buffer.setTarget(target)
