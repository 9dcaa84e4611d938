"""What is noted of every request while the fleet runs, moves from replica to replica included."""

import math
from dataclasses import dataclass, field

from autoscaling.simulation.traces import Trace
from placement.cost.simulation_replica import Requests

NOBODY = -1
REFUSED = -2


@dataclass(slots=True, kw_only=True)
class Records:
    """`requests` are as the replicas see them: one that was moved has the tokens it was given as part of its prompt.

    `units` has the number of the replica each was last sent to, `NOBODY` or `REFUSED`. `began_s` has the first token
    of those that were moved after it.
    """

    trace: Trace
    arrivals_s: list[float]
    requests: Requests
    units: list[int]
    began_s: dict[int, float] = field(default_factory=dict)
    moved_s: dict[int, float] = field(default_factory=dict)
    moved_requests: int = 0
    recomputed_tokens: int = 0
    longest_stall_s: float = 0.0

    def first_s(self, index: int) -> float:
        """When the client got the first token, infinite if never."""
        return self.began_s.get(index, self.requests.first_s[index])

    def move(self, index: int, given: int, at_s: float) -> None:
        """The request has left its replica with `given` tokens since it came there; what follows must compute them."""
        requests = self.requests
        self.note_stall(index)
        self.moved_requests += 1
        self.moved_s[index] = at_s
        self.units[index] = NOBODY
        if given:
            self.began_s.setdefault(index, requests.first_s[index])
            requests.prompts[index] += given
            requests.answers[index] -= given
            self.recomputed_tokens += int(requests.prompts[index])

    def note_stall(self, index: int) -> None:
        """How long a stream that was moved stood still, once it has gone on."""
        if index in self.moved_s and index in self.began_s:
            stall_s = self.requests.first_s[index] - self.moved_s[index]
            self.longest_stall_s = max(self.longest_stall_s, stall_s)


def records_of(trace: Trace) -> Records:
    """Nothing has happened yet."""
    count = len(trace)
    return Records(
        trace=trace,
        arrivals_s=trace.arrivals_s.tolist(),
        requests=Requests(
            prompts=trace.input_tokens.tolist(),
            answers=trace.output_tokens.tolist(),
            sent_s=[math.inf] * count,
            first_s=[math.inf] * count,
            ended_s=[math.inf] * count,
        ),
        units=[NOBODY] * count,
    )
