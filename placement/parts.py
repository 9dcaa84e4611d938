"""What the time of one step is made of, in words: the same wherever a plan or a study says what time goes to."""

from collections.abc import Mapping
from types import MappingProxyType

# By the fields of `placement.cost.step.Step`, without their unit.
PARTS: Mapping[str, str] = MappingProxyType(
    {
        "overhead": "launches and small kernels",
        "matrices": "dense weights",
        "experts": "experts",
        "kv_reads": "KV cache reads",
        "prefill_attention": "attention over prompts",
        "all_reduce": "all-reduces",
        "exchange": "expert exchanges",
        "send": "pipeline sends",
    }
)
