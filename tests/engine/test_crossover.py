"""The crossover experiment with real engines on two speeds: it measures, and it leaves nothing behind."""

import subprocess
import sys
from pathlib import Path

import pytest

from deployments.crossover.namespaces import missing
from deployments.crossover.record import WORKS, Cut, Record

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture
def ready() -> None:
    if (reason := missing()) is not None:
        pytest.skip(reason)


def traces() -> set[Path]:
    folders = [Path("/run/netns"), Path("/dev/shm")]
    return {path for folder in folders if folder.is_dir() for path in folder.iterdir()}


@pytest.mark.usefixtures("ready")
def test_the_command_measures_every_case_and_leaves_nothing(tmp_path: Path) -> None:
    before = traces()
    command = [sys.executable, "-m", "deployments.crossover", "--speeds", "unshaped,20mbit", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert (tmp_path / "results.json").is_file(), done.stdout[-1000:] + done.stderr[-3000:]
    record = Record.from_json((tmp_path / "results.json").read_text())
    cases = {(step.cut, step.speed) for step in record.steps}
    assert cases == {
        (Cut.TP1, "unshaped"),
        (Cut.TP2_INSIDE, "unshaped"),
        *((cut, speed) for cut in (Cut.TP2_ACROSS, Cut.PP2_ACROSS) for speed in ("unshaped", "20mbit")),
    }
    for work in WORKS:  # at 2.5 MB/s eight sums of one token alone would take longer than the pipeline's one transfer
        assert record.step_s(Cut.TP2_ACROSS, "20mbit", work.name) > record.step_s(Cut.PP2_ACROSS, "20mbit", work.name)
    assert traces() == before
