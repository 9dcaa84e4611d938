"""How a checkpoint stores each matrix, and in which arithmetic it is multiplied, from its `quantization_config`.

The content of `hf_quant_config.json` (under its key `quantization`) is read as well. Quantisation covers the matrices
of MLPs, experts and usually attention, and in practice never the embeddings, the language-model head or the router: an
8B model in 4 bits is a third larger than "half a byte each". Lists of modules left out (`modules_to_not_convert`,
`ignore`, `exclude_modules`) hold names, parts of names, globs, and regular expressions after `re:`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_DTYPE_BYTES = {"float64": 8.0, "float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "half": 2.0, "float": 4.0}
_SCALE_BYTES = 2.0  # awq and gptq store a 16-bit scale per group
_DEFAULT_GROUP = 128  # weights per scale in awq and gptq checkpoints that do not say
_PREFIX = re.compile(r"^(\*\.)?((model|language_model|backbone|transformer)\.)*")


@dataclass(frozen=True, slots=True)
class Stored:
    """Bytes of one weight with its scales, and the arithmetic of its product: bf16, fp8, fp4, int8 or mxfp4.

    `bf16` stands for any 16- or 32-bit arithmetic; weight-only formats are unpacked to it. mxfp4 is fp4 on GPUs that
    have it and bf16 elsewhere.
    """

    bytes_per_weight: float
    math: str = "bf16"


_FP8 = Stored(1.0, "fp8")  # one scale per matrix, channel or 128 x 128 block: below a thousandth
_NVFP4 = Stored(0.5 + 1 / 16, "fp4")  # an 8-bit scale per 16 four-bit weights
_MXFP4 = Stored(0.5 + 1 / 32, "mxfp4")  # an 8-bit exponent per 32 four-bit weights
_INT4 = Stored(0.5 + (_SCALE_BYTES + 0.5) / _DEFAULT_GROUP)  # the zero points are 4-bit too
_INT8 = Stored(1.0, "int8")
_ALGORITHMS = {  # modelopt's quant_algo
    "FP8": _FP8,
    "FP8_PER_CHANNEL_PER_TOKEN": _FP8,
    "FP8_PB_WO": _FP8,
    "FP8_BLOCK_SCALES": _FP8,
    "MXFP8": Stored(1 + 1 / 32, "fp8"),
    "NVFP4": _NVFP4,
    "NVFP4_AWQ": _NVFP4,
    "W4A8_NVFP4_FP8": Stored(_NVFP4.bytes_per_weight, "fp8"),
    "W4A16_NVFP4": Stored(_NVFP4.bytes_per_weight),
    "W4A8_MXFP4_FP8": Stored(_MXFP4.bytes_per_weight, "fp8"),
    "W4A16_MXFP4": _MXFP4,
    "MXFP4": _MXFP4,
    "W4A16_AWQ": _INT4,
    "W4A16": _INT4,
    "W4A8_AWQ": Stored(_INT4.bytes_per_weight, "fp8"),
    "W8A8_SQ_PER_CHANNEL": _INT8,
    "INT8_SQ": _INT8,
    "W8A16": Stored(1.0),
}
# What the user means by "served in this precision". Blocks as in the checkpoints published under these names.
PRECISIONS = {"bf16": Stored(2.0), "fp8": _FP8, "int8": _INT8, "fp4": _NVFP4, "mxfp4": _MXFP4, "int4": _INT4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """How each module of one checkpoint is stored; `note` says what could not be read, empty when all could.

    Where modules are `listed` one by one, `quantised` is how the others are stored.
    """

    full: Stored
    quantised: Stored
    kept: frozenset[str] = frozenset()
    kept_patterns: tuple[re.Pattern[str], ...] = ()
    listed: Mapping[str, Stored] = field(default_factory=dict)
    note: str = ""

    def stored(self, module: str) -> Stored:
        """How `module` is stored, such as `layers.3.self_attn.q_proj`."""
        name = _literal(module)
        parts = set(_parts(name))
        if self.listed:
            return self.listed.get(
                max((part for part in parts if part in self.listed), key=len, default=""), self.quantised
            )
        tested = (f"model.{module}", name)
        matched = any(pattern.search(text) for pattern in self.kept_patterns for text in tested)
        return self.quantised if parts.isdisjoint(self.kept) and not matched else self.full


def read(config: Mapping[str, Any]) -> Checkpoint:
    """Read `quantization_config` of a `config.json`; a method this file does not know counts as none, with a note."""
    dtype = str(config.get("torch_dtype") or config.get("dtype") or "bfloat16").removeprefix("torch.")
    full = Stored(_DTYPE_BYTES.get(dtype, 1.0 if dtype.startswith("float8") else 2.0))
    quantisation = config.get("quantization_config")
    if not isinstance(quantisation, Mapping) or not quantisation:
        return Checkpoint(full=full, quantised=full)
    quantisation = {**quantisation, **_mapping(quantisation.get("quantization"))}
    kept = [name for name in _kept(quantisation) if "mtp" not in name]
    globs = [name for name in kept if "*" in _literal(name) and not name.startswith("re:")]
    patterns = [name[3:] for name in kept if name.startswith("re:")]
    quantised = _quantised(quantisation)
    method = quantisation.get("quant_method") or quantisation.get("quant_algo")
    listed = _listed(quantisation)
    if listed:  # an fp8 checkpoint whose experts were quantised further, or one that is in 16 bits elsewhere
        others = _FP8 if method == "fp8" else full
        return Checkpoint(full=full, quantised=others, listed=listed)
    return Checkpoint(
        full=full,
        quantised=quantised or full,
        kept=frozenset(_literal(name) for name in kept if not name.startswith("re:") and name not in globs),
        kept_patterns=tuple(_compiled([*map(_glob, globs), *patterns])),
        note="" if quantised else f"quantisation {method!r} is not known: its weights count in full",
    )


def _quantised(quantisation: Mapping[str, Any]) -> Stored | None:
    """The format of a weight that is quantised, None for a method this file does not know."""
    method = str(quantisation.get("quant_method", "")).lower()
    algorithm = str(quantisation.get("quant_algo", "")).upper()
    if algorithm in _ALGORITHMS:
        return _ALGORITHMS[algorithm]
    if method == "mxfp4":
        return _MXFP4
    groups = quantisation.get("config_groups")
    if isinstance(groups, Mapping):  # compressed-tensors, modelopt
        return _of_group(_mapping(next(iter(groups.values()), None)))
    if "fp8" in method:
        return _FP8
    if method == "bitsandbytes":
        return _bitsandbytes(quantisation)
    if method == "quark":
        return _of_quark(_mapping(quantisation.get("global_quant_config")))
    return _integers(quantisation)


def _of_group(group: Mapping[str, Any]) -> Stored | None:
    """One of the `config_groups` of compressed-tensors; without input activations the product is in 16 bits."""
    weights, inputs = _mapping(group.get("weights")), _mapping(group.get("input_activations"))
    bits, group_size = weights.get("num_bits"), weights.get("group_size")
    if bits not in (2, 3, 4, 8):
        return None
    is_float = weights.get("type") == "float"
    if is_float and bits == 4:
        stored = _MXFP4 if group_size == 32 else _NVFP4
        return stored if inputs.get("num_bits") != 8 else Stored(stored.bytes_per_weight, "fp8")
    math = "bf16" if inputs.get("num_bits") != 8 else "fp8" if inputs.get("type") == "float" else "int8"
    return Stored(bits / 8 + _scales(group_size), math)


def _integers(quantisation: Mapping[str, Any]) -> Stored | None:
    """awq, gptq and their kin: integers of `bits` bits, multiplied in 16 bits."""
    bits = quantisation.get("bits", quantisation.get("w_bit"))
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 16:
        return None
    group_size = quantisation.get("group_size", _DEFAULT_GROUP)
    zero_point = bits / 8 / group_size if isinstance(group_size, int) and group_size > 0 else 0.0
    return Stored(bits / 8 + _scales(group_size) + zero_point)


def _scales(group_size: object) -> float:
    """Bytes of 16-bit scales per weight; 0 for one scale per output channel or matrix."""
    return _SCALE_BYTES / group_size if isinstance(group_size, int) and group_size > 0 else 0.0


def _bitsandbytes(quantisation: Mapping[str, Any]) -> Stored | None:
    """4 bits with a 32-bit scale per 64 (8-bit with double quantisation: QLoRA, arXiv 2305.14314), or LLM.int8."""
    if quantisation.get("load_in_4bit"):
        return Stored(0.5 + (1 / 64 + 4 / (64 * 256) if quantisation.get("bnb_4bit_use_double_quant") else 4 / 64))
    return _INT8 if quantisation.get("load_in_8bit") else None


def _of_quark(quark: Mapping[str, Any]) -> Stored | None:
    weight, inputs = _mapping(quark.get("weight")), _mapping(quark.get("input_tensors"))
    dtype, input_dtype = str(weight.get("dtype", "")), str(inputs.get("dtype", ""))
    if dtype.startswith("fp8"):
        return _FP8 if input_dtype.startswith("fp8") else Stored(1.0)
    if dtype.startswith("fp4"):
        return _MXFP4
    if dtype.startswith(("int4", "uint4")):
        return _INT4
    return (_INT8 if input_dtype.startswith("int8") else Stored(1.0)) if dtype.startswith("int8") else None


def _listed(quantisation: Mapping[str, Any]) -> Mapping[str, Stored]:
    """The modules that a checkpoint of mixed precision names one by one; those of unknown format are left out."""
    listed = {}
    for name, how in _mapping(quantisation.get("quantized_layers")).items():
        algorithm = str(_mapping(how).get("quant_algo", "")).upper()
        if algorithm in _ALGORITHMS and "mtp" not in name:
            listed[_literal(str(name))] = _ALGORITHMS[algorithm]
    return listed


def _kept(quantisation: Mapping[str, Any]) -> Iterator[str]:
    for key in ("modules_to_not_convert", "ignore", "exclude_modules", "exclude", "ignored_layers"):
        names = quantisation.get(key)
        if isinstance(names, Sequence) and not isinstance(names, str):
            yield from (name for name in names if isinstance(name, str) and name)


def _literal(name: str) -> str:
    """`model.layers.0.self_attn*` as `layers.0.self_attn`: these names cover the modules below them too."""
    short = _PREFIX.sub("", name).rstrip("*").rstrip(".").replace("shared_experts", "shared_expert")
    return f"{short[:-3]}.down_proj" if short.endswith(".w2") else short  # Mixtral's and MiniMax's name for it


def _glob(name: str) -> str:
    return r"(^|\.)" + re.escape(_literal(name)).replace(r"\*", ".*") + r"($|\.)"


def _compiled(patterns: Sequence[str]) -> Iterator[re.Pattern[str]]:
    for pattern in patterns:
        try:
            yield re.compile(pattern)
        except re.error:  # it matches nothing in the engine either
            continue


def _parts(module: str) -> Iterator[str]:
    """Every run of whole components of a dotted name."""
    components = module.split(".")
    for start in range(len(components)):
        for end in range(start + 1, len(components) + 1):
            yield ".".join(components[start:end])


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
