"""Any text is a machine or a message; what is cut off or odd is named."""

import re
import string
from pathlib import Path

import pytest
from discovery_builders import MACHINES
from hypothesis import given
from hypothesis import strategies as st

from deployments.discovery.grouping import find_islands
from deployments.discovery.machine import DiscoveryError
from deployments.discovery.picture import picture
from deployments.discovery.smi_text import machine_from_text

DGX = (MACHINES / "dgx-a100.txt").read_text(encoding="utf-8")
WORDS = ["GPU0", "GPU1", "GPU2", "X", "NV12", "NV", "SYS", "NODE", "NIC0", "CPU", "Affinity", "\n", "\t", " ", "NV99"]
LINES = [
    "GPU 0: A (UUID: B)",
    "  Link 3: 25 GB/s",
    " Link 1: <inactive>",
    "GPU 00000000:01:00.0",
    "   Fabric",
    "    State : X",
]


def machine_or_message(text: str) -> None:
    try:
        findings = find_islands([machine_from_text(text, "box")])
    except DiscoveryError as error:
        message = str(error)
    else:
        message = "box: "
        indexes = sorted(gpu.index for part in findings.parts for gpu in part.gpus)
        assert indexes == [gpu.index for gpu in findings.machines[0].gpus if not gpu.has_mig]  # each in one island
        picture(findings)
    assert message.startswith("box: ")


@given(st.text(alphabet=string.printable + "\x1béГ\u2028"))
def test_any_text_is_a_machine_or_a_message(text: str) -> None:
    machine_or_message(text)


@given(st.lists(st.sampled_from(WORDS + LINES + ["\n"] * 5)).map(" ".join))
def test_any_words_of_nvidia_smi_are_a_machine_or_a_message(text: str) -> None:
    machine_or_message(text)


@pytest.mark.parametrize("path", sorted(MACHINES.glob("*.txt")), ids=lambda path: path.stem)
def test_a_recorded_output_cut_anywhere_is_a_machine_or_a_message(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for end in range(0, len(text), 97):
        machine_or_message(text[:end])


@given(st.data())
def test_a_recorded_output_with_anything_in_it_is_a_machine_or_a_message(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(DGX)))
    end = data.draw(st.integers(start, min(len(DGX), start + 40)))
    machine_or_message(DGX[:start] + data.draw(st.text(max_size=20)) + DGX[end:])


@given(st.integers(1, 8), st.data())
def test_islands_are_full_meshes_and_cannot_be_joined(gpus: int, data: st.DataObject) -> None:
    links = {(a, b): data.draw(st.sampled_from([0, 0, 4, 12])) for a in range(gpus) for b in range(a + 1, gpus)}

    def cell(a: int, b: int) -> str:
        count = links.get((min(a, b), max(a, b)), 0)
        return "X" if a == b else f"NV{count}" if count else "SYS"

    rows = [f"GPU{a} " + " ".join(cell(a, b) for b in range(gpus)) for a in range(gpus)]
    header = " ".join(f"GPU{a}" for a in range(gpus)) + " CPU Affinity"
    islands = find_islands([machine_from_text("\n".join([header, *rows]), "box")]).islands
    groups = [[gpu.index for gpu in island.parts[0].gpus] for island in islands]
    if not any(links.values()):
        assert groups == [list(range(gpus))]
        return
    assert all(links[a, b] for group in groups for a in group for b in group if a < b)
    for first in groups:
        for second in groups:
            joined = first != second and all(links[min(a, b), max(a, b)] for a in first for b in second)
            assert not joined, (first, second)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no GPU in this text; give what `nvidia-smi topo -m` prints"),
        (re.sub(r"(GPU6 .*)NV12 .*", r"\1", DGX), "the row of GPU6 is cut off before GPU"),
        (DGX.replace("GPU3    NV12", "GPU3    N/A"), "GPU0 to GPU3|GPU3 to GPU0 is 'N/A'; it must be NV and a number"),
        ("\n".join(f"GPU {n}: A (UUID: {n})" for n in range(2)), "2 GPUs but no matrix"),
        (" ".join(f"GPU{n}" for n in range(40)), "at most 32 GPUs"),
    ],
)
def test_a_text_that_is_not_enough_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(DiscoveryError, match=message):
        machine_from_text(text, "box")


def test_where_two_gpus_disagree_the_lesser_is_taken_and_told() -> None:
    machine = machine_from_text("GPU0 GPU1 CPU\nGPU0 X NV12\nGPU1 SYS X", "box")
    findings = find_islands([machine])
    assert machine.connection(1, 0).nvlinks == 0
    assert findings.notes[0] == "box: GPU 0 says NV12 of GPU 1, which says SYS of it; the lesser is taken"
