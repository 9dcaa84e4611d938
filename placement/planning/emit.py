"""A plan as the configuration that `archipelago serve` takes."""

import json

from placement.planning.plan import Plan
from placement.planning.reasons import asked_of
from placement.workload import Slo

_FP8_BYTES = 1.0
# What vLLM calls them (vllm/config/parallel.py All2AllBackend); its default needs no word, and NCCL's it does not have.
_VLLM_BACKENDS = {
    "deepep_low_latency": "deepep_low_latency",
    "deepep_high_throughput": "deepep_high_throughput",
    "one_sided": "flashinfer_nvlink_one_sided",
}


def served_configuration(plan: Plan, source: str, *, precision: str | None = None) -> str:
    """YAML that serves the best option of `plan`; `source` is the model's hub id or directory.

    `precision` is the format that the weights were planned in, None for that of the checkpoint.
    Raises `ValueError` for a plan without an option: there is nothing to serve.
    """
    best = plan.best
    if best is None:
        raise ValueError(f"{plan.question.model.name}: no option meets the SLO, so there is nothing to serve.")
    workload = plan.question.workload
    lines = [
        f"# Planned for {asked_of(workload)}, {workload.input_tokens.mean_tokens:,.0f} tokens in and "
        f"{workload.output_tokens.mean_tokens:,.0f} out: {best.reason}",
        "models:",
        f"  - source: {json.dumps(source)}",  # YAML takes JSON strings as they are
        f"    shape: {best.shape}",
        f"    replicas: {best.replicas}",
        "    engine:",
        f"      gpu_memory_utilization: {plan.question.utilisation:g}",
    ]
    tokens = best.prediction.room.tokens
    if tokens < plan.question.model.max_position_tokens:
        # vLLM does not start where one request of full length finds no room.
        lines.append(f"      max_model_len: {int(tokens)}")
    if precision == "fp8":
        lines.append("      quantization: fp8")
    elif precision:
        lines.insert(1, f"# vLLM cannot make {precision} of other weights: source must be a checkpoint in {precision}.")
    backend = _VLLM_BACKENDS.get(plan.question.exchange)
    if backend and best.shape.dp > 1:
        lines.append(f"      all2all_backend: {backend}")
    if plan.question.kv_bytes_per_element == _FP8_BYTES:
        lines.append("      kv_cache_dtype: fp8")
    lines += _promised(plan.slo)
    lines += ["", "cluster:", "  kind: ray", "  address: auto", ""]
    return "\n".join(lines)


def _promised(slo: Slo) -> list[str]:
    """What the plan keeps, so that dashboards and alerts go by it too."""
    limits = {"ttft": slo.ttft_s, "tpot": slo.tpot_s}
    given = [f"{name}: {limit_s * 1e3:g}ms" for name, limit_s in limits.items() if limit_s is not None]
    return [f"    slo: {{{', '.join(given)}, percentile: p{slo.percentile * 100:g}}}"] if given else []
