"""What all sections of a configuration file have in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Fields that are taken as they are written: no other names, no conversion, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)
