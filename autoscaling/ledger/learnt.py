"""What the autoscaler has learnt and must not forget when it starts again: one JSON file, replaced in one step."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from autoscaling.capacity.corrections import Corrections, as_json, from_json
from autoscaling.policy.memory import Memory

FILE = "learnt.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnt:
    """Of one model: the policy's memory, and the corrections of its shapes."""

    memory: Memory = field(default_factory=Memory)
    corrections: Corrections = field(default_factory=dict, hash=False)


def read_learnt(directory: Path) -> tuple[dict[str, Learnt], str]:
    """By model, and a sentence where the file could not be used; then everything is learnt anew."""
    path = directory / FILE
    try:
        document = json.loads(path.read_bytes())
        return {
            model: Learnt(memory=Memory.from_json(row["memory"]), corrections=from_json(row["corrections"]))
            for model, row in document.items()
        }, ""
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {}, f"{path} cannot be used ({error}); what it held is learnt anew."


def write_learnt(directory: Path, learnt: Mapping[str, Learnt]) -> None:
    """Replace the file. Raises `OSError`."""
    path = directory / FILE
    draft = path.with_suffix(".new")
    document = {
        model: {"memory": one.memory.to_json(), "corrections": as_json(one.corrections)}
        for model, one in learnt.items()
    }
    with draft.open("w", encoding="utf-8") as file:
        json.dump(document, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
