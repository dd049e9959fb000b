"""What a recipe's model takes up however long it trains, counted on the meta device, which allocates nothing."""

from dataclasses import dataclass

import torch
from torch import Tensor

from equilibria.configuration import Recipe
from equilibria.configuration.building import build_model
from equilibria.measuring.size import parameters_by_part
from equilibria.optimization import adopted, parameter_groups


@dataclass(frozen=True)
class Footprint:
    """The parameters of a model, and the bytes that training holds from its first step to its last.

    Attributes:
        parameters: by part of the model, each once.
        weights: bytes of parameters and buffers.
        gradients: bytes of the gradients.
        optimizer: bytes of the optimizer's state.
        average: bytes of the averaged weights; 0 without averaging.
    """

    parameters: dict[str, int]
    weights: int
    gradients: int
    optimizer: int
    average: int

    @property
    def total(self) -> int:
        """Parameters in all."""
        return sum(self.parameters.values())

    @property
    def held(self) -> int:
        """Bytes in all."""
        return self.weights + self.gradients + self.optimizer + self.average


def footprint_of(recipe: Recipe, vocabulary_size: int) -> Footprint:
    """The footprint of a recipe's model.

    Raises:
        UserError: the recipe's numbers do not go together.
    """
    with torch.device("meta"):
        model = build_model(recipe, vocabulary_size)
    weights = _bytes([*model.parameters(), *model.buffers()])
    return Footprint(
        parameters=parameters_by_part(model),
        weights=weights,
        gradients=_bytes([parameter for parameter in model.parameters() if parameter.requires_grad]),
        optimizer=adopted(recipe.training.optimizer).state_bytes(parameter_groups(model)),
        average=0 if recipe.training.averaging is None else weights,
    )


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
