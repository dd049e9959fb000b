"""A model, a depth and a task of one's own, as recipes name them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

import equilibria as eq
from equilibria.data import Segment, SequenceTask
from equilibria.depths import Depth, Reached
from equilibria.models import ModelRecipe
from equilibria.nn import TiedEmbedding
from equilibria.paper.baselines import LSTMLayer, SequenceModel


@dataclass(frozen=True, kw_only=True)
class NamedCellModel(ModelRecipe):
    """A recurrent model with a word where ours have a cell, and no depth."""

    cell: str = "lstm"

    def build(self, vocabulary_size: int) -> SequenceModel:
        return SequenceModel(TiedEmbedding(vocabulary_size, 8), [LSTMLayer(8, 8)], memory_length=0)


@dataclass(frozen=True)
class Settled(Depth):
    """A depth that solves, but is no `Equilibrium`."""

    solves = True

    def reach(self, f: Callable[[Tensor], Tensor], z0: Tensor, training: bool) -> Reached:
        solver = eq.Picard(tol=1e-2, max_evaluations=20, scope="prefix")
        solution = eq.fixed_point(f, z0, solver, eq.JacobianFree(), on_failure="ignore")
        return Reached(solution.value, solution)


@dataclass(frozen=True)
class CrossParity(SequenceTask):
    """A grid of bits; at each cell whether its row and its column have together an odd number of ones."""

    rows: int = 3
    columns: int = 4
    held_out: int = 40
    causal: ClassVar[bool] = False

    @property
    def vocabulary_size(self) -> int:
        return 2

    @property
    def length(self) -> int:
        return self.rows * self.columns

    @property
    def grid(self) -> tuple[int, int]:
        return self.rows, self.columns

    @property
    def count(self) -> int:
        return 2**self.length

    def segment(self, numbers: np.ndarray) -> Segment:
        inputs = torch.from_numpy(numbers[:, None] >> np.arange(self.length) & 1)
        bits = inputs.view(-1, self.rows, self.columns)
        targets = (bits.sum(1, keepdim=True) + bits.sum(2, keepdim=True)).flatten(1) % 2
        return Segment(inputs, targets, starts=True, answers=torch.ones_like(targets, dtype=torch.bool))


@dataclass(frozen=True)
class Counting(SequenceTask):
    """Digits, each so much more than the one before: a task whose answers are the next inputs."""

    continues: ClassVar[bool] = True
    digits: int = 8
    held_out: int = 20

    @property
    def vocabulary_size(self) -> int:
        return 10

    @property
    def length(self) -> int:
        return self.digits

    @property
    def count(self) -> int:
        return 100

    def segment(self, numbers: np.ndarray) -> Segment:
        first, more = numbers[:, None] % 10, numbers[:, None] // 10
        digits = torch.from_numpy((first + more * np.arange(self.digits + 1)) % 10)
        return Segment(digits[:, :-1], digits[:, 1:], starts=True)
