"""How fast one replica of a shape is, for the lengths that requests have at the time.

A step table is made for mean lengths, as everywhere in `placement`. The fleet uses that of the lengths of the last
window, in buckets of 10 %: at the edge of a bucket a decode step of a 70B model (tp4, 32 running) is off by 0.5 % with
prompts of 2,000 tokens and by 2.3 % with 13,400. That answers under way are longer than the mean adds 0.3 and 4 %.
What a prompt costs is taken at the mean as well, although its attention grows with the square of its length: where
lengths are far apart, prompts cost too little (1 to 2 % on the Azure traces of 2023, 26 % on Mooncake's conversations).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from autoscaling.capacity.site import Site
from placement import Lengths, Shape, Workload, kv_room
from placement.cost.prediction import MAX_RUNNING
from placement.cost.simulation import step_table
from placement.cost.simulation_replica import StepTable, slowed
from placement.models.memory import STEP_TOKENS

_BUCKET = math.log(1.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One replica's speed. `room_tokens` and `max_running` are of one data-parallel rank.

    `prompt_token_s` passes for a token of a prompt on a replica that reads prompts only, `answer_token_s` for a token
    of an answer when the batch is full: what the router weighs load by.
    """

    table: StepTable
    room_tokens: float
    prompt_token_s: float
    answer_token_s: float
    max_running: int = MAX_RUNNING


EngineFor = Callable[[Shape, float, float], Engine]  # shape, mean tokens of prompts, of answers


def engine_of(
    table: StepTable, *, room_tokens: float, input_tokens: float, output_tokens: float, max_running: int = MAX_RUNNING
) -> Engine:
    """The engine of a table, for requests of these mean lengths."""
    most = STEP_TOKENS * table.ranks
    full = table.ranks * max(1.0, min(max_running, room_tokens / (input_tokens + output_tokens / 2)))
    return Engine(
        table=table,
        room_tokens=room_tokens,
        prompt_token_s=table.pass_s(0, most) / table.stages / most * table.computed_share,
        answer_token_s=table.pass_s(full, 0) / full,
        max_running=max_running,
    )


def engines_of(site: Site, truth: Mapping[Shape, float], prefix_hit_rate: float) -> EngineFor:
    """The engines of `site`, their passes as much longer as `truth` says; each is made once."""

    @cache
    def made(shape: Shape, input_bucket: int, output_bucket: int) -> Engine:
        workload = Workload(
            input_tokens=Lengths(mean_tokens=max(1.0, math.exp(input_bucket * _BUCKET))),
            output_tokens=Lengths(mean_tokens=max(1.0, math.exp(output_bucket * _BUCKET))),
            prefix_hit_rate=prefix_hit_rate,
        )
        question, region = site.question(workload), site.region_of(shape)
        room = kv_room(
            site.model,
            shape,
            region.gpu,
            context_tokens=question.traffic.context_tokens,
            kv_bytes_per_element=site.kv_bytes_per_element,
            utilisation=site.utilisation,
        )
        return engine_of(
            slowed(step_table(question, shape, region), truth.get(shape, 1.0)),
            room_tokens=room.tokens,
            input_tokens=workload.input_tokens.mean_tokens,
            output_tokens=workload.output_tokens.mean_tokens,
        )

    def engine(shape: Shape, input_tokens: float, output_tokens: float) -> Engine:
        return made(shape, round(math.log(input_tokens) / _BUCKET), round(math.log(output_tokens) / _BUCKET))

    return engine
