"""What the planner's cost functions say each cut takes, from probes alone. Pure.

    tp2 across = tp2 inside + (2 * layers + 1) all-reduces + one all-gather of logits + 1 control message
    pp2 across = tp1        + one transfer of two activations                        + 3 control messages

The first term is a measured step that never crossed the link: it is all compute, and what shared memory costs inside an
island. Two stages together compute what one worker computes alone, and a single batch goes through them in turn. The
other terms come from `placement.collectives`, with the link described by transfers that were timed without a model.
Nothing is fitted on a step that crossed the link.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from deployments.crossover.namespaces import UNSHAPED
from deployments.crossover.record import ACROSS, WORKS, Cut, LinkProbe, Record, Work
from placement.clusters.hardware import Link, Links
from placement.collectives import Group, all_gather, all_reduce, send_recv

# The scheduler's order to the worker on the other island; with a pipeline the length and the description of the tensors
# that follow, and the sampled tokens on their way back. Small pickles: what they cost is their latency.
CONTROL_BYTES = 1024
CONTROL_MESSAGES: Mapping[Cut, int] = {Cut.TP2_ACROSS: 1, Cut.PP2_ACROSS: 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """What decides how many bytes cross the link."""

    layers: int
    hidden: int
    vocabulary: int
    value_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkModel:
    """The link at one speed as the planner describes it: for transfers from rank to rank, and for sums."""

    bandwidth_bytes_per_s: float
    transfers: Group
    reductions: Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One case: what was predicted and what was measured. `bits_per_s` is what the probe found, not what was set."""

    speed: str
    bits_per_s: float
    work: str
    cut: Cut
    predicted_s: float
    measured_s: float

    @property
    def error(self) -> float:
        """Relative; above 0 when the prediction was too slow."""
        return self.predicted_s / self.measured_s - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Which cut is faster at one speed for one kind of step: by the prediction, and by the clock."""

    speed: str
    work: str
    predicted: Cut
    measured: Cut


def link_model(probe: LinkProbe) -> LinkModel:
    """Describe the link by what the probes found at one speed."""
    smallest, largest = min(probe.send_recv_s), max(probe.send_recv_s)
    small_s, large_s = probe.send_recv_s[smallest], probe.send_recv_s[largest]
    bandwidth = (largest - smallest) / (large_s - small_s)
    link = Link(kind="ethernet", bandwidth_bytes_per_s=bandwidth, latency_s=small_s, source=f"probe, {probe.speed}")
    # For one pair of GPUs the planner takes a quarter off the line rate. This link was probed by one pair.
    line_rate = bandwidth * send_recv(largest, _pair(link)).time_s / large_s
    return LinkModel(
        bandwidth_bytes_per_s=bandwidth,
        transfers=_pair(replace(link, bandwidth_bytes_per_s=line_rate)),
        reductions=_pair(link),
    )


def _pair(link: Link) -> Group:
    """One rank on each of two islands; the link inside them is used by nobody."""
    return Group(ranks=2, islands=2, machines=2, links=Links(island=link, network=link))


def communication_s(cut: Cut, work: Work, size: ModelSize, link: LinkModel) -> float:
    """Seconds that one step of a cut across the islands spends on the link."""
    activation_bytes = work.step_tokens * size.hidden * size.value_bytes
    control_s = CONTROL_MESSAGES[cut] * send_recv(CONTROL_BYTES, link.transfers).time_s
    if cut is Cut.PP2_ACROSS:  # the hidden state and the residual
        return control_s + send_recv(2 * activation_bytes, link.transfers).time_s
    logits_bytes = work.requests * size.vocabulary * size.value_bytes
    all_reduces_s = (2 * size.layers + 1) * all_reduce(activation_bytes, link.reductions).time_s
    return control_s + all_reduces_s + all_gather(logits_bytes, link.reductions).time_s


def compare(record: Record, size: ModelSize) -> list[Comparison]:
    """Every measured step across the islands beside its prediction."""
    links = {probe.speed: link_model(probe) for probe in record.links}
    found = []
    for work in WORKS:
        compute_s = {
            Cut.TP2_ACROSS: record.step_s(Cut.TP2_INSIDE, UNSHAPED, work.name),
            Cut.PP2_ACROSS: record.step_s(Cut.TP1, UNSHAPED, work.name),
        }
        for speed, link in links.items():
            for cut in ACROSS:
                comparison = Comparison(
                    speed=speed,
                    bits_per_s=link.bandwidth_bytes_per_s * 8,
                    work=work.name,
                    cut=cut,
                    predicted_s=compute_s[cut] + communication_s(cut, work, size, link),
                    measured_s=record.step_s(cut, speed, work.name),
                )
                found.append(comparison)
    return found


def verdicts(comparisons: Sequence[Comparison]) -> Iterator[Verdict]:
    """Who is faster, for each speed and kind of step."""
    for tensor, pipeline in _pairs(comparisons):
        yield Verdict(
            speed=tensor.speed,
            work=tensor.work,
            predicted=tensor.cut if tensor.predicted_s < pipeline.predicted_s else pipeline.cut,
            measured=tensor.cut if tensor.measured_s < pipeline.measured_s else pipeline.cut,
        )


def crossing_bits_per_s(comparisons: Sequence[Comparison], work: str, *, measured: bool) -> float | None:
    """The link speed at which both cuts take the same time; None when one is faster at every speed.

    Between the two speeds where the order changes, the logarithm of the ratio of times is taken to be linear in the
    logarithm of the speed. Of several changes (noise) the one at the highest speed counts.
    """
    ratios = sorted(
        (
            (math.log(tensor.bits_per_s), math.log(_seconds(tensor, measured) / _seconds(pipeline, measured)))
            for tensor, pipeline in _pairs(comparisons)
            if tensor.work == work
        ),
        reverse=True,
    )
    for (fast, ratio), (slow, slower_ratio) in pairwise(ratios):
        if ratio < 0 <= slower_ratio:
            return math.exp(fast + (slow - fast) * ratio / (ratio - slower_ratio))
    return None


def _seconds(comparison: Comparison, measured: bool) -> float:
    return comparison.measured_s if measured else comparison.predicted_s


def _pairs(comparisons: Sequence[Comparison]) -> Iterator[tuple[Comparison, Comparison]]:
    """Both cuts of each case: tensor parallel, pipeline."""
    by_case = {(one.speed, one.work, one.cut): one for one in comparisons}
    for one in comparisons:
        if one.cut is Cut.TP2_ACROSS:
            yield one, by_case[one.speed, one.work, Cut.PP2_ACROSS]
