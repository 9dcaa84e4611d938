"""Why an engine did not start. vLLM's own exception only says "see root cause above": the cause is in its log. Pure."""

import re
from collections.abc import Iterable

# The end of a traceback, as EngineCore logs it: "(EngineCore pid=1) ERROR 11-22 23:46:19 [core.py:15] ValueError: ..."
_CAUSE = re.compile(r"\(EngineCore[^)]*\) ERROR \S+ \S+ \[[^\]]*\] (?P<cause>[A-Za-z_][\w.]*: \S.*)")


def root_cause(log_lines: Iterable[str]) -> str | None:
    """The exception that EngineCore logged last, without its traceback; None when it logged none."""
    matches = (_CAUSE.match(line) for line in log_lines)
    causes = [match["cause"].rstrip() for match in matches if match]
    return causes[-1] if causes else None
