"""Texts as far as they have been read, and the logits of what comes next.

Rows of several continuations make one: so texts that were begun apart are decoded together, and leave when they end.
A model that keeps nothing in a cache reads everything afresh for each token. Shapes: B rows, L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor

from equilibria.cells import Cache, Memory

if TYPE_CHECKING:
    from equilibria.models.base import Step, TokenModel

Some = TypeVar("Some", bound="Continuation")


class Continuation(Protocol):
    """Where texts stand.

    Attributes:
        logits_BV: of the next token of each.
        evaluations_BL: of the tokens that were read last; None for explicit depths.
    """

    @property
    def logits_BV(self) -> Tensor: ...

    @property
    def evaluations_BL(self) -> Tensor | None: ...

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


@dataclass(frozen=True)
class CachedContinuation:
    """Of a model that decodes from a cache."""

    model: TokenModel
    logits_BV: Tensor
    evaluations_BL: Tensor | None
    cache: Cache | Memory

    @classmethod
    def after(cls, model: TokenModel, step: Step) -> CachedContinuation:
        """After what a model has just read."""
        return cls(model, step.logits_BV, step.evaluations_BL, step.cache)

    def read(self, token_B: Tensor) -> CachedContinuation:
        """Only the new tokens are solved."""
        return self.after(self.model, self.model.decode(token_B, self.cache))

    @classmethod
    def gathered(cls, parts: Sequence[tuple[CachedContinuation, Tensor]]) -> CachedContinuation:
        """Of the tokens that were read last, the evaluations of the very last remain."""
        logits_BV = torch.cat([part.logits_BV[rows] for part, rows in parts])
        counts = [part.evaluations_BL[rows, -1:] for part, rows in parts if part.evaluations_BL is not None]
        caches = [(part.cache, rows) for part, rows in parts]
        return cls(parts[0][0].model, logits_BV, torch.cat(counts) if counts else None, _gathered(caches))


def _gathered(parts: Sequence[tuple[Cache | Memory, Tensor]]) -> Cache | Memory:
    caches = [(cache, rows) for cache, rows in parts if isinstance(cache, Cache)]
    if caches:
        return Cache.gathered(caches)
    return Memory.gathered([(memory, rows) for memory, rows in parts if isinstance(memory, Memory)])


@dataclass(frozen=True)
class FreshContinuation:
    """Of a model that reads everything afresh.

    Attributes:
        model: the model.
        window: tokens that it sees at most.
        texts: prompts `(B, P)` of one length each with what was written since, `(B, L)`.
        logits_BV: of the next tokens.
    """

    model: TokenModel
    window: int
    texts: tuple[tuple[Tensor, Tensor], ...]
    logits_BV: Tensor
    evaluations_BL = None

    @classmethod
    @torch.no_grad()
    def of(cls, model: TokenModel, window: int, texts: Sequence[tuple[Tensor, Tensor]]) -> FreshContinuation:
        """Reads texts."""
        hidden = [model.next_hidden(prompt_BP, written_BL, window) for prompt_BP, written_BL in texts]
        return cls(model, window, tuple(texts), model.embedding.logits(torch.cat(hidden)))

    def read(self, token_B: Tensor) -> FreshContinuation:
        """All tokens once more."""
        tokens = token_B.unsqueeze(1).split([len(prompt_BP) for prompt_BP, _ in self.texts])
        longer = [(text[0], torch.cat([text[1], token], dim=1)) for text, token in zip(self.texts, tokens, strict=True)]
        return self.of(self.model, self.window, longer)

    @classmethod
    def gathered(cls, parts: Sequence[tuple[FreshContinuation, Tensor]]) -> FreshContinuation:
        """Rows stay in the groups that they were begun in."""
        texts: list[tuple[Tensor, Tensor]] = []
        for part, rows in parts:
            singles = [
                (p[None], w[None]) for prompt, written in part.texts for p, w in zip(prompt, written, strict=True)
            ]
            texts += [singles[row] for row in rows.tolist()]
        logits_BV = torch.cat([part.logits_BV[rows] for part, rows in parts])
        first = parts[0][0]
        return cls(first.model, first.window, tuple(texts), logits_BV)
