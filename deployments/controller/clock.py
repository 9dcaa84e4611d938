"""The controller's clock: a restart must find the same time, and a correction of the wall's must change nothing."""

import time
from collections.abc import Callable


def steady_clock(
    wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
) -> Callable[[], float]:
    """Seconds since 1970 as they were taken for when this was called, and evenly from then on.

    A wall clock that is set forward would end every start, drain and lease at once; one that is set back, none.
    """
    began_s = wall() - monotonic()
    return lambda: began_s + monotonic()
