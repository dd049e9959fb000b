"""Padding in a batch: taken from an attention mask, and moved out of the way of the text.

The text of a row is the tokens that the mask names. Models are causal and know only relative positions, so a row with
its text put together is exactly that text alone: at the front with the padding behind it, which nothing sees, or, for a
cache, at the end with the padding declared before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from equilibria.data.batches import NO_TARGET


@dataclass(frozen=True)
class Padding:
    """Which tokens are text: `(B, S)`, of a cache and of the `new` ones after them."""

    present_BS: Tensor
    new: int

    @classmethod
    def of(cls, mask: Tensor | None, batch: int, past: int, new: int) -> Padding | None:
        """The padding that the last columns of an attention mask say; None for none. A row without text is all text.

        Raises:
            ValueError: the mask has another shape, or padding would follow text in a cache.
        """
        if mask is None:
            return None
        length = past + new
        if mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] < length:
            raise ValueError(
                f"attention_mask must be ({batch}, {length}), one number for each cached and new token, "
                f"found {tuple(mask.shape)}"
            )
        present_BS = mask[:, mask.shape[1] - length :].bool()
        if bool(present_BS.all()):
            return None
        present_BS = present_BS | ~present_BS.any(dim=1, keepdim=True)
        within_B = (~present_BS[:, past:]).any(dim=1) & present_BS[:, :past].any(dim=1)
        if past and bool(within_B.any()):
            raise ValueError("attention_mask has padding after text that is in the cache; read it with the text before")
        return cls(present_BS, new)

    @property
    def padding_B(self) -> Tensor:
        """How many tokens of each row are padding."""
        return (~self.present_BS).sum(dim=1)

    @cached_property
    def _present_BL(self) -> Tensor:
        return self.present_BS[:, -self.new :]

    @cached_property
    def _first_BL(self) -> Tensor:
        """The order of the new tokens in which text is first."""
        return (~self._present_BL).int().argsort(dim=1, stable=True)

    @cached_property
    def _last_BL(self) -> Tensor:
        """The order in which text is last."""
        return self._present_BL.int().argsort(dim=1, stable=True)

    def targets(self, targets_BL: Tensor) -> Tensor:
        """What the new tokens are to predict, without that of padding."""
        return targets_BL.masked_fill(~self._present_BL, NO_TARGET)

    def text_first(self, rows_BL: Tensor) -> Tensor:
        """New rows `(B, L, …)` with their padding moved behind the text."""
        return _ordered(rows_BL, self._first_BL)

    def from_first(self, rows_BL: Tensor) -> Tensor:
        """The inverse of `text_first`, with zeros at padding, where states have seen the text."""
        absent_BL = ~self._present_BL
        return _ordered(rows_BL, self._first_BL.argsort(dim=1)).masked_fill(
            absent_BL.view(*absent_BL.shape, *[1] * (rows_BL.dim() - 2)), 0
        )

    def text_last(self, rows_BL: Tensor) -> Tensor:
        """New rows `(B, L, …)` with their padding moved before the text."""
        return _ordered(rows_BL, self._last_BL)

    def from_last(self, rows_BL: Tensor) -> Tensor:
        """The inverse of `text_last`."""
        return _ordered(rows_BL, self._last_BL.argsort(dim=1))


def check_positions(positions: Tensor, mask: Tensor | None, length: int) -> None:
    """Raises a ValueError unless the `position_ids` of the last `length` tokens are consecutive, padding aside."""
    wrong = positions[..., 1:] - positions[..., :-1] != 1
    if mask is not None and mask.dim() == 2:
        present = mask[:, -length:].bool()
        wrong = wrong & present[:, 1:] & present[:, :-1]
    if positions.shape[-1] != length or bool(wrong.any()):
        raise ValueError(
            f"position_ids must be {length} consecutive numbers, padding aside: to these models a row is one text, and "
            f"positions are distances. Packed texts have to be rows of their own"
        )


def _ordered(rows_BL: Tensor, order_BL: Tensor) -> Tensor:
    return rows_BL[torch.arange(len(rows_BL), device=rows_BL.device).unsqueeze(1), order_BL]
