"""How many bytes a weight takes in a checkpoint, from the `config.json` of the model.

Quantisation covers the matrices of the MLPs and experts, usually those of attention, and in practice never the
embeddings, the language-model head or the router: an 8B model in 4 bits is a third larger than "half a byte each".
"""

from collections.abc import Mapping
from typing import Any

_DTYPE_BYTES = {"float64": 8.0, "float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "half": 2.0, "float": 4.0}
_SCALE_BYTES = 2.0  # awq and gptq store a 16-bit scale per group; their zero points add less than a hundredth
_DEFAULT_GROUP = 128  # weights per scale in awq and gptq checkpoints that do not say
_MXFP4_BYTES = 0.5 + 1 / 32  # one 8-bit exponent per 32 four-bit weights


def weight_bytes(config: Mapping[str, Any]) -> tuple[float, float, float]:
    """Bytes per weight of the MLP and expert matrices, of attention, and of embeddings, head and router."""
    dtype = str(config.get("torch_dtype") or config.get("dtype") or "bfloat16").removeprefix("torch.")
    full = _DTYPE_BYTES.get(dtype, 1.0 if dtype.startswith("float8") else 2.0)
    quantisation = config.get("quantization_config")
    if not isinstance(quantisation, Mapping):
        return full, full, full
    quantised = _quantised_bytes(quantisation, full)
    kept = quantisation.get("modules_to_not_convert") or quantisation.get("ignore")
    attention_kept = "self_attn" in str(kept)
    return quantised, full if attention_kept else quantised, full


def _quantised_bytes(quantisation: Mapping[str, Any], full: float) -> float:
    """Bytes per quantised weight, scales included; `full` for a method this file does not know."""
    method = str(quantisation.get("quant_method", "")).lower()
    if method == "mxfp4":
        return _MXFP4_BYTES
    if "fp8" in method or "fp8" in str(quantisation.get("quant_algo", "")).lower():
        return 1.0  # one scale per matrix, or per 128 x 128 block: below a thousandth
    groups = quantisation.get("config_groups")
    if isinstance(groups, Mapping):  # compressed-tensors, modelopt
        weights = _mapping(_mapping(next(iter(groups.values()), None)).get("weights"))
        bits, group_size = weights.get("num_bits"), weights.get("group_size")
        scale_bytes = 1.0 if weights.get("type") == "float" and bits == 4 else _SCALE_BYTES  # nvfp4 has 8-bit scales
    else:  # awq, gptq
        bits = quantisation.get("bits", quantisation.get("w_bit"))
        group_size, scale_bytes = quantisation.get("group_size", _DEFAULT_GROUP), _SCALE_BYTES
    if not isinstance(bits, int) or bits < 1:
        return full
    if not isinstance(group_size, int) or group_size < 1:  # one scale per output channel or matrix
        return bits / 8
    return bits / 8 + scale_bytes / group_size


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
