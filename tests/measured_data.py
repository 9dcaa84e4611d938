"""Where tests find measured data that is too large, or not ours, to keep in the repository."""

import os
from pathlib import Path

import pytest

_BESIDE_THE_CHECKOUT = Path(__file__).resolve().parents[2] / "shared" / "data" / "measured"


def measured(name: str) -> Path:
    """The file `name` of the measured data, or skip the test."""
    path = Path(os.environ.get("ARCHIPELAGO_MEASURED_DATA", _BESIDE_THE_CHECKOUT)) / name
    if not path.exists():
        pytest.skip("optional local data")
    return path
