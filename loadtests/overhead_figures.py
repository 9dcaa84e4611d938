"""From samples to figures, and from the figures of two servers to their ratio.

tokens/s  all output tokens / (end of the last request - start of the first)
TTFT      from sending a request to its first token
TPOT      (last token - first token) / (tokens - 1), of one request
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import median

import numpy as np

from loadtests.stream_client import Sample


class FailedRequestsError(Exception):
    """Requests failed, so the figures of that run would mean nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One server under one load; percentiles are over its requests."""

    tokens_per_s: float
    ttft_p50_s: float
    ttft_p95_s: float
    tpot_p50_s: float


METRICS = tuple(field.name for field in fields(Figures))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Median over median of two servers, with the lowest and highest ratio of a single round."""

    of_medians: float
    lowest: float
    highest: float


def figures_of(samples: Sequence[Sample], output_tokens: int) -> Figures:
    """Sum up a run in which every request was to give ``output_tokens``; at least two.

    Raises:
        FailedRequestsError: one gave an error or another number of tokens.
    """
    failures = [failure for sample in samples if (failure := _failure(sample, output_tokens)) is not None]
    if failures:
        raise FailedRequestsError(f"{len(failures)} of {len(samples)} requests failed; the first: {failures[0]}")
    ttfts_s = [sample.ttft_s for sample in samples if sample.ttft_s is not None]
    tpots_s = [sample.tpot_s for sample in samples if sample.tpot_s is not None]
    wall_s = max(sample.end_s for sample in samples) - min(sample.sent_s for sample in samples)
    return Figures(
        tokens_per_s=sum(sample.tokens for sample in samples) / wall_s,
        ttft_p50_s=quantile(ttfts_s, 0.5),
        ttft_p95_s=quantile(ttfts_s, 0.95),
        tpot_p50_s=quantile(tpots_s, 0.5),
    )


def _failure(sample: Sample, output_tokens: int) -> str | None:
    if sample.error is not None:
        return sample.error
    if sample.tokens != output_tokens:
        return f"{sample.tokens} tokens instead of {output_tokens}"
    return None if sample.first_s is not None else "tokens were reported but no event carried one"


def quantile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of the values do not exceed, interpolated between neighbours."""
    return float(np.quantile(values, share))


def medians(rounds: Sequence[Figures]) -> Figures:
    """The median over rounds, figure by figure."""
    return Figures(**{metric: median(getattr(figures, metric) for figures in rounds) for metric in METRICS})


def ratios(ours: Sequence[Figures], peer: Sequence[Figures]) -> dict[str, Ratio]:
    """Compare figure by figure; the i-th of both belong to one round."""
    compared: dict[str, Ratio] = {}
    for metric in METRICS:
        pairs = [(getattr(a, metric), getattr(b, metric)) for a, b in zip(ours, peer, strict=True)]
        by_round = [a / b for a, b in pairs]
        compared[metric] = Ratio(
            of_medians=median(a for a, _ in pairs) / median(b for _, b in pairs),
            lowest=min(by_round),
            highest=max(by_round),
        )
    return compared
