"""Texts that are written together: what `models.decoding` draws, as text, to the end that each has."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from equilibria.data.tokenizers import Tokenizer
from equilibria.depths import Depth
from equilibria.depths.chunks import per_token
from equilibria.errors import UserError
from equilibria.inference.text_stream import TextStream, check_stops
from equilibria.models import Decoder, TokenModel
from equilibria.models.decoding import Continuation, DrawnTokens
from equilibria.models.sampling import NOT_FINITE, Sampler, Sampling
from equilibria.ranges import whole

FinishReason = Literal["length", "stop", "end"]
"""Why a text ended: the token limit, a stop string, or the token that ends a passage."""


@dataclass(frozen=True, kw_only=True)
class TextRequest:
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
        whole(1, max_new_tokens=self.max_new_tokens, copies=self.copies)
        whole(0, top=self.top)
        check_stops(self.stop)


@dataclass(frozen=True)
class Likelihood:
    """How likely a token was, by the model itself: without temperature, penalties and limits of the draw.

    Attributes:
        logprob: of the token, in nats.
        top: the most likely tokens with theirs, the most likely first.
        converged: whether the solve behind them did; None for explicit depths.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]
    converged: bool | None


@dataclass(frozen=True)
class Piece:
    """What one more token brought.

    Attributes:
        token: its id.
        offset: characters of the text before the token.
        text: what is certain now; empty while it is held back, more than the token's own when it no longer is.
        evaluations: that its prediction took; None for explicit depths.
        converged: whether the solve behind its prediction did, of the first token that of the whole prompt; None for
            explicit depths.
        residual: the largest of that solve; None for explicit depths.
        likelihood: where it was asked for.
        finish: why the text has ended; None while it goes on.
        stopped: the stop string that ended it.
    """

    token: int
    offset: int
    text: str
    evaluations: int | None
    converged: bool | None
    residual: float | None
    likelihood: Likelihood | None = None
    finish: FinishReason | None = None
    stopped: str | None = None


class SolvedRow(NamedTuple):
    """How the solve behind a prediction ended; all None for explicit depths."""

    evaluations: int | None = None
    converged: bool | None = None
    residual: float | None = None


class Text:
    """One text that is being written: which copy of a request, and its tokens so far."""

    def __init__(self, request: TextRequest, copy: int, tokenizer: Tokenizer, vocabulary_size: int) -> None:
        self.request, self.copy = request, copy
        seed = None if request.seed is None else request.seed + copy
        self.sampler = Sampler(request.sampling, seed, request.prompt, vocabulary_size)
        self.tokens: list[int] = []
        self._stream = TextStream(tokenizer, request.prompt, request.stop)
        self._end = tokenizer.eos if request.stop_at_end else None

    def take(self, token: int, solved: SolvedRow, likelihood: Likelihood | None) -> Piece:
        """One more token."""
        self.tokens.append(token)
        said, finish = "", None
        if token == self._end:
            finish, said = "end", self._stream.finish()
            offset = len(self._stream.text)
        else:
            said, offset = self._stream.write(token), self._stream.offset
            if len(self.tokens) == self.request.max_new_tokens:
                finish = "length"
                said += self._stream.finish()
        if self._stream.stopped is not None:
            finish = "stop"
        return Piece(token, offset, said, *solved, likelihood, finish, self._stream.stopped)


Written = list[tuple[Text, Piece | Exception]]
"""Texts with what has been added to each, or why it could not go on; a text that could not has left."""


class Prompt:
    """A prompt that is read part by part."""

    def __init__(self, request: TextRequest, parts: Iterator[Continuation | None]) -> None:
        self.request, self._parts = request, parts
        self._where: Continuation | None = None

    @property
    def read(self) -> bool:
        """Whether all of it has been."""
        return self._where is not None

    def advance(self) -> None:
        """Reads the next part.

        Raises:
            ValueError: a token is outside the vocabulary.
        """
        self._where = next(self._parts)

    @property
    def where(self) -> Continuation:
        """Where texts go on."""
        assert self._where is not None
        return self._where


class Writer:
    """Writes texts together; the model, in evaluation mode, window and depth are those of a `Decoder`. `guesses` are of
    a text that is written alone; see `TokenModel.guesser`."""

    def __init__(
        self, model: TokenModel, tokenizer: Tokenizer, window: int, depth: Depth | None = None, guesses: int = 0
    ) -> None:
        self._model, self._tokenizer, self._depth = model, tokenizer, depth
        self._decoder = Decoder(model, window, depth, model.guesser(guesses, depth))
        self._texts: dict[Sampler, Text] = {}

    @property
    def texts(self) -> list[Text]:
        """Those that go on."""
        return [*self._texts.values()]

    def join(self, request: TextRequest) -> Written:
        """Reads a prompt and draws the first token of its texts.

        Raises:
            ValueError: a token is outside the vocabulary. The other texts go on.
        """
        prompt = self.read(request)
        while not prompt.read:
            prompt.advance()
        return self.start(prompt, range(request.copies))

    def read(self, request: TextRequest, part_length: int | None = None) -> Prompt:
        """A prompt, to be read in parts of so many tokens, and continued by `start`; all at once when None."""
        return Prompt(request, self._decoder.read(self._tokens(request), part_length))

    def start(self, prompt: Prompt, copies: Sequence[int], keep: bool = False) -> Written:
        """Draws the first token of some of the texts that continue a prompt.

        Args:
            prompt: which has been read.
            copies: numbers of the texts.
            keep: whether further ones will be started.
        """
        size, request = self._model.embedding.vocabulary_size, prompt.request
        texts = {text.sampler: text for text in (Text(request, n, self._tokenizer, size) for n in copies)}
        drawn = self._decoder.start(prompt.where, [*texts], keep)
        self._texts |= texts
        return self._written(drawn)

    def step(self, texts: Collection[Text] | None = None) -> Written:
        """One more token of some texts that go on, by default of all."""
        if not self._texts:
            return []
        return self._written(self._decoder.step(None if texts is None else [text.sampler for text in texts]))

    def leave(self, text: Text) -> None:
        """A text ends here, whatever else was wanted of it."""
        if self._texts.pop(text.sampler, None) is not None:
            self._decoder.leave(text.sampler)

    def likelihoods(self, request: TextRequest) -> list[Likelihood]:
        """Of every token of a prompt but the first."""
        tokens_1L = self._tokens(request)[:, :-1]
        if not tokens_1L.shape[1]:
            return []
        with torch.no_grad():
            output = self._model(tokens_1L, depth=self._depth)
            logprobs_LV = output.logits[0].log_softmax(-1)
        converged = [None] * len(logprobs_LV)
        if output.solution is not None:
            converged = per_token(output.solution.converged, tokens_1L.shape)[0].tolist()
        return [
            _likelihood(row_V, token, request.top or 0, solved)
            for row_V, token, solved in zip(logprobs_LV, request.prompt[1:], converged, strict=True)
        ]

    def _tokens(self, request: TextRequest) -> Tensor:
        return torch.tensor([request.prompt], device=next(self._model.parameters()).device)

    def _written(self, drawn: DrawnTokens) -> Written:
        solves = [SolvedRow()] * len(drawn.samplers)
        if (solved := drawn.solved) is not None:
            figures = solved.evaluations_B.tolist(), solved.converged_B.tolist(), solved.residual_B.tolist()
            solves = [SolvedRow(*row) for row in zip(*figures, strict=True)]
        written: Written = []
        for sampler, token, row, logits_V in zip(
            drawn.samplers, drawn.token_B.tolist(), solves, drawn.logits_BV, strict=True
        ):
            text = self._texts[sampler]
            try:
                piece = _taken(text, token, row, logits_V)
            except Exception as problem:  # of this text alone
                piece = problem
            if isinstance(piece, Exception) or piece.finish is not None:
                self.leave(text)
            written.append((text, piece))
        return written


def _taken(text: Text, token: int, solved: SolvedRow, logits_V: Tensor) -> Piece:
    """One more token of a text; -1 is none."""
    if token < 0:
        raise UserError(NOT_FINITE)
    top, likelihood = text.request.top, None
    if top is not None:
        likelihood = _likelihood(logits_V.log_softmax(-1), token, top, solved.converged)
    return text.take(token, solved, likelihood)


def _likelihood(logprobs_V: Tensor, token: int, top: int, converged: bool | None) -> Likelihood:
    values, tokens = logprobs_V.topk(min(top, len(logprobs_V)))
    best = zip(tokens.tolist(), values.tolist(), strict=True)
    return Likelihood(float(logprobs_V[token]), tuple(best), converged)
