"""A model and a depth of one's own, as recipes name them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

import equilibria as eq
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
