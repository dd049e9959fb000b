"""Texts that are written together, token after token: each may join and leave at any time.

A prompt is read alone, once for all texts that continue it; then all texts are decoded in one batch. What a text gets
depends on nothing beside it. A model that keeps nothing in a cache reads everything afresh for each token.
Shapes: B rows, L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from equilibria.cells import Cache, Memory
from equilibria.depths import Depth
from equilibria.depths.chunks import per_token
from equilibria.deq.failures import warn
from equilibria.models.sampling import Sampler
from equilibria.nn import TokenEmbedding
from equilibria.solvers import Solution

Some = TypeVar("Some", bound="Continuation")


@dataclass(frozen=True)
class Solved:
    """How the solves ended that the predictions of some rows rest on.

    Attributes:
        evaluations_B: after which the token before the prediction had converged, or all that were spent.
        converged_B: whether all tokens have converged that were read since the prediction before, at first the prompt.
    """

    evaluations_B: Tensor
    converged_B: Tensor

    @classmethod
    def of(cls, solution: Solution | None, rows: int) -> Solved | None:
        """The figures of a solve of that many rows; None for explicit depths."""
        if solution is None:
            return None
        evaluations_BL = per_token(solution.group_evaluations, (rows, -1))
        return cls(evaluations_BL[:, -1], per_token(solution.converged, (rows, -1)).all(dim=1))

    @classmethod
    def joined(cls, parts: Sequence[Solved | None]) -> Solved | None:
        """The rows of all parts; None if they are of explicit depths."""
        there = [part for part in parts if part is not None]
        if not there:
            return None
        return cls(torch.cat([part.evaluations_B for part in there]), torch.cat([part.converged_B for part in there]))

    def __getitem__(self, rows: Tensor | list[int]) -> Solved:
        return Solved(self.evaluations_B[rows], self.converged_B[rows])


def warn_of_failures(failed: int, tokens: int) -> None:
    """A `ConvergenceWarning` where some of the tokens were drawn after solves that failed."""
    if failed:
        warn(
            f"{failed} of {tokens} tokens were drawn after solves that did not converge; allow more evaluations or a "
            f"larger tolerance"
        )


@dataclass(frozen=True)
class Step:
    """What a model makes of tokens that follow those in a cache.

    Attributes:
        hidden_BLD: final states of the tokens.
        embedding: turns them into logits.
        cache: what to go on with.
        solution: the solve and its statistics; None for explicit depths.
    """

    hidden_BLD: Tensor
    embedding: TokenEmbedding
    cache: Cache | Memory
    solution: Solution | None = None

    @cached_property
    def logits_BV(self) -> Tensor:
        """Of the token after the last one."""
        with torch.no_grad():
            return self.embedding.logits(self.hidden_BLD[:, -1])

    @property
    def evaluations_BL(self) -> Tensor | None:
        """Evaluations after which each token had converged, or all that were spent; None for explicit depths."""
        if self.solution is None:
            return None
        return per_token(self.solution.group_evaluations, self.hidden_BLD.shape[:2])

    @property
    def solved(self) -> Solved | None:
        """How the solve ended that the prediction rests on; None for explicit depths."""
        return Solved.of(self.solution, len(self.hidden_BLD))


class Continuation(Protocol):
    """Where texts stand, as rows of one batch.

    Attributes:
        logits_BV: of the next token of each.
        solved: how the solves ended that these rest on; None for explicit depths.
    """

    @property
    def logits_BV(self) -> Tensor: ...

    @property
    def solved(self) -> Solved | None: ...

    def read(self: Some, token_B: Tensor) -> Some:
        """Where they stand after one more token each. This continuation is used up."""
        ...

    @classmethod
    def gathered(cls: type[Some], parts: Sequence[tuple[Some, Tensor]]) -> Some:
        """Rows of several continuations of one model as one.

        Args:
            parts: continuations, and of each the rows that are wanted, `(R,)` integers.
        """
        ...


class Reader(Protocol):
    """What is asked of a model."""

    @property
    def embedding(self) -> TokenEmbedding: ...

    def begin(
        self, tokens_BL: Tensor, window: int = 256, padding_B: Tensor | None = None, *, depth: Depth | None = None
    ) -> Continuation: ...

    def decode(self, tokens_BL: Tensor, cache: Cache | Memory, *, depth: Depth | None = None) -> Step: ...

    def next_hidden(
        self, prompt_BP: Tensor, written_BL: Tensor, window: int, *, depth: Depth | None = None
    ) -> tuple[Tensor, Solution | None]: ...


@dataclass(frozen=True)
class CachedContinuation:
    """Of a model that decodes from a cache, at its own depth or at another."""

    model: Reader
    depth: Depth | None
    logits_BV: Tensor
    solved: Solved | None
    cache: Cache | Memory

    @classmethod
    def after(cls, model: Reader, depth: Depth | None, step: Step) -> CachedContinuation:
        return cls(model, depth, step.logits_BV, step.solved, step.cache)

    def read(self, token_B: Tensor) -> CachedContinuation:
        return self.after(self.model, self.depth, self.model.decode(token_B, self.cache, depth=self.depth))

    @classmethod
    def gathered(cls, parts: Sequence[tuple[CachedContinuation, Tensor]]) -> CachedContinuation:
        first, (logits_BV, solved) = parts[0][0], _predictions(parts)
        cache = type(first.cache).gathered([(part.cache, rows) for part, rows in parts])  # pyright: ignore
        return cls(first.model, first.depth, logits_BV, solved, cache)


@dataclass(frozen=True)
class FreshContinuation:
    """Of a model that reads everything afresh: `texts` are prompts `(B, P)`, with what was written since, `(B, L)`."""

    model: Reader
    depth: Depth | None
    window: int
    texts: tuple[tuple[Tensor, Tensor], ...]
    logits_BV: Tensor
    solved: Solved | None

    @classmethod
    @torch.no_grad()
    def of(
        cls, model: Reader, depth: Depth | None, window: int, texts: Sequence[tuple[Tensor, Tensor]]
    ) -> FreshContinuation:
        read = [model.next_hidden(prompt_BP, written_BL, window, depth=depth) for prompt_BP, written_BL in texts]
        logits_BV = model.embedding.logits(torch.cat([hidden_BD for hidden_BD, _ in read]))
        solved = Solved.joined([Solved.of(solution, len(hidden_BD)) for hidden_BD, solution in read])
        return cls(model, depth, window, tuple(texts), logits_BV, solved)

    def read(self, token_B: Tensor) -> FreshContinuation:
        tokens = token_B.unsqueeze(1).split([len(prompt_BP) for prompt_BP, _ in self.texts])
        longer = [(text[0], torch.cat([text[1], token], dim=1)) for text, token in zip(self.texts, tokens, strict=True)]
        return self.of(self.model, self.depth, self.window, longer)

    @classmethod
    def gathered(cls, parts: Sequence[tuple[FreshContinuation, Tensor]]) -> FreshContinuation:
        """Rows stay in the groups that they were begun in."""
        texts: list[tuple[Tensor, Tensor]] = []
        for part, rows in parts:
            singles = [
                (p[None], w[None]) for prompt, written in part.texts for p, w in zip(prompt, written, strict=True)
            ]
            texts += [singles[row] for row in rows.tolist()]
        first = parts[0][0]
        return cls(first.model, first.depth, first.window, tuple(texts), *_predictions(parts))


def _predictions(parts: Sequence[tuple[Continuation, Tensor]]) -> tuple[Tensor, Solved | None]:
    """The logits of some rows of continuations, and how the solves behind these ended."""
    logits_BV = torch.cat([where.logits_BV[rows] for where, rows in parts])
    return logits_BV, Solved.joined([None if where.solved is None else where.solved[rows] for where, rows in parts])


@dataclass(frozen=True)
class DrawnTokens:
    """A token of each row.

    Attributes:
        token_B: their ids; -1 where the logits are not finite, and the text has ended.
        solved: how the solves ended that the draws rest on; None for explicit depths.
        logits_BV: what they were drawn from.
        samplers: who drew them.
    """

    token_B: Tensor
    solved: Solved | None
    logits_BV: Tensor
    samplers: Sequence[Sampler]


@dataclass
class _Group:
    """Texts that were read together: of each its row, and its sampler, None once it has left."""

    where: Continuation
    rows: list[int]
    samplers: list[Sampler | None]

    def drawn(self) -> DrawnTokens:
        samplers = [sampler for sampler in self.samplers if sampler is not None]
        logits_BV, solved = self.where.logits_BV, self.where.solved
        if self.rows != [*range(len(logits_BV))]:
            logits_BV = logits_BV[self.rows]
            solved = None if solved is None else solved[self.rows]
        tokens = Sampler.draw(samplers, logits_BV)
        self.samplers = [sampler if token >= 0 else None for sampler, token in zip(samplers, tokens, strict=True)]
        return DrawnTokens(torch.tensor(tokens, device=logits_BV.device), solved, logits_BV, samplers)


class Decoder:
    """Decodes texts together. Each is known by its sampler, which has its sampling and its random numbers.

    Args:
        model: in evaluation mode.
        window: tokens that each prediction sees at most.
        depth: the model's own when None.
    """

    def __init__(self, model: Reader, window: int = 256, depth: Depth | None = None) -> None:
        self._model, self._window, self._depth = model, window, depth
        self._groups: list[_Group] = []

    @property
    def samplers(self) -> list[Sampler]:
        """Of the texts that go on."""
        return [sampler for group in self._groups for sampler in group.samplers if sampler is not None]

    def join(self, tokens_BL: Tensor, samplers: Sequence[Sampler], padding_B: Tensor | None = None) -> DrawnTokens:
        """Reads prompts and draws the first token of their texts.

        Args:
            tokens_BL: token ids.
            samplers: one for each row, or several that all continue a single row.
            padding_B: tokens at the left of each row that are padding.

        Raises:
            ValueError: as `begin`. The other texts continue.
        """
        where = self._model.begin(tokens_BL, self._window, padding_B, depth=self._depth)
        copies = len(tokens_BL) == 1
        group = _Group(where, [0] * len(samplers) if copies else [*range(len(samplers))], [*samplers])
        self._groups.append(group)
        return group.drawn()

    def step(self) -> DrawnTokens:
        """One more token of every text; there must be one."""
        where, samplers = self._together()
        tokens = torch.tensor([sampler.token for sampler in samplers], device=where.logits_BV.device)
        group = _Group(where.read(tokens), [*range(len(samplers))], [*samplers])
        self._groups = [group]
        return group.drawn()

    def leave(self, sampler: Sampler) -> None:
        """A text ends here."""
        for group in self._groups:
            if sampler in group.samplers:
                group.samplers[group.samplers.index(sampler)] = None
        if not self.samplers:
            self._groups = []  # and nothing keeps their cache

    def _together(self) -> tuple[Continuation, list[Sampler]]:
        chosen, samplers = [], []
        for group in self._groups:
            going = [
                (row, sampler) for row, sampler in zip(group.rows, group.samplers, strict=True) if sampler is not None
            ]
            if going:
                chosen.append((group.where, [row for row, _ in going]))
                samplers += [sampler for _, sampler in going]
        (where, rows), *others = chosen
        if others or rows != [*range(len(where.logits_BV))]:
            device = where.logits_BV.device
            where = where.gathered([(part, torch.tensor(rows, device=device)) for part, rows in chosen])
        return where, samplers
