"""A language model: an embedding, a cell at a depth, and the softmax of the same embedding.

    tokens → embedding · √d → prelude → cell at its depth → coda → logits

A cell's context is computed once per solve, before the depth is reached; the depth sees a map of the state alone. A
long segment may be solved in chunks, from left to right, each seeing those before it through the memory.
Shapes: B batch, L length, D features, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from equilibria.cells import Cell, Memory
from equilibria.depths import Depth, Equilibrium, Reached, joined
from equilibria.models.causal import CausalModel, Read
from equilibria.models.regularisation import Regularisation
from equilibria.nn import TokenEmbedding, dropout_mask, masked


@dataclass(frozen=True)
class _Applied:
    """A cell that has been applied, and the state that its memory is of."""

    cell: Cell[Any]
    state: Tensor
    context: Any

    def remember(self) -> tuple[Tensor, ...]:
        return self.cell.remember(self.state, self.context)


class LanguageModel(CausalModel):
    """Predict each next token from those before it, at a depth of one's choice.

    Args:
        embedding: of the tokens, and their softmax; `TiedEmbedding(vocabulary_size, d_model)` for one.
        cell: the map that is applied.
        depth: how often; an equilibrium when None.
        memory_length: tokens of earlier segments and chunks that are attended to.
        dropout: probability of dropping a feature of an embedded token, each token with a mask of its own.
        prelude: applied once before the depth; its output is what the cell injects.
        coda: applied once after the depth.
        chunk_length: tokens that are solved together; a whole segment when None. In training the gradient flows from a
            chunk to those before it, as far as the memory reaches.
        auxiliary_weight: weight of the mean loss of the states that the depth returns on its way, in training.
        regularisation: dropouts and penalties of training around the depth; those of final states are of what the
            coda makes of them.

    Raises:
        ValueError: a number is out of its range, or the parts are not of one width.
    """

    def __init__(
        self,
        embedding: TokenEmbedding,
        cell: Cell[Any],
        depth: Depth | None = None,
        memory_length: int = 0,
        dropout: float = 0.0,
        *,
        prelude: Cell[Any] | None = None,
        coda: Cell[Any] | None = None,
        chunk_length: int | None = None,
        auxiliary_weight: float = 0.0,
        regularisation: Regularisation | None = None,
    ) -> None:
        super().__init__(embedding, memory_length, regularisation)
        widths = {part.d_model for part in (embedding, prelude, cell, coda) if part is not None}
        if len(widths) != 1:
            raise ValueError(f"embedding, prelude, cell and coda must have one d_model, found {sorted(widths)}")
        if chunk_length is not None and (chunk_length < 1 or memory_length < 1):
            raise ValueError(
                f"chunks must have at least 1 token and see each other through a memory; "
                f"found chunk_length {chunk_length} and memory_length {memory_length}"
            )
        if not auxiliary_weight >= 0:
            raise ValueError(f"auxiliary_weight must be at least 0, found {auxiliary_weight}")
        self.prelude = prelude
        self.cell = cell
        self.coda = coda
        self.depth: Depth = depth if depth is not None else Equilibrium()
        self.chunk_length, self.dropout, self.auxiliary_weight = chunk_length, dropout, auxiliary_weight

    def read(self, x_BLD: Tensor, memory: Memory | None) -> Read:
        """Chunk after chunk: where the depth arrives."""
        inputs_BLD = x_BLD * self.cell.d_model**0.5
        inputs_BLD = masked(inputs_BLD, dropout_mask(inputs_BLD, self.dropout, self.training))
        reached, kept = self._segment(inputs_BLD, memory)
        return Read(reached.state, kept, reached.solution, reached.penalty, reached.states)

    def _segment(self, inputs_BLD: Tensor, memory: Memory | None) -> tuple[Reached, Memory | None]:
        """Chunk after chunk: where they arrived, and the memory after the last."""
        chunks = (inputs_BLD,) if self.chunk_length is None else inputs_BLD.split(self.chunk_length, dim=1)
        arrived = []
        for number, chunk_BLD in enumerate(chunks, start=1):
            reached, applied = self._chunk(chunk_BLD, memory)
            arrived.append(reached)
            # Within a segment a later chunk sends its gradient back through the memory; the next segment does not.
            last = number == len(chunks)
            if self.memory_length:
                with torch.set_grad_enabled(torch.is_grad_enabled() and not last):
                    new = [state for cell in applied for state in cell.remember()]
                    memory = Memory.join(memory, new, self.memory_length, detach=last)
            else:
                memory = None
        return joined(arrived), memory

    def _chunk(self, inputs_BLD: Tensor, memory: Memory | None) -> tuple[Reached, list[_Applied]]:
        """Prelude, depth and coda: the hidden states that they lead to, and what the cells remember from."""
        sizes = [cell.remembered if cell is not None else 0 for cell in (self.prelude, self.cell, self.coda)]
        before, within, after = Memory.split(memory, sizes)
        inputs_BLD, first = _once(self.prelude, inputs_BLD, before)
        context = self.cell.context(inputs_BLD, within)
        reached = self.depth.reach(lambda z: self.cell(z, context), self.cell.initial_state(inputs_BLD), self.training)
        remembered = _Applied(self.cell, reached.state, context)
        if self.cell.remembers_argument and reached.argument is not None:
            remembered = replace(remembered, state=reached.argument)
        hidden_BLD, last = _once(self.coda, self.cell.readout(reached.state), after)
        states = tuple(_once(self.coda, self.cell.readout(state), after)[0] for state in reached.states)
        return replace(reached, state=hidden_BLD, states=states), [*first, remembered, *last]


def _once(cell: Cell[Any] | None, inputs_BLD: Tensor, memory: Memory | None) -> tuple[Tensor, list[_Applied]]:
    """The output of a cell applied once, and what it remembers from; the inputs where there is no cell."""
    if cell is None:
        return inputs_BLD, []
    context = cell.context(inputs_BLD, memory)
    start = cell.initial_state(inputs_BLD)
    return cell.readout(cell(start, context)), [_Applied(cell, start, context)]
