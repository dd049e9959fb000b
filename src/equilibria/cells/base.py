"""What every cell offers a depth and a model.

A cell computes in three parts: `context`, once per solve, takes everything that does not depend on `z`; `forward` is
one evaluation; `remember` turns the last states into what the next segment needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Context = TypeVar("Context")


@dataclass(frozen=True)
class Memory:
    """What one segment hands to the next: per-token states of the cell, detached, each `(B, M, ·)`."""

    states: tuple[Tensor, ...]

    @property
    def length(self) -> int:
        """Remembered tokens."""
        return self.states[0].shape[1] if self.states else 0

    def flatten(self) -> list[Tensor]:
        """The tensors, for a checkpoint."""
        return list(self.states)

    @classmethod
    def unflatten(cls, tensors: Sequence[Tensor]) -> Memory:
        """The inverse of `flatten`."""
        return cls(tuple(tensors))

    @staticmethod
    def join(old: Memory | None, new: Sequence[Tensor], limit: int) -> Memory | None:
        """The last `limit` tokens of the old memory followed by the new states; None for a limit of 0."""
        if limit == 0:
            return None
        latest = tuple(state.detach() for state in new)
        before = old.states if old is not None else tuple(state[:, :0] for state in latest)
        joined = (torch.cat(pair, dim=1) for pair in zip(before, latest, strict=True))
        # A copy, so that a long segment is not kept alive by a view of its end.
        return Memory(tuple(state[:, -limit:].contiguous() for state in joined))


class Cell(nn.Module, ABC, Generic[Context]):
    """One map of states `(B, L, D)`, causal along `L`."""

    d_model: int
    layers_per_application: int
    """Transformer layers that one evaluation is worth: what an explicit twin's depth is counted in."""

    def initial_state(self, inputs_BLD: Tensor) -> Tensor:
        """Where a solve starts: zeros in the shape of the embedded inputs."""
        return torch.zeros_like(inputs_BLD)

    @abstractmethod
    def context(self, inputs_BLD: Tensor, memory: Memory | None) -> Context:
        """Everything that does not depend on `z`, computed once per solve."""

    @abstractmethod
    def forward(self, z_BLD: Tensor, context: Context) -> Tensor:
        """One evaluation."""

    @abstractmethod
    def remember(self, z_BLD: Tensor, context: Context) -> tuple[Tensor, ...]:
        """The states a later segment attends to, per token of this one: each `(B, L, ·)`."""
