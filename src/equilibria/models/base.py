"""What every model of token sequences is, whatever lies between its embedding and its softmax."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor, nn

from equilibria.cells import Cache, Memory
from equilibria.cells.cache import check_padding
from equilibria.depths import Depth
from equilibria.diagnostics.audits import evaluating
from equilibria.errors import UserError
from equilibria.models.decoding import (
    CachedContinuation,
    Continuation,
    Decoder,
    DrawnTokens,
    FreshContinuation,
    Guesser,
    Step,
    warn_of_failures,
)
from equilibria.models.sampling import NOT_FINITE, Sampler, Sampling
from equilibria.nn import TokenEmbedding
from equilibria.ranges import whole
from equilibria.solvers import Solution


@dataclass(frozen=True)
class Output:
    """What a language model returns.

    Attributes:
        hidden: final states `(B, L, D)`.
        embedding: turns them into logits.
        loss: mean negative log-likelihood in nats over the targets, None without targets.
        memory: pass it to the next segment; None where the model keeps none.
        solution: the solve and its statistics, a `ChunkedSolution` where there were several; None for explicit depths.
        penalty: what is to be added to the loss in training, None where that is nothing.
    """

    hidden: Tensor
    embedding: TokenEmbedding
    loss: Tensor | None
    memory: Memory | Cache | None
    solution: Solution | None
    penalty: Tensor | None = None

    @cached_property
    def logits(self) -> Tensor:
        """`(B, L, V)`, computed when first asked for; their softmax is the prediction."""
        return self.embedding.logits(self.hidden)


class TokenModel(nn.Module, ABC):
    """Predict each next token from those before it.

    Attributes:
        embedding: of the tokens, and their softmax.
        memory_length: how much a segment hands to the next unless a call says otherwise; 0 for nothing.
        causal: whether no token sees a later one. If not, targets are of the whole sequence, and no text is continued.
        columns: of the grid whose cells, row by row, are the tokens; None where the model knows of no grid.
    """

    embedding: TokenEmbedding
    memory_length: int
    causal: bool = True
    columns: int | None = None

    @abstractmethod
    def forward(
        self,
        tokens_BL: Tensor,
        targets: Tensor | None = None,
        memory: Memory | Cache | None = None,
        *,
        depth: Depth | None = None,
        memory_length: int | None = None,
    ) -> Output:
        """One segment.

        Args:
            tokens_BL: token ids, `(B, L)` integers; or features in place of embedded tokens, `(B, L, d_model)`. The
                same goes for `prefill` and `decode`.
            targets: next tokens `(B, L)`; -100 where there is none.
            memory: what the segment before returned.
            depth: of this call; the model's own when None. The same goes for all calls that take one.
            memory_length: of this call; the model's own when None.

        Raises:
            ValueError: a token id outside the vocabulary, a memory of another model, or a depth for a model that has
                none.
        """

    def decodes(self, depth: Depth | None = None) -> bool:
        """Whether the model can continue from a cache; otherwise `generate` solves everything afresh for each token."""
        del depth
        return False

    def prefill(
        self,
        tokens_BL: Tensor,
        padding_B: Tensor | None = None,
        limit: int | None = None,
        chunk_length: int | None = None,
        *,
        depth: Depth | None = None,
    ) -> Step:
        """Read a prompt into a new cache. In evaluation mode, without gradients.

        Args:
            tokens_BL: token ids, `(B, L ≥ 1)`.
            padding_B: how many tokens at the left of each row are padding, fewer than `L`; nothing depends on them.
            limit: earlier tokens that a token sees at most; with chunks, those before its chunk. None for all.
            chunk_length: tokens that are solved together; None for all.
            depth: of this call.

        Raises:
            ValueError: the model cannot decode, is in training mode, or the tokens are none of its own.
        """
        raise ValueError(self._no_cache)

    def decode(self, tokens_BL: Tensor, cache: Cache | Memory, *, depth: Depth | None = None) -> Step:
        """Read further tokens, `(B, L)`, or one of each row `(B,)`; only they are solved.

        Consumes the cache; continue with `step.cache`.

        Raises:
            ValueError: the model cannot decode, is in training mode, or the cache or a token is none of its own.
        """
        raise ValueError(self._no_cache)

    @property
    def _no_cache(self) -> str:
        return f"a {type(self).__name__} of this kind has nothing to keep in a cache; generate() writes without one"

    @torch.no_grad()
    def generate(
        self,
        tokens_BL: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        window: int = 256,
        on_token: Callable[[Tensor], None] | None = None,
        padding_B: Tensor | None = None,
        *,
        sampling: Sampling | None = None,
        depth: Depth | None = None,
        guesses: int = 0,
    ) -> Tensor:
        """Continue `tokens_BL` `(B, L ≥ 1)` by sampling; returns prompt and continuation `(B, L + max_new_tokens)`.

        A `ConvergenceWarning` counts the tokens that were drawn after solves that did not converge.

        Args:
            max_new_tokens: tokens to add.
            temperature: 0 takes the most likely token.
            top_k, top_p: draw from that many tokens at most, and from the smallest set with that probability.
            seed: makes the draw repeatable; that of the first row, each next row's is one higher.
            window: tokens that each prediction sees at most, the latest included; of a longer prompt only that many are
                read. States depend on tokens that have left the window, as in evaluation with a memory; a model
                without a cache reads the window afresh for each token.
            on_token: called with each new token `(B,)`, for streaming.
            padding_B: tokens at the left of each row that are padding.
            sampling: all settings of the draw, in place of temperature, top_k and top_p.
            depth: of this call.
            guesses: tokens that are guessed ahead at most, where there is one row, and solved together with it: the
                same text in less time, but for what the tolerance leaves open. See `Speculation`.

        Raises:
            ValueError: there is no token to start from, no window, or a negative number of tokens to add or to guess.
            UserError: tokens are to be guessed at a depth where that cannot be.
        """
        whole(0, max_new_tokens=max_new_tokens)
        sampling = sampling or Sampling(temperature, top_k, top_p)
        written, converged = [tokens_BL], []
        with evaluating(self):
            stream = self.stream(tokens_BL, sampling, seed, window, padding_B, depth=depth, guesses=guesses)
            for drawn in islice(stream, max_new_tokens):
                written.append(drawn.token_B.unsqueeze(1))
                if drawn.solved is not None:
                    converged.append(drawn.solved.converged_B)
                if on_token is not None:
                    on_token(drawn.token_B)
        if converged:
            solved = torch.cat(converged)
            warn_of_failures(int((~solved).sum()), len(solved))
        return torch.cat(written, dim=1)

    def stream(
        self,
        tokens_BL: Tensor,
        sampling: Sampling,
        seed: int | None = None,
        window: int = 256,
        padding_B: Tensor | None = None,
        *,
        depth: Depth | None = None,
        guesses: int = 0,
    ) -> Iterator[DrawnTokens]:
        """What `generate` draws, token after token, without end. In evaluation mode.

        Raises:
            ValueError: there is no token to start from, or no window; or the logits of a row are not finite.
        """
        check_shape(tokens_BL)
        if padding_B is not None:
            check_padding(padding_B, tokens_BL)
        decoder = Decoder(self, window, depth, self.guesser(guesses, depth))
        padding = [0] * len(tokens_BL) if padding_B is None else padding_B.tolist()
        samplers = [
            Sampler(sampling, None if seed is None else seed + row, tokens[gap:], self.embedding.vocabulary_size)
            for row, (tokens, gap) in enumerate(zip(tokens_BL.tolist(), padding, strict=True))
        ]
        drawn = decoder.join(tokens_BL, samplers, padding_B)
        while len(decoder.samplers) == len(samplers):
            yield drawn
            drawn = decoder.step()
        raise ValueError(NOT_FINITE)

    def guesser(self, guesses: int, depth: Depth | None = None) -> Guesser | None:
        """What guesses so many tokens ahead at most; None for 0.

        Raises:
            ValueError: `guesses` is below 0.
            UserError: tokens cannot be guessed at this depth, or by this model at all.
        """
        whole(0, guesses=guesses)
        if guesses:
            raise UserError(
                f"a {type(self).__name__} does not solve, so it guesses no tokens ahead; leave guesses at 0"
            )
        return None

    def begin(
        self, tokens_BL: Tensor, window: int = 256, padding_B: Tensor | None = None, *, depth: Depth | None = None
    ) -> Continuation:
        """Read prompts, to continue them; in evaluation mode. The arguments are those of `generate`.

        Raises:
            ValueError: the model continues no text, there is no token to start from, no window, or padding that the
                model cannot tell from text.
        """
        *_, where = self.begin_in_parts(tokens_BL, window, padding_B, depth=depth)
        assert where is not None
        return where

    def begin_in_parts(
        self,
        tokens_BL: Tensor,
        window: int = 256,
        padding_B: Tensor | None = None,
        part_length: int | None = None,
        *,
        depth: Depth | None = None,
    ) -> Iterator[Continuation | None]:
        """As `begin`, one part of the prompts after another, each seeing those before it.

        Args:
            part_length: tokens of a part; all when None, and without a cache.

        Yields:
            None after each part but the last; after that, where the texts stand.
        """
        self.check_continues()
        check_shape(tokens_BL)
        whole(1, window=window, part_length=part_length)
        if self.decodes(depth):
            cut = max(0, tokens_BL.shape[1] - window)
            padding_B = None if padding_B is None else (padding_B - cut).clamp_min(0)
            first_BL, *others = tokens_BL[:, cut:].split(part_length or window, dim=1)
            where = CachedContinuation.after(
                self, depth, self.prefill(first_BL, padding_B, limit=window - 1, depth=depth)
            )
            for part_BL in others:
                yield None
                step = self.decode(part_BL, where.cache, depth=depth)
                where = CachedContinuation.after(self, depth, step, where)
            yield where
            return
        if padding_B is not None and bool(padding_B.any()):
            raise ValueError("only a model that decodes from a cache takes padding; give prompts of one length")
        yield FreshContinuation.of(self, depth, window, [(tokens_BL, tokens_BL[:, :0])])

    def check_continues(self) -> None:
        """Raises a UserError for a model that continues no text."""
        if not self.causal:
            raise UserError(
                "every token of this model sees those after it (causal = false), so it continues no text; evaluate it "
                "on its task"
            )

    def _check_decoding(self, tokens_BL: Tensor, depth: Depth | None) -> None:
        self.check_continues()
        if not self.decodes(depth):
            raise ValueError(self._no_cache)
        self._check_mode()
        check_shape(tokens_BL)

    def _check_mode(self) -> None:
        if self.training:
            raise ValueError("a cache is for evaluation mode; call model.eval() first")

    def _check_depthless(self, depth: Depth | None) -> None:
        if depth is not None:
            raise ValueError(f"a {type(self).__name__} has no depth to choose; leave depth out")

    def next_hidden(
        self, prompt_BP: Tensor, written_BL: Tensor, window: int, *, depth: Depth | None = None
    ) -> tuple[Tensor, Solution | None]:
        """The state `(B, D)` that predicts the token after those written so far, and the solve that it is of."""
        output = self(torch.cat([prompt_BP, written_BL], dim=1)[:, -window:], depth=depth)
        return output.hidden[:, -1], output.solution

    def loss(self, hidden_BLD: Tensor, targets_BL: Tensor) -> Tensor:
        """The mean negative log-likelihood of the targets, in nats, given final states."""
        return self.embedding.loss(hidden_BLD.flatten(0, 1), targets_BL.flatten())

    def check(self, tokens_BL: Tensor) -> None:
        """Raises ValueError for a token id outside the vocabulary; features in place of ids have none."""
        if torch.compiler.is_compiling() or tokens_BL.is_floating_point():
            return  # a program cannot depend on its data
        if tokens_BL.device.type != "cpu" or not tokens_BL.numel():
            return  # on an accelerator the look-up itself asserts, without a synchronisation here
        least, most = (int(bound) for bound in tokens_BL.aminmax())
        if least < 0 or most >= self.embedding.vocabulary_size:
            raise ValueError(
                f"token id {least if least < 0 else most} is outside the vocabulary of "
                f"{self.embedding.vocabulary_size}; was the text encoded with this model's tokenizer?"
            )


def check_shape(tokens_BL: Tensor) -> None:
    """Raises TypeError for anything but a tensor, and ValueError unless there are rows of at least one token, or of the
    features of one."""
    if not isinstance(tokens_BL, Tensor):
        raise TypeError(
            f"tokens must be a tensor of ids, (batch, length); found {type(tokens_BL).__name__}. For a text, take "
            f"eq.load_run(PATH), whose tokenizer makes them: torch.tensor([run.tokenizer.encode(text)])"
        )
    if tokens_BL.dim() != 2 + tokens_BL.is_floating_point() or tokens_BL.shape[1] < 1:
        raise ValueError(f"tokens must be (batch, length >= 1), found shape {tuple(tokens_BL.shape)}")
