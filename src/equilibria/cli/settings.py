"""Types of flags."""

from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

Count = Annotated[int, Parameter(validator=Number(gte=1))]
Natural = Annotated[int, Parameter(validator=Number(gte=0))]
Positive = Annotated[float, Parameter(validator=Number(gt=0))]

Device = Literal["auto", "cpu", "cuda"]
"""Where to compute; auto takes CUDA if there is a device."""

Settings = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]
"""A part of a flag of the recipe: whatever a command does not know itself is a key of the recipe and its value."""
