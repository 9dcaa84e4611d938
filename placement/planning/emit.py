"""A plan as the configuration that `archipelago serve` takes."""

import json

from placement.planning.plan import Plan

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
    asked = f"{workload.requests_per_s:g} requests/s" if workload.requests_per_s else "one replica's work"
    lines = [
        f"# Planned for {asked}, {workload.input_tokens.mean_tokens:g} tokens in and "
        f"{workload.output_tokens.mean_tokens:g} out: {best.reason}",
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
    lines += ["", "cluster:", "  kind: ray", "  address: auto", ""]
    return "\n".join(lines)
