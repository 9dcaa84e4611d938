"""Why a shape is better or worse than another, in plain sentences: `archipelago plan --explain tp16`."""

from placement.clusters.terrain import Region, groups
from placement.collectives import Group
from placement.cost.prediction import Load, Prediction, Question, predict
from placement.parts import PARTS
from placement.planning.option import Option
from placement.planning.plan import Plan
from placement.shape import Shape, misfits

_MS = 1e3
_GIB = 1024**3
_WORTH_SAYING_S = 5e-5  # a part that changes by less is not what decides


def explain(plan: Plan, shape: Shape, region: Region) -> list[str]:
    """Sentences about `shape` in `region`, against the plan's best option (or its closest one)."""
    reasons = misfits(shape, plan.question.model)
    if reasons:
        return [f"{shape} is impossible: {reason}" for reason in reasons]
    if shape.gpus > region.gpus:
        return [f"{shape} is impossible here: it needs {shape.gpus} GPUs; there are {region.gpus} {region.gpu.name}."]
    found = predict(plan.question, [(shape, region)])[0]
    if not found.fits:
        return [_does_not_fit(plan.question, found)]
    sentences = [_fits(found), *_links(shape, region)]
    other = plan.best or plan.closest
    if other is None or other.shape == shape:
        return [*sentences, *_option_sentences(other)]
    return [*sentences, *_against(found, other.prediction, min(other.load.running, found.loads[-1].running))]


def _does_not_fit(question: Question, found: Prediction) -> str:
    memory = found.memory
    return (
        f"{found.shape} does not hold {question.model.name}: a {found.region.gpu.name} would need "
        f"{memory.total_bytes / _GIB:.1f} GiB ({memory.weights_bytes / _GIB:.1f} weights, "
        f"{memory.activation_bytes / _GIB:.1f} activations, {memory.kv_bytes / _GIB:.1f} for one request's KV cache) "
        f"and has {memory.available_bytes / _GIB:.1f}."
    )


def _fits(found: Prediction) -> str:
    memory, dp = found.memory, found.shape.dp
    return (
        f"{found.shape} fits: {memory.weights_bytes / _GIB:.1f} GiB of weights on each of its {found.shape.gpus} GPUs "
        f"leave room for {found.room.tokens * dp:,} tokens of KV cache, {found.room.requests * dp} requests "
        "of this length."
    )


def _links(shape: Shape, region: Region) -> list[str]:
    found = groups(shape, region)
    sentences = []
    if shape.tp > 1:
        sentences.append(f"Its tensor-parallel groups of {shape.tp} {_where(found.tensor)}.")
    if shape.dp > 1:
        sentences.append(f"Its experts are spread over {found.experts.ranks} GPUs, which {_where(found.experts)}.")
    if shape.pp > 1:
        leaving = sum(count for pair, count in found.boundaries if pair.span != "island")
        sentences.append(f"{leaving} of its {shape.pp - 1} stage boundaries leave an island.")
    return sentences


def _where(group: Group) -> str:
    if group.span == "network":
        link = group.links.network
        return f"cross {group.machines} machines over {link.kind} at {link.bandwidth_bytes_per_s / 1e9:g} GB/s a GPU"
    if group.span == "machine" and group.links.machine is not None:
        return f"cross {group.islands} islands of one machine over {group.links.machine.kind}"
    return f"stay inside one island on {group.links.island.kind}"


def _option_sentences(option: Option | None) -> list[str]:
    return [] if option is None else [f"It is the plan's choice: {option.reason or 'it comes closest to the SLO.'}"]


def _against(found: Prediction, other: Prediction, running: float) -> list[str]:
    mine, theirs = (min(each.loads, key=lambda load: abs(load.running - running)) for each in (found, other))
    verdict = "slower" if mine.tpot_s > theirs.tpot_s else "faster"
    per_gpu = mine.running / mine.tpot_s / found.shape.gpus
    other_per_gpu = theirs.running / theirs.tpot_s / other.shape.gpus
    return [
        f"With {running:.0f} running requests a token takes {mine.tpot_s * _MS:.1f} ms against "
        f"{theirs.tpot_s * _MS:.1f} ms of {other.shape}: {_ratio(mine.tpot_s, theirs.tpot_s)} {verdict}.",
        *_changes(mine, theirs, other.shape),
        f"A prompt is answered after {mine.ttft_s * _MS:.0f} ms against {theirs.ttft_s * _MS:.0f} ms.",
        f"Each GPU then writes {per_gpu:.0f} tokens/s against {other_per_gpu:.0f}; "
        f"{mine.communication_share:.0%} of a step is communication, against {theirs.communication_share:.0%}.",
    ]


def _changes(mine: Load, theirs: Load, other: Shape) -> list[str]:
    """The parts of a step that differ most, gains and losses apart."""
    differences = {name: mine.parts_s[name] - theirs.parts_s[name] for name in mine.parts_s}
    sentences = []
    for word, sign in (("loses", 1), ("gains", -1)):
        parts = [
            f"{abs(change) * _MS:.1f} ms on {PARTS[name.removesuffix('_s')]} "
            f"({theirs.parts_s[name] * _MS:.1f} to {mine.parts_s[name] * _MS:.1f})"
            for name, change in sorted(differences.items(), key=lambda item: -sign * item[1])
            if sign * change > _WORTH_SAYING_S
        ]
        if parts:
            sentences.append(f"In a step it {word} {', '.join(parts[:3])} against {other}.")
    return sentences


def _ratio(mine: float, theirs: float) -> str:
    return f"{max(mine, theirs) / min(mine, theirs):.2f} times"
