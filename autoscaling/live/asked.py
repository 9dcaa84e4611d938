"""What people ask of the autoscaler at the control API, as it reads that. Fields that it does not need are let be."""

from pydantic import BaseModel, ConfigDict


class _Asked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class AskedAnswer(_Asked):
    """Yes or no to the proposal with that number, made at `at_s`."""

    model: str
    number: int
    at_s: float
    is_approved: bool
    by: str
    why: str


class AskedAnswers(_Asked):
    """All that wait."""

    approvals: tuple[AskedAnswer, ...]


class AskedFreeze(_Asked):
    """That nothing shall change, or that changes are allowed again."""

    number: int
    is_frozen: bool
    by: str
    why: str


class MaybeFreeze(_Asked):
    """None where nobody asks."""

    freeze: AskedFreeze | None
