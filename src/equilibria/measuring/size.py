"""How many numbers a model learns."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from equilibria.models import TokenModel


@dataclass(frozen=True)
class Size:
    """How many numbers a model learns.

    Attributes:
        total: in all.
        inner: those outside the embedding and its softmax.
    """

    total: int
    inner: int


def size_of(model: TokenModel) -> Size:
    """The parameters of a model, on any device, each counted once."""
    total, outer = (sum(map(Tensor.numel, part.parameters())) for part in (model, model.embedding))
    return Size(total, total - outer)


def size_without_weights(build: Callable[[], TokenModel]) -> Size:
    """The parameters of a model that is built on the meta device: nothing is allocated and nothing is drawn."""
    with torch.device("meta"):
        return size_of(build())
