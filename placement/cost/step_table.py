"""The cost model on a grid of batches and prompt tokens: the step times that simulated replicas look up."""

from collections.abc import Mapping

import numpy as np

from placement.cost.prediction import MAX_RUNNING
from placement.cost.simulation_replica import StepTable
from placement.cost.step import last_stage_s, overhead_s, reading, step
from placement.cost.work import Array, Work
from placement.models.memory import STEP_TOKENS

# Neighbours differ by the square root of two: a straight line between them is then within 2 % of the cost model.
_POINTS_PER_DOUBLING = 2
_SHORTEST_CHUNK = 16
_MS = 1e-3
_US = 1e-6


def table_of(work: Work, factors: Mapping[str, Array], *, computed_share: float = 1.0) -> StepTable:
    """The table of one work, whose fields are numbers; each of `factors` has one entry.

    `computed_share` is the share of a prompt that is computed instead of found in the prefix cache.
    """
    decodes = _grid(1, MAX_RUNNING * work.dp)
    prompts = np.concatenate([[0.0], _grid(_SHORTEST_CHUNK, STEP_TOKENS * work.dp)])
    pairs = np.meshgrid(prompts, decodes, indexing="ij")
    cases = pairs[0].size
    rows = work._replace(
        all_reduce_s=np.broadcast_to(work.all_reduce_s, (cases, len(work.all_reduce_s))),
        exchange_s=np.broadcast_to(work.exchange_s, (cases, len(work.exchange_s))),
        send_s=np.broadcast_to(work.send_s, (cases, len(work.send_s))),
    )
    steps = step(rows, factors, pairs[1].ravel(), pairs[0].ravel())
    read_s = reading(steps, factors).total_s.reshape(len(prompts), len(decodes))
    added_s = read_s - read_s[0]
    overhead = overhead_s(work, factors)
    uneven_s = (work.pp - 1) * last_stage_s(work, factors, decodes)
    return StepTable(
        stages=int(work.pp),
        ranks=int(work.dp),
        decodes=tuple(decodes.tolist()),
        prompt_tokens=tuple(prompts.tolist()),
        decode_s=tuple((steps.total_s[: len(decodes)] + uneven_s).tolist()),
        added_s=tuple(tuple(row) for row in added_s.tolist()),
        # The first column stands for no decode: the one token is that which the prompt ends in (`prompt_alone_s`).
        prompt_only_s=tuple((read_s[:, 0] + overhead * (1 - factors["prefill"])).tolist()),
        http_s=float(factors["http"][0]) * _MS,
        request_s=float(factors["request"][0]) * _US,
        computed_share=computed_share,
    )


def _grid(least: float, most: float) -> Array:
    count = round(_POINTS_PER_DOUBLING * float(np.log2(most / least))) + 1
    return np.geomspace(least, most, count)
