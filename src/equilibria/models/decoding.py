"""Texts that are written together, token after token: each may join and leave at any time.

A prompt is read alone, once for all texts that continue it; then all texts are decoded in one batch. What a text gets
depends on nothing beside it. A model that keeps nothing in a cache reads everything afresh for each token.
Shapes: B rows, L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
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
        residual_B: the largest residual of these tokens; not finite where the map never was.
    """

    evaluations_B: Tensor
    converged_B: Tensor
    residual_B: Tensor

    @classmethod
    def of(cls, solution: Solution | None, rows: int) -> Solved | None:
        """The figures of a solve of that many rows; None for explicit depths."""
        if solution is None:
            return None
        evaluations_BL, converged_BL, residual_BL = (
            per_token(figure, (rows, -1))
            for figure in (solution.group_evaluations, solution.converged, solution.residual)
        )
        return cls(evaluations_BL[:, -1], converged_BL.all(dim=1), residual_BL.amax(dim=1))

    @classmethod
    def joined(cls, parts: Sequence[Solved | None]) -> Solved | None:
        """The rows of all parts; None if they are of explicit depths."""
        there = [part for part in parts if part is not None]
        if not there:
            return None
        return cls(
            torch.cat([part.evaluations_B for part in there]),
            torch.cat([part.converged_B for part in there]),
            torch.cat([part.residual_B for part in there]),
        )

    def then(self, later: Solved) -> Solved:
        """The figures of these solves and of those of the tokens after them."""
        return Solved(
            later.evaluations_B,
            self.converged_B & later.converged_B,
            torch.maximum(self.residual_B, later.residual_B),
        )

    @property
    def finite_B(self) -> Tensor:
        """Whether there is a state at all: where the map was never finite, none is known."""
        return self.residual_B < torch.inf

    def __getitem__(self, rows: Tensor | list[int]) -> Solved:
        return Solved(self.evaluations_B[rows], self.converged_B[rows], self.residual_B[rows])


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
        logits_BLV: those of all tokens, where they have been computed already.
    """

    hidden_BLD: Tensor
    embedding: TokenEmbedding
    cache: Cache | Memory
    solution: Solution | None = None
    logits_BLV: Tensor | None = None

    @cached_property
    def logits_BV(self) -> Tensor:
        """Of the token after the last one."""
        if self.logits_BLV is not None:
            return self.logits_BLV[:, -1]
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


class Guesser(Protocol):
    """What guesses tokens ahead."""

    def read(self, where: Continuation, sampler: Sampler) -> Continuation | None:
        """Where a single text stands after the token that was drawn last; None where that takes the usual way."""
        ...


class Reader(Protocol):
    """What is asked of a model."""

    @property
    def embedding(self) -> TokenEmbedding: ...

    def begin_in_parts(
        self,
        tokens_BL: Tensor,
        window: int = 256,
        padding_B: Tensor | None = None,
        part_length: int | None = None,
        *,
        depth: Depth | None = None,
    ) -> Iterator[Continuation | None]: ...

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
    def after(
        cls, model: Reader, depth: Depth | None, step: Step, before: CachedContinuation | None = None
    ) -> CachedContinuation:
        """After a step, and after what was read of the same prompt before it."""
        solved = step.solved
        if before is not None and before.solved is not None and solved is not None:
            solved = before.solved.then(solved)
        return cls(model, depth, step.logits_BV, solved, step.cache)

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
        token_B: their ids; -1 where no state or no logits are finite, and the text has ended.
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

    @property
    def going(self) -> list[Sampler]:
        return [sampler for sampler in self.samplers if sampler is not None]

    def drawn(self) -> DrawnTokens:
        samplers = self.going
        logits_BV, solved = self.where.logits_BV, self.where.solved
        if self.rows != [*range(len(logits_BV))]:
            logits_BV = logits_BV[self.rows]
            solved = None if solved is None else solved[self.rows]
        if solved is not None and not (finite_B := solved.finite_B).all():
            # What a solve without a state returns is where it began: its logits would look like any others.
            logits_BV = torch.where(finite_B.unsqueeze(1), logits_BV, torch.nan)
        tokens = Sampler.draw(samplers, logits_BV)
        self.samplers = [sampler if token >= 0 else None for sampler, token in zip(samplers, tokens, strict=True)]
        return DrawnTokens(torch.tensor(tokens, device=logits_BV.device), solved, logits_BV, samplers)

    def taken(self, chosen: Collection[Sampler]) -> tuple[_Group | None, _Group | None]:
        """The chosen ones, and the others that go on, each as a group of its own or None."""
        going = [(row, one) for row, one in zip(self.rows, self.samplers, strict=True) if one is not None]
        parts = [[(row, one) for row, one in going if (one in chosen) is wanted] for wanted in (True, False)]
        these, others = (
            _Group(self.where, [row for row, _ in part], [one for _, one in part]) if part else None for part in parts
        )
        if these is not None and others is not None:  # what is read is used up: the others keep rows of their own
            others = others.copied()
        return these, others

    def copied(self) -> _Group:
        """With rows of its own."""
        rows = torch.tensor(self.rows, device=self.where.logits_BV.device)
        where = self.where.gathered([(self.where, rows)])
        return _Group(where, [*range(len(self.rows))], self.samplers)


class Decoder:
    """Decodes texts together. Each is known by its sampler, which has its sampling and its random numbers.

    Args:
        model: in evaluation mode.
        window: tokens that each prediction sees at most.
        depth: the model's own when None.
        guesser: guesses tokens ahead while a single text is decoded; None for no guesses.
    """

    def __init__(
        self, model: Reader, window: int = 256, depth: Depth | None = None, guesser: Guesser | None = None
    ) -> None:
        self._model, self._window, self._depth, self._guesser = model, window, depth, guesser
        self._groups: list[_Group] = []

    @property
    def samplers(self) -> list[Sampler]:
        """Of the texts that go on."""
        return [sampler for group in self._groups for sampler in group.going]

    def join(self, tokens_BL: Tensor, samplers: Sequence[Sampler], padding_B: Tensor | None = None) -> DrawnTokens:
        """Reads prompts and draws the first token of their texts.

        Args:
            tokens_BL: token ids.
            samplers: one for each row, or several that all continue a single row.
            padding_B: tokens at the left of each row that are padding.

        Raises:
            ValueError: as `TokenModel.begin`. The other texts continue.
        """
        *_, where = self._model.begin_in_parts(tokens_BL, self._window, padding_B, depth=self._depth)
        assert where is not None
        return self.start(where, samplers)

    def read(self, tokens_BL: Tensor, part_length: int | None = None) -> Iterator[Continuation | None]:
        """Reads prompts part by part, to be continued by `start`; see `TokenModel.begin_in_parts`."""
        return self._model.begin_in_parts(tokens_BL, self._window, part_length=part_length, depth=self._depth)

    def start(self, where: Continuation, samplers: Sequence[Sampler], keep: bool = False) -> DrawnTokens:
        """Draws the first token of texts that continue what has been read.

        Args:
            where: their prompts have been read to here.
            samplers: one for each row, or several that all continue a single row.
            keep: whether more texts will be started from there.
        """
        copies = len(where.logits_BV) == 1
        group = _Group(where, [0] * len(samplers) if copies else [*range(len(samplers))], [*samplers])
        group = group.copied() if keep else group
        self._groups.append(group)
        return group.drawn()

    def step(self, samplers: Collection[Sampler] | None = None) -> DrawnTokens:
        """One more token of these texts, by default of all; there must be one. The others stay where they are."""
        chosen = set(self.samplers if samplers is None else samplers)
        parts = [group.taken(chosen) for group in self._groups]
        group = self._advanced([these for these, _ in parts if these is not None])
        self._groups = [*(others for _, others in parts if others is not None), group]
        return group.drawn()

    def leave(self, sampler: Sampler) -> None:
        """A text ends here."""
        for group in self._groups:
            if sampler in group.samplers:
                group.samplers[group.samplers.index(sampler)] = None
        self._groups = [group for group in self._groups if group.going]  # nothing keeps the cache of the others

    def _advanced(self, groups: Sequence[_Group]) -> _Group:
        """All rows of these as one group, after the token that each has drawn."""
        samplers = [sampler for group in groups for sampler in group.going]
        where, device = groups[0].where, groups[0].where.logits_BV.device
        if len(groups) > 1 or groups[0].rows != [*range(len(where.logits_BV))]:
            where = where.gathered([(group.where, torch.tensor(group.rows, device=device)) for group in groups])
        after = None
        if self._guesser is not None and len(samplers) == 1:
            after = self._guesser.read(where, samplers[0])
        if after is None:
            after = where.read(torch.tensor([sampler.token for sampler in samplers], device=device))
        return _Group(after, [*range(len(samplers))], [*samplers])
