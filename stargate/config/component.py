"""The base of every configuration component, and the number types that their fields share.

By itself, so that a component of any part (the Oracle, the judge) can be a field of RunConfig.
"""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
# Begins the tag of a union's variant where a file may leave the tag out: pydantic puts it into the
# place of a mistake, files.py takes it out again.
TAG = "type="


class Component(BaseModel):
    """Base of all components: unknown keys are errors, values never change after parsing.

    Numbers are finite: an endless learning rate or context is never meant.
    """

    # Input is hidden in pydantic's own messages: a URL there may hold a password. Ours show it.
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )

    @field_validator("*")
    @classmethod
    def _no_nul(cls, value: object) -> object:
        # No file, model or address can have it in its name: the system would refuse it later.
        if isinstance(value, str | Path) and "\0" in str(value):
            raise ValueError("must not contain a NUL character")
        return value
