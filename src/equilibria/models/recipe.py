"""What the `[model]` section of a recipe says: how to build a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import nn

from equilibria.cells import Cell, ContractiveCell
from equilibria.cells.stack import StackedCell
from equilibria.depths import Depth, Equilibrium
from equilibria.errors import Problems, cause, is_out_of_memory
from equilibria.models.base import TokenModel
from equilibria.models.language_model import LanguageModel
from equilibria.models.regularisation import Regularisation
from equilibria.nn import TiedEmbedding, TokenEmbedding, UntiedEmbedding
from equilibria.ranges import at_least, layers, probability, whole
from equilibria.solvers import NewtonKrylov


@dataclass(frozen=True, kw_only=True)
class ModelRecipe(ABC):
    """Builds a model for a vocabulary. What it takes are the options of the section.

    Args:
        embedding: tokens in and out.
        memory_length: tokens of the segments before that a segment sees; of models with a state, 0 for none and
            anything else for all of it.
        regularisation: dropouts and penalties around the layers; a mask is the same for all tokens of a row.
    """

    embedding: partial[TokenEmbedding] = field(default_factory=lambda: partial(TiedEmbedding))
    memory_length: int = 0
    regularisation: Regularisation = field(default_factory=Regularisation)

    reads_source = False
    """Whether the model reads a source and writes a target, instead of reading from segment to segment."""

    def __post_init__(self) -> None:
        whole(0, memory_length=self.memory_length)

    @abstractmethod
    def build(self, vocabulary_size: int) -> TokenModel:
        """The model, freshly initialised.

        Raises:
            ValueError: numbers that do not go together.
        """

    def check(self) -> TokenModel | None:
        """Raises a ValueError where the model cannot be built, as far as that is known without the text.

        It is built on the meta device, with an embedding of a single token, and returned. A model of your own for which
        that is no test overrides this; it may return None.
        """
        stand_in = UntiedEmbedding if self.untied else TiedEmbedding
        with torch.device("meta"):
            return construct(partial(replace(self, embedding=partial(stand_in)).build, 1))

    @property
    def untied(self) -> bool:
        """Whether the softmax may read another number of features than an embedded token has."""
        return "d_output" in signature(self.embedding.func).parameters

    def build_embedding(self, vocabulary_size: int, d_model: int, d_output: int) -> TokenEmbedding:
        """The embedding, whose softmax reads `d_output` features if it is untied.

        Raises:
            ValueError: its class cannot be made so.
        """
        with blamed_on("model.embedding"):
            return construct(self.embedding, vocabulary_size=vocabulary_size, d_model=d_model, d_output=d_output)

    def no_compilation(self) -> str | None:
        """Why the model's cell cannot be compiled; None where it can."""
        return "the model has no cell"


def construct(part: partial[Any], **given: Any) -> Any:
    """The object that a recipe describes in part; its class gets those further arguments that it takes.

    Raises:
        ValueError: a cell is to have no injection, and cannot do without; or the class cannot be made so.
    """
    known = signature(part.func).parameters
    if given.get("injection") is False and "injection" not in known:
        kind = getattr(part.func, "__name__", part.func)
        raise ValueError(
            f"a {kind} has no form without injection, as layers have; set prelude_layers and coda_layers to 0, "
            'and no depth "stack"'
        )
    try:
        return part(**{name: value for name, value in given.items() if name in known})
    except Exception as problem:
        if isinstance(problem, Problems) or is_out_of_memory(problem):
            raise
        raise ValueError(cause(problem)) from problem


@contextmanager
def blamed_on(section: str) -> Iterator[None]:
    """What a class says of its arguments becomes what is wrong with a section."""
    try:
        yield
    except ValueError as problem:
        raise Problems((tuple(section.split(".")), str(problem))) from problem


@dataclass(frozen=True, kw_only=True)
class LanguageModelRecipe(ModelRecipe):
    """A cell at a depth, and what is around them.

    Args:
        cell: the map that is applied.
        depth: how often; in part where it has weights.
        dropout: probability of dropping a feature of an embedded token, each token on its own; none for that of the
            cell.
        chunk_length: tokens that are solved together; none for a whole segment.
        prelude_layers: explicit layers, of the cell's kind, between the embedding and the depth.
        coda_layers: explicit layers, of the cell's kind, after the depth.
        coda_inner: features inside the feed-forward networks of those layers; none for as many as in the cell.
        auxiliary_weight: weight of the mean loss of the states on the way (depth.states_every).
    """

    cell: partial[Cell] = field(default_factory=lambda: partial(ContractiveCell))
    depth: Depth | partial[Depth] = field(default_factory=Equilibrium)
    dropout: float | None = None
    chunk_length: int | None = None
    prelude_layers: int = 0
    coda_layers: int = 0
    coda_inner: int | None = None
    auxiliary_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, auxiliary_weight=self.auxiliary_weight)
        whole(1, chunk_length=self.chunk_length, coda_inner=self.coda_inner)
        layers(0, prelude_layers=self.prelude_layers, coda_layers=self.coda_layers)
        probability(dropout=self.dropout)
        if isinstance(self.depth, nn.Module):
            name = type(self.depth).__name__
            raise ValueError(f"depth is a {name}, whose weights all models would share; give partial({name}, ...)")
        if self.coda_inner is not None and not self.coda_layers:
            raise ValueError(f"coda_inner = {self.coda_inner} has no use without coda_layers; leave it out")
        if self.chunk_length is not None and not self.memory_length:
            raise ValueError("memory_length = 0: chunks (chunk_length) see each other through a memory; give 1 or more")
        if self.auxiliary_weight and getattr(self.depth, "states_every", None) is None:
            raise ValueError("auxiliary_weight has no use without depth.states_every")

    def build(self, vocabulary_size: int) -> LanguageModel:
        depth, cell, prelude, coda = self._parts()
        embedding = self.build_embedding(vocabulary_size, cell.d_model, (cell if coda is None else coda).output_size)
        dropout = self.dropout if self.dropout is not None else self.cell.keywords.get("dropout", 0.0)
        with blamed_on("model"):
            return LanguageModel(
                embedding,
                cell,
                depth,
                memory_length=self.memory_length,
                dropout=dropout,
                prelude=prelude,
                coda=coda,
                chunk_length=self.chunk_length,
                auxiliary_weight=self.auxiliary_weight,
                regularisation=self.regularisation,
            )

    def no_compilation(self) -> str | None:
        """Why the cell cannot be compiled: second and forward derivatives of compiled code are not supported."""
        if not isinstance(self.depth, Equilibrium):
            return None
        schedule = self.depth.schedule
        if self.depth.jacobian_penalty or (schedule is not None and schedule.jacobian is not None):
            return "a Jacobian penalty needs second derivatives, which torch.compile does not support"
        for solver in (self.depth.solver, self.depth.eval_solver):
            if isinstance(solver, NewtonKrylov) and solver.products != "differences":
                return 'exact products need forward mode, which torch.compile does not support; take "differences"'
        return None

    def _parts(self) -> tuple[Depth, Cell, Cell | None, Cell | None]:
        with blamed_on("model.depth"):
            depth = construct(self.depth) if isinstance(self.depth, partial) else self.depth
        with blamed_on("model.cell"):
            cell = depth.arrange(lambda injection: construct(self.cell, injection=injection))
            if not hasattr(cell, "d_model"):
                raise ValueError(f"{type(cell).__name__} sets no d_model, the features of its input and output")
            prelude = self._explicit(self.prelude_layers, {})
            coda = self._explicit(self.coda_layers, {} if self.coda_inner is None else {"inner": self.coda_inner})
        return depth, cell, prelude, coda

    def _explicit(self, layers: int, options: dict[str, int]) -> Cell | None:
        if not layers:
            return None
        return StackedCell([construct(self.cell, injection=False, **options) for _ in range(layers)])
