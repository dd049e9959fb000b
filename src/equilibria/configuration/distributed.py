"""The `[distributed]` section of a recipe: what several processes under torchrun do with the model.

How many there are is not part of a recipe: they share its batches, so that the run is the same for any number.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DistributedRecipe:
    """Several processes, started by torchrun; without a meaning for one."""

    strategy: Literal["ddp", "fsdp2"] = "ddp"
    """Each process holds the whole model, or its share of the weights and of the optimizer's state."""
