"""A language model: an embedding, a cell at a depth, and the softmax of the same embedding.

    tokens → embedding · √d → prelude → cell at its depth → coda → logits

A cell is bound to its inputs and its past once per solve; the depth sees a map of the state alone. A long segment may
be solved in chunks, from left to right, each seeing those before it through the memory.
Shapes: B batch, L length, D features, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from equilibria.cells import Cache, CacheView, Cell, Memory
from equilibria.cells.base import furthest, shared_columns
from equilibria.cells.cache import Entry
from equilibria.depths import Adaptive, Depth, Equilibrium, Reached
from equilibria.depths.chunks import joined
from equilibria.errors import UserError
from equilibria.models.causal import CausalModel, Read
from equilibria.models.compiled import CompiledToken
from equilibria.models.decoding import Guesser, Step
from equilibria.models.regularisation import Regularisation
from equilibria.models.speculation import Speculation
from equilibria.nn import TokenEmbedding, dropout_mask, masked
from equilibria.ranges import at_least, instance, probability, whole
from equilibria.solvers import Solution

# Of the tolerance: with it, decoding is within ten tolerances of a full solve that is nine from the exact solution.
_SHARE = 0.5

_Remember: TypeAlias = Callable[[], tuple[Tensor, ...]]
"""What a later segment attends to, of a cell that has been applied."""


class LanguageModel(CausalModel):
    """Predict each next token from those before it, at a depth of one's choice; of a cell that is not causal, the
    target at each position from the whole sequence.

    Args:
        embedding: of the tokens, and their softmax; `TiedEmbedding(vocabulary_size, d_model)` for one.
        cell: the map that is applied.
        depth: how often, unless a call says otherwise; an equilibrium when None.
        memory_length: tokens of earlier segments and chunks that are attended to, unless a call says otherwise.
        dropout: probability of dropping a feature of an embedded token, each token with a mask of its own.
        prelude: applied once before the depth; its output is what the cell injects.
        coda: applied once after the depth.
        chunk_length: tokens that are solved together; a whole segment when None. In training the gradient flows from a
            chunk to those before it, as far as the memory reaches.
        auxiliary_weight: weight of the mean loss of the states that the depth returns on its way, in training.
        regularisation: dropouts and penalties of training around the depth; those of final states are of what the
            coda makes of them.

    Raises:
        ValueError: a number is out of its range, a part does not read as many features as the one before it has, or a
            cell that is not causal is to have a memory or a solver that goes from left to right.
    """

    def __init__(
        self,
        embedding: TokenEmbedding,
        cell: Cell,
        depth: Depth | None = None,
        memory_length: int = 0,
        dropout: float = 0.0,
        *,
        prelude: Cell | None = None,
        coda: Cell | None = None,
        chunk_length: int | None = None,
        auxiliary_weight: float = 0.0,
        regularisation: Regularisation | None = None,
    ) -> None:
        super().__init__(embedding, memory_length, regularisation)
        parts = {"the prelude": prelude, "the cell": cell, "the coda": coda}.items()
        self._check_widths(embedding, *[(n, part.d_model, part.output_size) for n, part in parts if part is not None])
        if chunk_length is not None and (chunk_length < 1 or memory_length < 1):
            raise ValueError(
                f"chunks must have at least 1 token and see each other through a memory; "
                f"found chunk_length {chunk_length} and memory_length {memory_length}"
            )
        at_least(0, auxiliary_weight=auxiliary_weight)
        probability(dropout=dropout)
        self.prelude, self.cell, self.coda = prelude, cell, coda
        self.depth: Depth = depth if depth is not None else Equilibrium()
        self.chunk_length, self.dropout, self.auxiliary_weight = chunk_length, dropout, auxiliary_weight
        self.compiled_token: CompiledToken | None = None
        self._decoded = (self.depth, self.depth.stricter(_SHARE))  # the latest depth, and what tokens are solved at
        shared_columns(self._cells())
        self._length(None)
        self._check_depth(self.depth)

    @property
    def causal(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return all(cell.causal for cell in self._cells())

    @property
    def columns(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return shared_columns(self._cells())

    def _cells(self) -> list[Cell]:
        return [cell for cell in (self.prelude, self.cell, self.coda) if cell is not None]

    def _check_depth(self, depth: Depth) -> None:
        instance(Depth, "Equilibrium()", depth=depth)
        if (obstacle := depth.obstacle(self.cell)) is not None:
            raise ValueError(obstacle)
        if (leak := depth.leak(self.cell)) is not None:
            warnings.warn(leak, stacklevel=1)  # one place, so that a process says it once

    def _length(self, memory_length: int | None) -> int:
        length = super()._length(memory_length)
        if length and not self.causal:
            raise UserError(
                f"memory_length = {length}: tokens that all see each other (causal = false) are read at once; give 0, "
                f"and no chunk_length"
            )
        return length

    def read(
        self,
        x_BLD: Tensor,
        memory: Memory | Cache | None,
        *,
        depth: Depth | None = None,
        memory_length: int | None = None,
    ) -> Read:
        """Chunk after chunk: where the depth arrives. From a cache, and at an `Adaptive` depth, without gradients."""
        depth, memory_length = self.depth if depth is None else depth, self._length(memory_length)
        self._check_depth(depth)
        inputs_BLD = self._inputs(x_BLD)
        if isinstance(depth, Adaptive) and memory is None:
            self._check_mode()
            memory = self.new_cache(memory_length, depth=depth)
        if isinstance(memory, Cache):
            self._check_mode()
            self._check_cache(memory, depth)
            reached = self._into(memory, inputs_BLD, self.chunk_length, depth)
            return Read(reached.state, memory, reached.solution)
        if memory is not None:
            memory.check(len(inputs_BLD))
        reached, kept = self._segment(self._dropped(inputs_BLD), memory, memory_length, depth)
        return Read(reached.state, kept, reached.solution, reached.penalty, reached.states)

    def decodes(self, depth: Depth | None = None) -> bool:
        """True at an equilibrium and for a fixed number of applications, of cells that keep something in a cache."""
        depth = self.depth if depth is None else depth
        try:
            return depth.cache_parts is not None and bool(self._entries(depth))
        except ValueError:  # from a cell that keeps nothing
            return False

    @torch.no_grad()
    def prefill(
        self,
        tokens_BL: Tensor,
        padding_B: Tensor | None = None,
        limit: int | None = None,
        chunk_length: int | None = None,
        *,
        depth: Depth | None = None,
    ) -> Step:
        depth = self.depth if depth is None else depth
        self._check_decoding(tokens_BL, depth)
        cache = self.new_cache(limit, depth=depth)
        if padding_B is not None:
            cache.pad(padding_B, tokens_BL)
        return self._step(tokens_BL, cache, chunk_length, depth)

    @torch.no_grad()
    def decode(self, tokens_BL: Tensor, cache: Cache | Memory, *, depth: Depth | None = None) -> Step:
        """Read further tokens; see `TokenModel.decode`.

        At an equilibrium they are solved to half the tolerance: what is wrong with a state is seen by all that follow.
        """
        tokens_BL = tokens_BL.unsqueeze(1) if tokens_BL.dim() == 1 else tokens_BL
        depth = self.depth if depth is None else depth
        self._check_decoding(tokens_BL, depth)
        if not isinstance(cache, Cache):
            raise ValueError("this model decodes from the cache that its prefill returned")
        if depth is not self._decoded[0]:
            self._decoded = depth, depth.stricter(_SHARE)
        return self._step(tokens_BL, cache, None, self._decoded[1])

    def guesser(self, guesses: int, depth: Depth | None = None) -> Guesser | None:
        whole(0, guesses=guesses)
        depth = self.depth if depth is None else depth
        return Speculation(self, depth.stricter(_SHARE), guesses) if guesses else None

    def solve(
        self, tokens_BL: Tensor, past: Memory | Cache | None = None, *, depth: Depth | None = None
    ) -> tuple[Callable[[Tensor], Tensor], Solution]:
        """The map that the model solves for these tokens, and its solution: what `spectral_radius` and other
        measurements ask for. The tokens are solved together, whatever `chunk_length` says.

        The solution has no graph. In training mode the map is that of a training step, with masks of its own.

        Args:
            tokens_BL: token ids, `(B, L)`.
            past: what precedes them: the memory that a segment returned, or a cache, which stays as it is: solve and
                map write to slots that are still free.
            depth: of this call.

        Raises:
            ValueError: the depth does not solve, or the past is that of another model.
        """
        depth = self.depth if depth is None else depth
        self._check_depth(depth)
        if isinstance(depth, Adaptive) and past is None:
            past = self.new_cache(depth=depth)
        with torch.enable_grad():  # or a later evaluation with a graph could not write to a cache
            inputs_BLD = self._inputs(self.embedded(tokens_BL))
            if isinstance(past, Cache):
                self._check_mode()
                self._check_cache(past, depth)
                bound, _ = self._over(past, inputs_BLD, depth)
                start = self.cell.initial_state(bound.inputs_BLD)
            else:
                if past is not None:
                    past.check(len(tokens_BL))
                before, within, _ = self._divided(past)
                inputs_BLD, _ = _once(self.prelude, self._dropped(inputs_BLD), before)
                bound, start = self.cell.bind(inputs_BLD, within), self.cell.initial_state(inputs_BLD)
        with torch.no_grad():
            solution = depth.reach(bound, start, self.training).solution
        if solution is None:
            raise ValueError(f"there is no solution at a depth of kind {type(depth).__name__}; give one that solves")
        return bound, solution

    def _step(self, tokens_BL: Tensor, cache: Cache, chunk_length: int | None, depth: Depth) -> Step:
        inputs_BLD = self._inputs(self.embedded(tokens_BL))
        self._check_cache(cache, depth)
        if self.compiled_token is not None and (step := self.compiled_token.read(inputs_BLD, cache, depth)) is not None:
            return step
        reached = self._into(cache, inputs_BLD, chunk_length, depth)
        return Step(reached.state, self.embedding, cache, reached.solution)

    def new_cache(self, limit: int | None = None, *, depth: Depth | None = None) -> Cache:
        """An empty cache of this model, of at most `limit` past tokens, to be read and written at a depth; by default
        all that the cells look back to, at the model's own. A ValueError if the model keeps nothing in a cache.
        """
        depth = self.depth if depth is None else depth
        cells = self._cached_cells(depth)
        bounds = [bound for bound in (limit, furthest(cell.reach for cell in cells)) if bound is not None]
        return Cache(self._entries(depth), min(bounds, default=None))

    def _entries(self, depth: Depth) -> tuple[Entry, ...]:
        """What a cache keeps of a token, cell after cell."""
        return tuple(entry for cell in self._cached_cells(depth) for entry in cell.cached)

    def _cached_cells(self, depth: Depth) -> list[Cell]:
        """Whose parts a cache has, in order; an explicit depth's cell is there once for each of its applications."""
        cells = [self.prelude, *[self.cell] * (depth.cache_parts or 1), self.coda]
        return [cell for cell in cells if cell is not None]

    @torch.no_grad()
    def _into(self, cache: Cache, inputs_BLD: Tensor, chunk_length: int | None, depth: Depth) -> Reached:
        """The next tokens, chunk after chunk."""
        chunks = (inputs_BLD,) if chunk_length is None else inputs_BLD.split(chunk_length, dim=1)
        return joined([self._chunk_into(cache, chunk_BLD, depth) for chunk_BLD in chunks])

    def _check_cache(self, cache: Cache, depth: Depth) -> None:
        if cache.entries != self._entries(depth):
            found, kept = list(cache.entries), list(self._entries(depth))
            raise ValueError(f"the cache is of another model: it keeps {found} of a token, and this one keeps {kept}")

    def _over(self, cache: Cache, inputs_BLD: Tensor, depth: Depth) -> tuple[CachedMap, CacheView | None]:
        """The map of the next tokens, which see what is in the cache, and the part of it that is the coda's."""
        present_BL1 = cache.present(inputs_BLD.shape[1])
        views = cache.room(inputs_BLD).split([len(cell.cached) for cell in self._cached_cells(depth)])
        if self.prelude is not None:
            inputs_BLD = _applied_once(self.prelude, inputs_BLD, views.pop(0), present_BL1)
        after = views.pop() if self.coda is not None else None
        logits = self.embedding.logits if self.coda is None else None
        return CachedMap(self.cell, inputs_BLD, views, present_BL1, logits), after

    def _chunk_into(self, cache: Cache, inputs_BLD: Tensor, depth: Depth) -> Reached:
        """The next tokens, which see what is in the cache and are added to it."""
        cell_map, after = self._over(cache, inputs_BLD, depth)
        start = cell_map.start
        if self.cell.injection and depth.solves:
            start = cache.start(start)
        reached = depth.reach(cell_map, start, training=False)
        cell_map.settle(reached)
        hidden_BLD = self._hidden(cell_map, after, reached.state)
        cache.advance(reached.state)
        return replace(reached, state=hidden_BLD)

    def over(self, tokens_BL: Tensor, cache: Cache, depth: Depth) -> tuple[CachedMap, Callable[[Tensor], Tensor]]:
        """The map of tokens that follow a cache, which writes to its free slots, and what makes final states of theirs.
        Without gradients, in evaluation mode."""
        cell_map, after = self._over(cache, self._inputs(self.embedded(tokens_BL)), depth)
        return cell_map, partial(self._hidden, cell_map, after)

    def _hidden(self, cell_map: CachedMap, after: CacheView | None, states_BLD: Tensor) -> Tensor:
        """The final states of tokens, which the coda adds to its part of the cache."""
        hidden_BLD = self.cell.readout(states_BLD)
        if self.coda is None or after is None:
            return hidden_BLD
        return _applied_once(self.coda, hidden_BLD, after, cell_map.present_BL1)

    def _inputs(self, x_BLD: Tensor) -> Tensor:
        """What the prelude reads of embedded tokens, or the cell."""
        return x_BLD * self.cell.d_model**0.5

    def _dropped(self, inputs_BLD: Tensor) -> Tensor:
        """In training, some of their features dropped."""
        return masked(inputs_BLD, dropout_mask(inputs_BLD, self.dropout, self.training))

    def _divided(self, memory: Memory | None) -> list[Memory | None]:
        """The parts of prelude, cell and coda."""
        cells = (self.prelude, self.cell, self.coda)
        return Memory.split(memory, [cell.remembered if cell is not None else 0 for cell in cells])

    def _segment(
        self, inputs_BLD: Tensor, memory: Memory | None, memory_length: int, depth: Depth
    ) -> tuple[Reached, Memory | None]:
        """Chunk after chunk: where they arrived, and the memory after the last."""
        chunks = (inputs_BLD,) if self.chunk_length is None else inputs_BLD.split(self.chunk_length, dim=1)
        arrived, read = [], 0
        for number, chunk_BLD in enumerate(chunks, start=1):
            first, read = read, read + chunk_BLD.shape[1]
            reached, remembered = self._chunk(chunk_BLD, memory, depth.of_tokens(first, read))
            arrived.append(reached)
            # Within a segment a later chunk sends its gradient back through the memory; the next segment does not.
            last = number == len(chunks)
            if memory_length:
                with torch.set_grad_enabled(torch.is_grad_enabled() and not last):
                    new = [state for remember in remembered for state in remember()]
                    memory = Memory.join(memory, new, memory_length, detach=last)
            else:
                memory = None
        return joined(arrived), memory

    def _chunk(self, inputs_BLD: Tensor, memory: Memory | None, depth: Depth) -> tuple[Reached, list[_Remember]]:
        """Prelude, depth and coda: the hidden states that they lead to, and what is remembered of each."""
        before, within, after = self._divided(memory)
        inputs_BLD, first = _once(self.prelude, inputs_BLD, before)
        bound = self.cell.bind(inputs_BLD, within)
        reached = depth.reach(bound, self.cell.initial_state(inputs_BLD), self.training)
        remember = partial(bound.remember, reached.state)
        if self.cell.remembers_argument and reached.argument is not None:
            remember = partial(bound.remember, reached.argument, latest=True)
        hidden_BLD, last = _once(self.coda, self.cell.readout(reached.state), after)
        states = tuple(_once(self.coda, self.cell.readout(state), after)[0] for state in reached.states)
        return replace(reached, state=hidden_BLD, states=states), [*first, remember, *last]


def _once(cell: Cell | None, inputs_BLD: Tensor, memory: Memory | None) -> tuple[Tensor, list[_Remember]]:
    """The output of a cell applied once, and what is remembered of it; the inputs where there is no cell."""
    if cell is None:
        return inputs_BLD, []
    bound, start = cell.bind(inputs_BLD, memory), cell.initial_state(inputs_BLD)
    return cell.readout(bound(start)), [partial(bound.remember, start, latest=True)]


class CachedMap:
    """`z ↦ f(z; x)` whose evaluations leave keys and values in the segment's slots of a cache.

    Args:
        cell: the map.
        inputs_BLD: of the segment; zeroed at padding, where states stay what they are.
        views: one part of a cache, or one for each application of an explicit depth.
        present_BL1: False at padding; None where there is none.
        logits: of a final state; None where a state does not lead to them token by token.
    """

    def __init__(
        self,
        cell: Cell,
        inputs_BLD: Tensor,
        views: Sequence[CacheView],
        present_BL1: Tensor | None,
        logits: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._logits = logits
        self.cell = cell
        self.inputs_BLD = inputs_BLD if present_BL1 is None else inputs_BLD * present_BL1
        self.present_BL1 = present_BL1
        self._bound = cell.bind(self.inputs_BLD, views[0])
        self._evaluate = self._bound.shortest
        self._following = iter(views[1:])
        self._several = len(views) > 1
        self._argument: Tensor | None = None
        self._value: Tensor | None = None

    @property
    def start(self) -> Tensor:
        """Where a solve starts."""
        return self.cell.initial_state(self.inputs_BLD)

    def __call__(self, z_BLD: Tensor) -> Tensor:
        """One evaluation; the next of several parts is the one that it fills."""
        if self._several and self._argument is not None:
            self._bound = self._bound.over(next(self._following))
            self._evaluate = self._bound.shortest
        value = self._evaluate(z_BLD)
        self._argument = z_BLD
        if self.present_BL1 is not None:
            value = torch.where(self.present_BL1, value, z_BLD)
        self._value = value
        if self._several:
            self._bound.keep(z_BLD, value)
        return value

    def at(self, row: int, tokens_T: Tensor) -> Callable[[Tensor], Tensor]:
        """The map at some tokens of a row, `(1, T, ·)`, the others being as they were last evaluated."""
        return self._bound.at(row, tokens_T)

    def hold(self, z_BLD: Tensor) -> None:
        """Every token was last evaluated at its state in `z`: the cache holds what belongs there."""
        self._argument = z_BLD

    def predictions(self, z_BLD: Tensor) -> Tensor:
        """Log-probabilities `(B, L, V)` of the next tokens.

        Raises:
            ValueError: layers behind the depth mix tokens.
        """
        if self._logits is None:
            raise ValueError("predictions of a model with a coda need all its tokens; let tokens leave by residual")
        return self._logits(self.cell.readout(z_BLD)).log_softmax(-1)

    def settle(self, reached: Reached) -> None:
        """Have the cache hold what belongs to where the depth arrived; solvers that return what they measured last have
        left that there."""
        if self._several:
            return
        final = reached.state if reached.argument is None else reached.argument
        if self._argument is None or not torch.equal(self._argument, final):
            self(final)
        self.keep()

    def keep(self) -> None:
        """Have the cache hold what belongs to the latest evaluation."""
        assert self._argument is not None
        assert self._value is not None
        self._bound.keep(self._argument, self._value)


def _applied_once(cell: Cell, inputs_BLD: Tensor, view: CacheView, present_BL1: Tensor | None) -> Tensor:
    """The output of a cell applied once, as preludes and codas are."""
    applied = CachedMap(cell, inputs_BLD, [view], present_BL1)
    start = applied.start
    value = applied(start)
    applied.settle(Reached(value, argument=start))
    return cell.readout(value)
