"""How many numbers a model learns."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from equilibria.models import TokenModel


@dataclass(frozen=True)
class Size:
    """How many numbers a model learns: in all, and outside the embedding and its softmax."""

    total: int
    inner: int


def size_of(model: TokenModel) -> Size:
    """The parameters of a model, on any device, each counted once."""
    outer = sum(parameter.numel() for parameter in model.embedding.parameters())
    total = sum(parameters_by_part(model).values())
    return Size(total, total - outer)


def shortened(number: float) -> str:
    """A number of parameters as papers give it, as 24M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def parameters_by_part(model: TokenModel) -> dict[str, int]:
    """The parameters of the embedding, the cell and every other part of a model; a shared one counts for the first."""
    parts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = name.partition(".")[0]
        parts[part] = parts.get(part, 0) + parameter.numel()
    return parts


def size_without_weights(build: Callable[[], TokenModel]) -> Size:
    """The size of a model that is built on the meta device, which allocates and draws nothing."""
    with torch.device("meta"):
        return size_of(build())
