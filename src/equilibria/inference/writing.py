"""Texts that are written together, token after token: each may join and leave at any time.

A prompt is read alone, once for all texts that go on from it; then all texts are decoded in one batch. A text has its
own sampling, random numbers and end, so that what is written does not depend on what is written beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from equilibria.data.tokenizers import Tokenizer
from equilibria.inference.text_stream import TextStream, check_stops
from equilibria.models import TokenModel
from equilibria.models.continuation import Continuation
from equilibria.models.sampling import Drawer, Sampling

FinishReason = Literal["length", "stop", "end"]
"""Why a text ended: it is as long as was wanted, a stop string came, or the token that ends a passage."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """A prompt and what is to be written after it.

    Args:
        prompt: token ids, at least 1.
        max_new_tokens: tokens to write at most, at least 1.
        sampling: how they are drawn.
        seed: makes the draws repeatable: the first text's; the next one's is one higher, and so on.
        copies: texts to write.
        stop: strings at which a text stops.
        stop_at_end: whether it stops at the token that ends a passage, too.
        top: how many of the most likely tokens come with each drawn one; None for no probabilities at all.

    Raises:
        ValueError: a number is out of its range, or a stop string is empty.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    seed: int | None = None
    copies: int = 1
    stop: tuple[str, ...] = ()
    stop_at_end: bool = False
    top: int | None = None

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("a prompt must have at least 1 token")
        for name, value, least in (
            ("max_new_tokens", self.max_new_tokens, 1),
            ("copies", self.copies, 1),
            ("top", self.top or 0, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, found {value}")
        check_stops(self.stop)


@dataclass(frozen=True)
class Likelihood:
    """How likely a token was, by the model itself: without temperature, penalties and limits of the draw.

    Attributes:
        logprob: of the token, in nats.
        top: the most likely tokens with theirs, the most likely first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Piece:
    """What one more token brought.

    Attributes:
        token: its id.
        offset: characters of the text before the token.
        text: what is certain now; empty while it is held back, more than the token's own when it no longer is.
        evaluations: that its prediction took; None for explicit depths.
        likelihood: where it was asked for.
        finish: why the text has ended; None while it goes on.
        stopped: the stop string that ended it.
    """

    token: int
    offset: int
    text: str
    evaluations: int | None
    likelihood: Likelihood | None = None
    finish: FinishReason | None = None
    stopped: str | None = None


class Text:
    """One text that is being written.

    Attributes:
        order: what it is part of.
        copy: which of its copies.
        tokens: written so far.
    """

    def __init__(self, order: Order, copy: int, tokenizer: Tokenizer, vocabulary_size: int) -> None:
        self.order, self.copy = order, copy
        seed = None if order.seed is None else order.seed + copy
        self.drawer = Drawer(order.sampling, seed, order.prompt, vocabulary_size)
        self.tokens: list[int] = []
        self._stream = TextStream(tokenizer, order.prompt, order.stop)
        self._end = tokenizer.eos if order.stop_at_end else None

    def take(self, token: int, evaluations: int | None, likelihood: Likelihood | None) -> Piece:
        """One more token."""
        self.tokens.append(token)
        said, finish, offset = "", None, self._stream.length
        if token == self._end:
            finish = "end"
        else:
            said = self._stream.write(token)
            if len(self.tokens) == self.order.max_new_tokens:
                finish = "length"
        if finish is not None:
            said += self._stream.finish()
        if self._stream.stopped is not None:
            finish = "stop"
        return Piece(token, offset, said, evaluations, likelihood, finish, self._stream.stopped)


Written = list[tuple[Text, Piece]]
"""Texts with what has been added to each."""


class Writer:
    """Decodes texts together.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        window: tokens that each prediction sees at most.
    """

    def __init__(self, model: TokenModel, tokenizer: Tokenizer, window: int) -> None:
        self._model, self._tokenizer, self._window = model, tokenizer, window
        self._parts: list[tuple[Continuation, list[Text | None]]] = []

    @property
    def texts(self) -> list[Text]:
        """Those that go on."""
        return [text for _, texts in self._parts for text in texts if text is not None]

    def join(self, order: Order) -> Written:
        """Reads a prompt and draws the first token of its texts.

        Raises:
            ValueError: a token is outside the vocabulary, or the logits are not finite. The other texts go on.
        """
        where = self._model.begin(torch.tensor([order.prompt]), self._window)
        size = self._model.embedding.vocabulary_size
        texts = [Text(order, copy, self._tokenizer, size) for copy in range(order.copies)]
        copies: list[Text | None] = [*texts]
        self._parts.append((where, copies))
        zeros = torch.zeros(len(texts), dtype=torch.long)
        try:
            return self._draw(texts, where.logits_BV[zeros], _last(where, zeros))
        except Exception:
            self._parts.pop()
            raise

    def step(self) -> Written:
        """One more token of every text."""
        where, texts = self._together()
        if where is None:
            return []
        where = where.read(torch.tensor([text.tokens[-1] for text in texts]))
        self._parts = [(where, [*texts])]
        return self._draw(texts, where.logits_BV, _last(where, torch.arange(len(texts))))

    def leave(self, text: Text) -> None:
        """A text ends here, whatever else was wanted of it."""
        for _, texts in self._parts:
            if text in texts:
                texts[texts.index(text)] = None

    def likelihoods(self, order: Order) -> list[Likelihood]:
        """Of every token of a prompt but the first."""
        tokens_1L = torch.tensor([order.prompt])
        if tokens_1L.shape[1] == 1:
            return []
        with torch.no_grad():
            logits_LV = self._model(tokens_1L[:, :-1]).logits[0]
        return [
            _likelihood(row_V, token, order.top or 0)
            for row_V, token in zip(logits_LV.log_softmax(-1), order.prompt[1:], strict=True)
        ]

    def _together(self) -> tuple[Continuation | None, list[Text]]:
        """All texts that go on, as the rows of one continuation."""
        chosen, texts = [], []
        for where, those in self._parts:
            rows = [number for number, text in enumerate(those) if text is not None]
            if rows:
                # Until they are parted, the copies of a text are one row.
                several = len(where.logits_BV) == len(those)
                chosen.append((where, torch.tensor(rows if several else [0] * len(rows))))
                texts += [text for text in those if text is not None]
        if not chosen:
            self._parts = []
            return None, []
        (where, rows), *others = chosen
        if others or len(rows) != len(where.logits_BV):
            where = where.gathered(chosen)
        return where, texts

    def _draw(self, texts: list[Text], logits_BV: Tensor, evaluations: Sequence[int | None]) -> Written:
        tokens = Drawer.draw([text.drawer for text in texts], logits_BV)
        written = []
        for row, (text, token) in enumerate(zip(texts, tokens, strict=True)):
            likelihood = None
            if text.order.top is not None:
                likelihood = _likelihood(logits_BV[row].log_softmax(-1), token, text.order.top)
            piece = text.take(token, evaluations[row], likelihood)
            if piece.finish is not None:
                self.leave(text)
            written.append((text, piece))
        return written


def _last(where: Continuation, rows: Tensor) -> Sequence[int | None]:
    """Evaluations of the token that each row read last."""
    if where.evaluations_BL is None:
        return [None] * len(rows)
    return where.evaluations_BL[rows, -1].tolist()


def _likelihood(logprobs_V: Tensor, token: int, top: int) -> Likelihood:
    values, tokens = logprobs_V.topk(min(top, len(logprobs_V)))
    best = zip(tokens.tolist(), values.tolist(), strict=True)
    return Likelihood(float(logprobs_V[token]), tuple(best))
