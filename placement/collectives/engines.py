"""Which all-reduce an engine runs for a message of a given size, by its own thresholds.

vLLM 0.32, in vllm/distributed/device_communicators: custom all-reduce for 2, 4, 6 or 8 ranks (custom_all_reduce.py:121,
500), for more than two GPUs only with NVLink (custom_all_reduce.py:269), below 8 MiB (custom_all_reduce.py:141) and,
where symmetric memory works, below the sizes of all_reduce_utils.py:31; then symmetric memory
(cuda_communicator.py:428) up to the sizes of all_reduce_utils.py:58; then NCCL. Its csrc/custom_all_reduce.cuh chooses
between one-shot and two-shot.

0.32 asks FlashInfer's kernels before all of these (cuda_communicator.py:364). No times of those are published for it,
so the curves are those of the kernels below, measured with vLLM 0.24 (A100: 0.14, L40S: 0.22).
"""

from placement.collectives.group import Engine, Group

_KIB, _MIB = 1024, 1024**2
_UNLIMITED = float("inf")

Choice = tuple[tuple[float, str], ...]  # (largest size in bytes, algorithm), rising

_NVSWITCH = {"nvlink4": "9.0", "nvlink5": "10.0"}  # link kind to the compute capability of its GPUs
_CUSTOM_MAX_BYTES = {
    "9.0": {2: 64 * _MIB, 4: 32 * _MIB, 6: _MIB // 2, 8: _MIB // 4},
    "10.0": {2: 2 * _MIB, 4: 2 * _MIB, 6: _MIB, 8: _MIB},
    "10.3": {2: 4 * _MIB, 4: 4 * _MIB, 6: 8 * _MIB, 8: 4 * _MIB},
}
_SYMMETRIC_MAX_BYTES = {
    "9.0": {2: 64 * _MIB, 4: 32 * _MIB, 6: 64 * _MIB, 8: 64 * _MIB},
    "10.0": {2: 8 * _MIB, 4: 32 * _MIB, 6: 128 * _MIB, 8: 128 * _MIB},
    "10.3": {2: 4 * _MIB, 4: 32 * _MIB, 6: 32 * _MIB, 8: 64 * _MIB},
}
_MULTIMEM_RANKS = {"9.0": (4, 6, 8), "10.0": (6, 8), "10.3": (6, 8)}  # symm_mem.py:26
_CUSTOM_RANKS = (2, 4, 6, 8)
_RACK_RANKS = 16  # FlashInfer over NVLink multicast, all_reduce_utils.py:87 and vllm/config/compilation.py:188
_CUSTOM_DEFAULT_BYTES = 8 * _MIB  # it caps the sizes above, custom_all_reduce.py:251


def all_reduce_choice(group: Group, engine: Engine) -> Choice:
    """The algorithms of `engine` for `group`, by size."""
    if group.span not in ("gpu", group.inside):
        across = f"{group.machines} machines" if group.span == "network" else f"{group.islands} islands"
        return ((_UNLIMITED, f"NCCL ring or tree over {across}"),)
    link = group.link(group.inside)[0].kind
    if link in ("ethernet", "shared-memory"):
        return ((_UNLIMITED, "gloo ring"),)
    nvlink = link.startswith("nvlink") or link == "xgmi"
    nccl = ((256 * _KIB, "NCCL ring LL"), (_UNLIMITED, "NCCL NVLS" if link in _NVSWITCH else "NCCL ring"))
    if engine == "nccl" or (group.ranks > 2 and not nvlink):
        return nccl
    if engine == "trtllm":
        return ((256 * _KIB, "one-shot fused"), (4 * _MIB, "two-shot fused"), nccl[-1])
    if library(engine, group.ranks) == "nccl":
        return nccl
    if group.ranks == _RACK_RANKS:
        return ((8 * _MIB, "FlashInfer multicast"), nccl[-1])
    return (*_custom(group, link), nccl[-1])


def library(engine: Engine, ranks: int) -> Engine:
    """Whose all-reduce runs inside an island: the engine's own, or NCCL's where it has none for so many ranks."""
    if engine in ("vllm", "sglang") and ranks not in (*_CUSTOM_RANKS, _RACK_RANKS):
        return "nccl"
    return engine


def _custom(group: Group, link: str) -> Choice:
    """vLLM's custom kernels, then symmetric memory where the switch can reduce. SGLang took its own over from vLLM."""
    capability = "10.3" if group.gpu in ("b300_sxm", "gb300") else _NVSWITCH.get(link, "")
    ranks = group.ranks
    custom = min(_CUSTOM_DEFAULT_BYTES, _CUSTOM_MAX_BYTES.get(capability, {}).get(ranks, _CUSTOM_DEFAULT_BYTES))
    one_shot = custom if ranks == 2 else min(custom, 512 * _KIB if ranks <= 4 else 256 * _KIB)
    choice: list[tuple[float, str]] = [(one_shot - 1, "one-shot custom")]  # both limits are exclusive
    if custom > one_shot:
        choice.append((custom - 1, "two-shot custom"))
    symmetric = _SYMMETRIC_MAX_BYTES.get(capability, {}).get(ranks, 0)
    if symmetric > custom:
        multimem = ranks in _MULTIMEM_RANKS[capability]
        choice.append((symmetric, "multimem" if multimem else "two-shot symmetric memory"))
    return tuple(choice)
