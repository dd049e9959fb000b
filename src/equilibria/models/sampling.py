"""Choosing the next token from its logits.

A row is drawn with random numbers of its own, by inverting its cumulative distribution: which token it gets depends on
its logits and its seed, and on nothing beside it in the batch. Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from equilibria.devices import widest
from equilibria.ranges import above, at_least, whole

NOT_FINITE = "the model's state or its logits are not finite; was it trained to its end?"

_COLDEST = torch.finfo(torch.float32).tiny  # what is colder rounds to nothing, and nothing divides
_LARGEST = 1e30  # the largest logit that penalties leave: infinite ones have no shares
_CANDIDATES = 1024  # as a rule they hold the share that is asked for, and a vocabulary need not be sorted


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn: penalties, temperature, then the tokens that stay in the draw.

    Args:
        temperature: logits are divided by it; 0 takes the most likely token.
        top_k: how many tokens stay in the draw, more where several are equal to the last; all when None.
        top_p: the smallest set with this share of the probability stays, at 0 the most likely token (Holtzman et al.
            2019, arXiv:1904.09751).
        min_p: tokens stay with at least this share of the most likely one's probability (Nguyen et al. 2024,
            arXiv:2407.01082).
        repetition_penalty: positive logits of tokens that were read or written are divided by it, negative ones
            multiplied (Keskar et al. 2019, arXiv:1909.05858); 1 for none.
        presence_penalty: subtracted from the logits of tokens that were written.
        frequency_penalty: subtracted from the logit of a token as often as it was written.

    Raises:
        ValueError: a number is out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def __post_init__(self) -> None:
        at_least(0, temperature=self.temperature)
        whole(1, top_k=self.top_k)
        above(0, repetition_penalty=self.repetition_penalty)
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be from 0 to 1, found {value}")
        for name in ("presence_penalty", "frequency_penalty"):
            if not abs(getattr(self, name)) < float("inf"):
                raise ValueError(f"{name} must be finite, found {getattr(self, name)}")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature < _COLDEST

    @property
    def penalises(self) -> bool:
        """Whether a draw depends on what was read and written before."""
        return self.repetition_penalty != 1 or bool(self.presence_penalty or self.frequency_penalty)

    def probabilities(
        self, logits_BV: Tensor, read_BV: Tensor | None = None, written_BV: Tensor | None = None
    ) -> Tensor:
        """What is drawn from, `(B, V)` in float32; zero where a token is not in the draw.

        Args:
            logits_BV: of the next tokens.
            read_BV: how often each token is in the prompt; None for never.
            written_BV: how often it was written since; None for never.
        """
        logits_BV = self._penalised(logits_BV.float(), read_BV, written_BV)
        if self.greedy:
            best_B1 = logits_BV.argmax(dim=-1, keepdim=True)
            return torch.zeros_like(logits_BV).scatter_(-1, best_B1, 1.0)
        # The largest is 0, so that a small temperature makes none infinite.
        logits_BV = (logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / self.temperature
        if self.top_k is not None and self.top_k < logits_BV.shape[-1]:
            least_B1 = logits_BV.topk(self.top_k, dim=-1).values[..., -1:]
            logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
        kept_BV = shares_BV = logits_BV.softmax(dim=-1)
        if self.top_p is not None and self.top_p < 1:
            kept_BV = kept_BV * _holding(self.top_p, shares_BV, min(_CANDIDATES, shares_BV.shape[-1]))
        if self.min_p:
            kept_BV = kept_BV * (shares_BV >= self.min_p * shares_BV.amax(dim=-1, keepdim=True))
        return kept_BV / kept_BV.sum(dim=-1, keepdim=True)

    def _penalised(self, logits_BV: Tensor, read_BV: Tensor | None, written_BV: Tensor | None) -> Tensor:
        there = [counts_BV for counts_BV in (read_BV, written_BV) if counts_BV is not None]
        if not there:
            return logits_BV
        logits_BV = logits_BV.double()  # where no number that may be given is zero or infinite
        if self.repetition_penalty != 1:
            factor = self.repetition_penalty
            changed_BV = torch.where(logits_BV > 0, logits_BV / factor, logits_BV * factor)
            logits_BV = torch.where(sum(there[1:], there[0]) > 0, changed_BV, logits_BV).clamp(-_LARGEST, _LARGEST)
        if written_BV is not None:
            logits_BV = (
                logits_BV - self.frequency_penalty * written_BV.double() - self.presence_penalty * (written_BV > 0)
            )
        return logits_BV.clamp(-_LARGEST, _LARGEST).float()


def _holding(least: float, shares_BV: Tensor, candidates: int) -> Tensor:
    """True for the fewest most likely tokens that hold a share of at least that; tries the first `candidates`."""
    ordered_BC, index_BC = shares_BV.topk(candidates, dim=-1)
    # A token goes when those before it already hold the share; the first always stays.
    before_BC = ordered_BC.cumsum(dim=-1) - ordered_BC
    least = max(least, _COLDEST)  # what rounds to 0 in float32 would keep none
    kept_BV = torch.zeros_like(shares_BV, dtype=torch.bool).scatter_(-1, index_BC, before_BC < least)
    open_B = before_BC[..., -1] < least
    if candidates < shares_BV.shape[-1] and bool(open_B.any()):
        kept_BV[open_B] = _holding(least, shares_BV[open_B], shares_BV.shape[-1])
    return kept_BV


class Sampler:
    """Draws the tokens of one row: its sampling, its random numbers, and what its penalties count.

    Args:
        sampling: how.
        seed: makes the draws repeatable; None takes PyTorch's own random numbers.
        prompt: token ids that were read.
        vocabulary_size: how many ids there are.

    Attributes:
        token: the last one that it drew; -1 before the first.
    """

    def __init__(self, sampling: Sampling, seed: int | None, prompt: Sequence[int], vocabulary_size: int) -> None:
        self.sampling = sampling
        self.token = -1
        self._ahead: list[Tensor] = []  # random numbers of draws to come, that were guessed with
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)
        self._read_V = self._written_V = None
        if sampling.penalises:
            self._read_V = torch.bincount(torch.tensor(prompt, dtype=torch.long), minlength=vocabulary_size)
            self._written_V = torch.zeros_like(self._read_V)

    @staticmethod
    def draw(samplers: Sequence[Sampler], logits_BV: Tensor) -> list[int]:
        """A token of each row, for which there is a sampler; -1 where the row's logits are not finite."""
        logits_BV = _exact(logits_BV)
        least_B, most_B = torch.aminmax(logits_BV, dim=-1)  # of what is no number, that
        finite = ((least_B > -torch.inf) & (most_B < torch.inf)).tolist()
        tokens = [-1] * len(samplers)
        alike: dict[Sampling, list[int]] = {}
        for row, sampler in enumerate(samplers):
            if finite[row]:
                alike.setdefault(sampler.sampling, []).append(row)
        for sampling, rows in alike.items():
            chosen_BV = logits_BV if len(rows) == len(samplers) else logits_BV[rows]
            among = [samplers[row] for row in rows]
            drawn = _drawn(sampling, among, chosen_BV, lambda among=among: [sampler._uniform() for sampler in among])
            for row, token in zip(rows, drawn, strict=True):
                tokens[row] = token
                samplers[row].token = token
                if (written_V := samplers[row]._written_V) is not None:
                    written_V[token] += 1
        return tokens

    def guesses(self, logits_LV: Tensor) -> list[int]:
        """What its next draws would be, were these their logits: by the random numbers that they will be made with, and
        without penalties of what is guessed."""
        length, last = logits_LV.shape[0], logits_LV.shape[1] - 1

        def uniform() -> list[Tensor]:
            while len(self._ahead) < length:
                self._ahead.append(torch.rand(1, dtype=torch.float64, generator=self._generator))
            return self._ahead[:length]

        tokens = _drawn(self.sampling, [self] * length, _exact(logits_LV), uniform)
        return [min(token, last) for token in tokens]  # beyond the last where logits are not finite

    def _uniform(self) -> Tensor:
        """A random number from 0 to below 1; none is taken where nothing is drawn."""
        if self._ahead:
            return self._ahead.pop(0)
        return torch.rand(1, dtype=torch.float64, generator=self._generator)


def _counts(counts: Sequence[Tensor | None], like: Tensor) -> Tensor | None:
    there = [count for count in counts if count is not None]
    return torch.stack(there).to(like.device) if there else None


def _exact(logits_BV: Tensor) -> Tensor:
    """Where the sums of a draw have all their digits."""
    return logits_BV if widest(logits_BV.device) is torch.float64 else logits_BV.cpu()


def _drawn(
    sampling: Sampling, samplers: Sequence[Sampler], logits_BV: Tensor, uniform: Callable[[], Sequence[Tensor]]
) -> list[int]:
    """A token of each row; `uniform` is asked for a random number of each only where it is needed."""
    if sampling.greedy and not sampling.penalises:
        return logits_BV.argmax(dim=-1).tolist()
    read_BV = _counts([sampler._read_V for sampler in samplers], logits_BV)
    written_BV = _counts([sampler._written_V for sampler in samplers], logits_BV)
    shares_BV = sampling.probabilities(logits_BV, read_BV, written_BV)
    if sampling.greedy:
        return shares_BV.argmax(dim=-1).tolist()
    cumulative_BV = shares_BV.double().cumsum(dim=-1)
    whole_B1 = cumulative_BV[:, -1:].contiguous()
    uniform_B1 = torch.stack([*uniform()]).to(logits_BV.device)
    # The first token beyond the number, which no token of probability zero is; rounding must not pass the last one.
    token_B1 = torch.searchsorted(cumulative_BV, uniform_B1 * whole_B1, right=True)
    return torch.minimum(token_B1, torch.searchsorted(cumulative_BV, whole_B1)).squeeze(1).tolist()
