"""Why an option ranks where it does, and what binds when none will do, in sentences with their numbers."""

from placement.cost.prediction import Load
from placement.layout import Infeasible
from placement.planning.option import Option
from placement.workload import Slo

_MS = 1e3
PART_NAMES = {
    "overhead_s": "per-step overhead",
    "matrices_s": "matrix products and weight reads",
    "experts_s": "experts",
    "kv_reads_s": "KV cache reads",
    "prefill_attention_s": "attention of prompts",
    "all_reduce_s": "all-reduces",
    "exchange_s": "expert exchange",
    "send_s": "pipeline sends",
}


def won_sentence(option: Option, slo: Slo, *, is_sized: bool, by_money: bool) -> str:
    """Why the first option is the first. `is_sized` is whether the workload says how much is asked."""
    cost = f"cheapest at {option.usd_per_hour:.2f} USD per hour" if by_money else f"cheapest at {option.gpus} GPUs"
    if not is_sized:
        cost = f"most output per {'USD' if by_money else 'GPU'}, {option.tokens_per_s_per_gpu:.0f} tokens/s per GPU"
    kept = "meets the SLO" if slo.ttft_s or slo.tpot_s else "no SLO was given"
    return f"{cost}: {_replicas(option)}, {_speed(option.load)}; {kept}."


def lost_sentence(option: Option, best: Option) -> str:
    """What the winner does better, by the first thing that decides."""
    ours, theirs = option.usd_per_hour, best.usd_per_hour
    if ours is not None and theirs is not None and ours > theirs:
        return f"costs {ours:.2f} USD per hour against {theirs:.2f}: {_less(option, best)}."
    if option.gpus > best.gpus:
        return f"needs {option.gpus} GPUs against {best.gpus}: {_less(option, best)}."
    gpus = "as many GPUs" if option.gpus == best.gpus else f"{option.gpus} GPUs against {best.gpus}"
    return f"{gpus}, but {_less(option, best)}."


def binding_sentence(option: Option, slo: Slo, ttft_s: float, tpot_s: float) -> Infeasible:
    """Which part of the SLO the closest option misses, what that time is made of, and the SLO that it would meet."""
    p = f"p{slo.percentile * 100:g}"
    late = slo.ttft_s is not None and ttft_s > slo.ttft_s
    slow = slo.tpot_s is not None and tpot_s > slo.tpot_s
    missed = []
    if late and slo.ttft_s is not None:
        missed.append(f"{p} TTFT {ttft_s * _MS:.0f} ms against {slo.ttft_s * _MS:g} ms")
    if slow and slo.tpot_s is not None:
        missed.append(
            f"TPOT {tpot_s * _MS:.1f} ms against {slo.tpot_s * _MS:g} ms, of which {largest_parts(option.load)}"
        )
    wanted = []
    if late:
        wanted.append(f"TTFT of {ttft_s * _MS:.0f} ms")
    if slow:
        wanted.append(f"TPOT of {tpot_s * _MS:.1f} ms")
    return Infeasible(
        constraint=f"no shape on this cluster meets the SLO; {option.shape} comes closest with {' and '.join(missed)}",
        nearest=f"an SLO with {' and '.join(wanted)}, faster GPUs, or weights in a smaller format",
    )


def tails_sentence(option: Option, slo: Slo) -> Infeasible:
    """What share of requests is late although means are not, whatever the number of replicas."""
    kept = (option.tails.attainment if option.tails else None) or 0.0
    return Infeasible(
        constraint=(
            f"no shape on this cluster meets the SLO for {slo.percentile * 100:g}% of requests; {option.shape} comes "
            f"close with {kept:.1%} in {option.replicas} replicas, {_speed(option.load)} on average"
        ),
        nearest="a lower percentile, a longer TTFT or TPOT, or faster GPUs",
    )


def largest_parts(load: Load, count: int = 2) -> str:
    """The parts that take most of a decode step, with milliseconds."""
    parts = sorted(load.parts_s.items(), key=lambda part: -part[1])[:count]
    return " and ".join(f"{PART_NAMES[name]} {seconds * _MS:.1f} ms" for name, seconds in parts)


def _less(option: Option, best: Option) -> str:
    """One replica against one replica, per GPU."""
    mine, other = option.tokens_per_s_per_gpu, best.tokens_per_s_per_gpu
    share = option.load.communication_share
    spent = f", {share:.0%} of its step is communication" if share > best.load.communication_share + 0.05 else ""
    return f"{mine:.0f} output tokens/s per GPU where {best.shape} gives {other:.0f}{spent} ({_speed(option.load)})"


def _replicas(option: Option) -> str:
    return f"{option.replicas} x {option.shape}" if option.replicas > 1 else f"one replica of {option.shape}"


def _speed(load: Load) -> str:
    return f"TTFT {load.ttft_s * _MS:.0f} ms, TPOT {load.tpot_s * _MS:.1f} ms with {load.running:.0f} running requests"
