"""Does a language model's output depend on what it must not see: later tokens, or other rows of the batch?"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Audit:
    """The largest absolute change of a logit that must not change, and where it was found.

    Attributes:
        leak: 0.0 where the promise holds.
        position: the cut (causality) or the row (batch invariance) of the largest change.
        by_design: whether the model is meant to leak: its tokens see those after them.
    """

    leak: float
    position: int
    by_design: bool = False

    @property
    def holds(self) -> bool:
        """Whether nothing leaked, exactly."""
        return self.leak == 0.0

    def __str__(self) -> str:
        if self.holds:
            return "nothing leaks"
        if self.by_design:
            return "not causal, by design: tokens see those after them"
        return f"a logit changes by {self.leak:.3g} (position {self.position})"


@torch.no_grad()
def audit_causality(model: nn.Module, tokens: Tensor, cuts: Sequence[int] | None = None, seed: int = 0) -> Audit:
    """Replace every token from a cut on and compare the logits before it. The audit of a model that is not `causal`
    says so.

    Args:
        model: `model(tokens).logits` of shape `(B, L, V)`; it is put in evaluation mode for the audit.
        tokens: token ids `(B, L)`, `L ≥ 2`.
        cuts: first replaced positions, each from 1 to `L − 1`; by default the quarters and the last.
    """
    length = tokens.shape[1]
    if length < 2:
        raise ValueError(f"causality needs at least 2 tokens, found {length}")
    if cuts is None:
        cuts = sorted({max(1, length // 4), length // 2, max(1, 3 * length // 4), length - 1})
    if not len(cuts):
        raise ValueError("cuts must name at least 1 position, or be None for the quarters and the last; found none")
    generator = torch.Generator(device=tokens.device).manual_seed(seed)
    with evaluating(model):
        reference = model(tokens).logits
        changes = []
        for cut in cuts:
            if not 1 <= cut < length:
                raise ValueError(f"cuts lie between 1 and {length - 1}, found {cut}")
            changed = tokens.clone()
            changed[:, cut:] = _others(tokens[:, cut:], reference.shape[-1], generator)
            changes.append((_largest(model(changed).logits[:, :cut], reference[:, :cut]), cut))
    return Audit(*max(changes), by_design=not getattr(model, "causal", True))


@torch.no_grad()
def audit_batch_invariance(model: nn.Module, tokens: Tensor, seed: int = 0) -> Audit:
    """Replace every other row of the batch and compare the logits of the row that stayed, for each of at least 2 rows.

    Arguments are those of `audit_causality`.
    """
    if tokens.shape[0] < 2:
        raise ValueError(f"batch invariance needs at least 2 rows, found {tokens.shape[0]}")
    generator = torch.Generator(device=tokens.device).manual_seed(seed)
    with evaluating(model):
        reference = model(tokens).logits
        changes = []
        for row in range(tokens.shape[0]):
            changed = _others(tokens, reference.shape[-1], generator)
            changed[row] = tokens[row]
            changes.append((_largest(model(changed).logits[row], reference[row]), row))
    return Audit(*max(changes))


def _others(tokens: Tensor, vocabulary_size: int, generator: torch.Generator) -> Tensor:
    """Tokens that all differ from the given ones."""
    shift = torch.randint(1, max(vocabulary_size, 2), tokens.shape, generator=generator, device=tokens.device)
    return (tokens + shift) % vocabulary_size


def _largest(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference; infinite where one side is not a number and the other is."""
    difference = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())
    return float(torch.nan_to_num(difference, nan=torch.inf).max())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within a block; afterwards every module is in its own mode again, frozen ones too."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
