"""The base of every configuration component, and the number types that their fields share.

By itself, so that a component of any part (the Oracle, the judge) can be a field of RunConfig.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]


class Component(BaseModel):
    """Base of all components: unknown keys are errors, values never change after parsing."""

    # Input is hidden in pydantic's own messages: a URL there may hold a password. Ours show it.
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True
    )
