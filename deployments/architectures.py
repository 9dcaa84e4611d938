"""What the vLLM that is installed does with an architecture, without importing it: generate, or pool.

It pools where a model embeds, ranks or classifies, and tells so by what the class of the architecture can do, else by
how the architecture is called (vllm/config/model.py:1270). Its tables of classes (in model_executor/models/registry.py)
and of endings (vllm/config/model.py:2322) are literals in its source, and are read as `engine_args` reads its own.
"""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from deployments.engine_args import assigned

_OTHERS = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_SPECULATIVE_DECODING_MODELS")
_POOLING = (
    "_EMBEDDING_MODELS",
    "_LATE_INTERACTION_MODELS",
    "_REWARD_MODELS",
    "_TOKEN_CLASSIFICATION_MODELS",
    "_SEQUENCE_CLASSIFICATION_MODELS",
)
_ENDINGS = "_SUFFIX_TO_DEFAULTS"


@dataclass(frozen=True, slots=True)
class Architectures:
    """Those that vLLM knows by name: the ones it only pools with, and `others`. `endings` tell it of the rest."""

    pooling: frozenset[str]
    others: frozenset[str]
    endings: Sequence[tuple[str, str]]

    def first_pooling(self, names: Sequence[str]) -> str | None:
        """The one of the architectures in a `config.json` that has vLLM pool by itself, None if none does."""
        for name in names:
            runner = next((runner for ending, runner in self.endings if name.endswith(ending)), None)
            if name in self.others:
                return None
            if name in self.pooling or runner == "pooling":
                return name
            if runner:
                return None
        return None


@cache
def read_architectures(vllm: Path) -> Architectures:
    """What the vLLM in a folder knows."""
    registry = assigned(vllm / "model_executor" / "models" / "registry.py")
    others = frozenset(name for table in _OTHERS for name in _keys(registry[table]))
    pooling = frozenset(name for table in _POOLING for name in _keys(registry[table]))
    endings = ast.literal_eval(assigned(vllm / "config" / "model.py")[_ENDINGS])
    return Architectures(
        pooling=pooling - others,  # some others can pool as well
        others=others,
        endings=tuple((ending, runner) for ending, (runner, _) in endings),
    )


def _keys(table: ast.expr) -> Iterator[str]:
    """Those written out; what a table takes over from others is in those too."""
    for key in table.keys if isinstance(table, ast.Dict) else ():
        if isinstance(key, ast.Constant):
            yield str(key.value)
