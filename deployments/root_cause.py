"""Why an engine did not start. vLLM's own exception only says "see root cause above": the cause is in its log. Pure."""

import re
from collections.abc import Iterable

# The end of a traceback, as EngineCore logs it: "(EngineCore pid=1) ERROR 11-22 23:46:19 [core.py:15] ValueError: ..."
# A worker that is a child of EngineCore logs its own; EngineCore then only says that it failed.
_CAUSE = re.compile(r"\((?P<who>EngineCore|Worker)[^)]*\) ERROR \S+ \S+ \[[^\]]*\] (?P<cause>[A-Za-z_][\w.]*: \S.*)")


def root_cause(log_lines: Iterable[str]) -> str | None:
    """The exception that a worker, else EngineCore, logged last, without its traceback; None when none did."""
    matches = [match for line in log_lines if (match := _CAUSE.match(line))]
    by_workers = [match for match in matches if match["who"] == "Worker"]
    causes = [match["cause"].rstrip() for match in by_workers or matches]
    return causes[-1] if causes else None
