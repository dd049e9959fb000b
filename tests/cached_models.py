"""Small models that decode from a cache, of every kind of cell."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from equilibria.cells import Cell, ContractiveCell, StackedCell, TransformerXLCell, TrellisCell
from equilibria.depths import Depth
from equilibria.models import LanguageModel
from equilibria.nn import TiedEmbedding

V, D = 29, 16

CELLS: dict[str, Callable[[], Cell]] = {
    "rotary": lambda: ContractiveCell(D, 2, 24),
    "grouped, normed": lambda: ContractiveCell(D, 4, 24, key_value_heads=2, query_key_norm=True, positions="none"),
    "two blocks, linear": lambda: ContractiveCell(D, 2, 24, blocks=2, positions="linear"),
    "strict": lambda: ContractiveCell(D, 2, 24, strict=True),
    "strict, linear": lambda: ContractiveCell(D, 2, 24, positions="linear", strict=True, slope_factor=16.0),
    "post norm": lambda: TransformerXLCell(D, 2, 24, affine=True),
    "windowed": lambda: TransformerXLCell(D, 2, 24, affine=True, window=5),
    "trellis": lambda: TrellisCell(D, 8, dilation=2),
    "scanned trellis": lambda: TrellisCell(D, 8, scan=True),
    "stack": lambda: StackedCell([ContractiveCell(D, 2, 24), TransformerXLCell(D, 2, 24, affine=True)]),
}


def model(cell: Callable[[], Cell], depth: Depth, framed: bool = False, memory_length: int = 64) -> LanguageModel:
    torch.manual_seed(0)
    frame = {}
    if framed:
        frame["prelude"] = StackedCell([ContractiveCell(D, 2, 24, injection=False)])
        frame["coda"] = ContractiveCell(D, 2, 24, injection=False)
    built = LanguageModel(TiedEmbedding(V, D), cell(), depth, memory_length, **frame).eval()
    with torch.no_grad():
        for parameter in built.cell.parameters():
            parameter.mul_(0.6)
    return built


def text(batch: int = 3, length: int = 16, seed: int = 1) -> Tensor:
    return torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(seed))
