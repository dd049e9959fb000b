"""What a recipe's model takes up however long it trains: counted on the meta device, where nothing is allocated."""

from dataclasses import dataclass

import torch
from torch import Tensor

from equilibria.configuration import Recipe
from equilibria.configuration.building import build_model
from equilibria.models import TokenModel
from equilibria.optimization import adopted, roles


@dataclass(frozen=True)
class Sizes:
    """Numbers that a model learns, and bytes that training holds from its first step to its last.

    Attributes:
        parameters: by part of the model, each once.
        weights: bytes of parameters and buffers.
        gradients: bytes of the gradients.
        optimizer: bytes of what the optimizer keeps.
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


def sizes_of(recipe: Recipe, vocabulary_size: int) -> Sizes:
    """Those of a recipe's model.

    Raises:
        UserError: the recipe's numbers do not go together.
    """
    with torch.device("meta"):
        model = build_model(recipe, vocabulary_size)
    weights = _bytes([*model.parameters(), *model.buffers()])
    return Sizes(
        parameters=_by_part(model),
        weights=weights,
        gradients=_bytes([parameter for parameter in model.parameters() if parameter.requires_grad]),
        optimizer=adopted(recipe.training.optimizer).state_bytes(roles(model)),
        average=0 if recipe.training.averaging is None else weights,
    )


def _by_part(model: TokenModel) -> dict[str, int]:
    """Parameters of the embedding, the cell and what else there is; a shared one is its first owner's."""
    counted: dict[int, Tensor] = {}
    parts = {}
    for name, part in model.named_children():
        own = {id(parameter): parameter for parameter in part.parameters() if id(parameter) not in counted}
        counted |= own
        if own:
            parts[name] = sum(parameter.numel() for parameter in own.values())
    return parts


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
