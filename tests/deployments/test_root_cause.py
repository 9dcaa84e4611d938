import pytest

from deployments.root_cause import root_cause

AT = "(EngineCore pid=29281) ERROR 11-22 23:46:19 [core.py:1510] "
CAUSE = "ValueError: Following weights were not initialized from checkpoint: {'model.layers.4'}"


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        pytest.param([f"{AT}    raise ValueError(", AT + CAUSE], CAUSE, id="the end of the traceback"),
        pytest.param([f"{AT}KeyError: 'a'", "x", AT + CAUSE], CAUSE, id="the last of a chain"),
        pytest.param(
            [
                f"{AT}ray.exceptions.RayTaskError(OSError): ray::W",
                f"{AT}  File x",
                f"{AT}OSError: no space",
            ],
            "OSError: no space",
            id="in a worker",
        ),
        pytest.param(
            [
                f"(Worker pid=31) ERROR 11-22 23:46:18 [multiproc_executor.py:933] {CAUSE}",
                f"{AT}Exception: WorkerProc initialization failed due to an exception in a background process.",
            ],
            CAUSE,
            id="in a worker below EngineCore",
        ),
        pytest.param(["INFO 11-22 ValueError: said by somebody else", "", AT], None, id="none"),
        pytest.param([], None, id="nothing printed"),
    ],
)
def test_the_root_cause_is_what_was_logged_nearest_to_it(lines: list[str], cause: str | None) -> None:
    assert root_cause(lines) == cause
