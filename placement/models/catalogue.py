"""Sizes of well-known models by their Hugging Face id, so that a plan needs no network.

`catalogue.json` holds, on one line for each model, the fields of its published `config.json` that decide sizes, in the
spelling of that file. Three shortenings: `like` names another entry whose fields hold where the line has none, a list
of layer kinds is written as the pattern it follows, and a quantisation lists the kinds of modules it leaves out, not
each layer's. Models that have no Hugging Face config (PaLM, GPT-3) are described in the same fields from their papers:
Chowdhery et al. 2022 and Pope et al. 2022 with the multi-query attention of 48 heads of 256, and Brown et al. 2020.
"""

import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib import resources
from typing import Any

# Words of a name that change the training but no size.
_SAME_SIZES = ("base", "chat", "exp", "hf", "instruct", "it", "meta", "nvidia", "preview", "pt", "terminus", "thinking")
_DATE = re.compile(r"\d{4}(\d{2})?")
_AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}
_PRECISIONS: Mapping[str, Mapping[str, Any] | None] = {
    "bf16": None,
    "fp16": None,
    "fp8": {"quant_method": "fp8"},
    "nvfp4": {"quant_algo": "NVFP4"},
    "fp4": {"quant_algo": "NVFP4"},
    "mxfp4": {"quant_method": "mxfp4", "modules_to_not_convert": ["self_attn"]},
    "awq": _AWQ,
    "gptq": _AWQ,
    "int4": _AWQ,
    "w4a16": _AWQ,
    "w8a8": {"quant_algo": "W8A8_SQ_PER_CHANNEL"},
    "int8": {"quant_algo": "W8A8_SQ_PER_CHANNEL"},
}


def names() -> tuple[str, ...]:
    """The ids of every entry, in alphabetical order."""
    return tuple(_entries())


def config(model_id: str) -> Mapping[str, Any] | None:
    """What `ModelSpec.from_hf_config` reads for `model_id`, None for a model that is not here.

    Case does not matter, nor whose copy it is: `Meta-Llama-3.1-70B-Instruct`, `zhipuai/GLM-5` and
    `deepseek-ai/DeepSeek-R1-0528` are found. A precision at the end, as in `-FP8`, `-NVFP4` or `-AWQ`, replaces the
    entry's own; where no checkpoint of that name is known, 4 bits leave out the attention of MLA models with experts.
    """
    found = _find(model_id)
    if found is None:
        return None
    entry, precision = found
    fields = _resolved(entry)
    if precision is not None:
        fields["quantization_config"] = _quantisation(precision, fields)
        fields.pop("expert_dtype", None)
    return {name: value for name, value in fields.items() if value is not None}


def closest(model_id: str) -> str | None:
    """The entry whose name is most like `model_id`, None where none is."""
    spellings = {_without_owner(name): name for name in _entries()}
    found = get_close_matches(_without_owner(model_id), spellings, n=1, cutoff=0.6)
    return spellings[found[0]] if found else None


@cache
def _entries() -> Mapping[str, Mapping[str, Any]]:
    text = resources.files("placement.models").joinpath("catalogue.json").read_text(encoding="utf-8")
    entries: Mapping[str, Mapping[str, Any]] = json.loads(text)
    return entries


@cache
def _index() -> Mapping[str, str]:
    """Ids by every way to write them; an entry with fields of its own before one that is like another."""
    index: dict[str, str] = {}
    by_rank = sorted(_entries(), key=lambda name: "like" in _entries()[name])
    for spelling in (_lower, _without_owner, _canonical):
        for name in by_rank:
            index.setdefault(spelling(name), name)
    return index


def _find(model_id: str) -> tuple[str, str | None] | None:
    """The entry, and the precision to give it where the name asks for another than the entry's."""
    index = _index()
    for spelling in (_lower, _without_owner, _canonical):
        if name := index.get(spelling(model_id)):
            return name, None
    words = _canonical(model_id).split("-")
    name = index.get("-".join(words[:-1]))
    return (name, words[-1]) if name and words[-1] in _PRECISIONS else None


def _lower(name: str) -> str:
    return name.strip().lower()


def _without_owner(name: str) -> str:
    return _lower(name).rsplit("/", maxsplit=1)[-1]


def _canonical(name: str) -> str:
    """`Meta-Llama-3.1-70B-Instruct-FP8-dynamic` as `llama-3.1-70b-fp8`; what follows a precision tells of scales."""
    text = _without_owner(name).replace("_", ".").replace("quantized.", "")
    words = [word for word in text.split("-") if word not in _SAME_SIZES and not _DATE.fullmatch(word)]
    precisions = [word for word in words if word in _PRECISIONS]
    return "-".join([*words[: words.index(precisions[0])], precisions[-1]] if precisions else words)


def _resolved(name: str) -> dict[str, Any]:
    entry = _entries()[name]
    base = _resolved(entry["like"]) if "like" in entry else {}
    return base | {field: value for field, value in entry.items() if field != "like"}


def _quantisation(precision: str, fields: Mapping[str, Any]) -> Mapping[str, Any] | None:
    quantisation = _PRECISIONS[precision]
    four_bits = precision in ("nvfp4", "fp4", "awq", "gptq", "int4", "w4a16")
    if quantisation is not None and four_bits and fields.get("kv_lora_rank") and fields.get("first_k_dense_replace"):
        return {**quantisation, "ignore": ["self_attn"]}
    return quantisation
