"""How many numbers a model learns."""

from collections.abc import Callable

import torch

from equilibria.cells import Cell, StackedCell, TransformerXLCell
from equilibria.depths import UnrolledDepth
from equilibria.measuring.size import Size, size_of, size_without_weights
from equilibria.models import LanguageModel
from equilibria.nn import TiedEmbedding
from layers import AveragingLayer


def model() -> LanguageModel:
    return LanguageModel(TiedEmbedding(50, 8), TransformerXLCell(8, 2, 16), UnrolledDepth(2))


def stack_of(cells: Callable[[], list[Cell]]) -> Callable[[], LanguageModel]:
    return lambda: LanguageModel(TiedEmbedding(10, 6), StackedCell(cells()), UnrolledDepth(1))


def test_tied_layers_are_counted_once() -> None:
    layer = 2 * 36 + 6  # two matrices and a bias
    tied = stack_of(lambda: [AveragingLayer()] * 3)
    separate = stack_of(lambda: [AveragingLayer() for _ in range(3)])
    assert size_of(tied()) == Size(60 + layer, layer)
    assert size_of(separate()) == Size(60 + 3 * layer, 3 * layer)
    assert size_without_weights(separate) == size_of(separate())


def test_a_model_is_counted_without_weights() -> None:
    built: list[torch.device] = []

    def build() -> LanguageModel:
        built.append(next((made := model()).parameters()).device)
        return made

    assert size_without_weights(build) == size_of(model())
    assert built == [torch.device("meta")]
