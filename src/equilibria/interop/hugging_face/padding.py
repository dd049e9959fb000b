"""Padding at the left of a batch: taken from an attention mask, and moved out of the way.

Models are causal and know relative positions only, so a row turned round, its text first and its padding last, is the
row alone. That is exact, costs nothing, and lets gradients through.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from equilibria.data.batches import NO_TARGET


@dataclass(frozen=True)
class LeftPadding:
    """How many tokens at the left of each row are padding, `(B,)`, of how many."""

    padding_B: Tensor
    length: int

    @classmethod
    def of(cls, mask: Tensor | None, batch: int, length: int) -> LeftPadding | None:
        """What an attention mask says of `length` tokens, or its last columns where it has more; None for no padding.

        Zeros at the right end are let be: nothing before them sees what stands there. So is a row of zeros only.

        Raises:
            ValueError: the mask is of another shape, or has zeros amid ones.
        """
        if mask is None:
            return None
        if mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] < length:
            raise ValueError(
                f"attention_mask must be ({batch}, {length}), one number for each token that was read and is new, "
                f"found {tuple(mask.shape)}"
            )
        present_BL = mask[:, mask.shape[1] - length :].bool()
        first_B = present_BL.int().argmax(dim=1)  # of the equal ones argmax takes the first
        positions_L = torch.arange(length, device=mask.device)
        end_B = first_B + present_BL.sum(dim=1)
        in_one_BL = (positions_L >= first_B.unsqueeze(1)) & (positions_L < end_B.unsqueeze(1))
        if not torch.equal(in_one_BL, present_BL):
            raise ValueError("attention_mask has zeros amid ones; padding is understood at the ends of a row only")
        return cls(first_B, length) if bool(first_B.any()) else None

    def targets(self, labels_BL: Tensor) -> Tensor:
        """Labels of the last L tokens of a text, without those of padding and of the first token after it.

        What would predict that one is the state of padding, which in a row turned round has seen the text.
        """
        length = self.length - labels_BL.shape[1]
        positions_L = torch.arange(length, self.length, device=labels_BL.device)
        return labels_BL.masked_fill(positions_L <= self.padding_B.unsqueeze(1), NO_TARGET)

    def last(self, rows_BL: Tensor) -> Tensor:
        """Rows `(B, L, …)` with their padding moved behind the text."""
        return self._turned(rows_BL, self.padding_B)

    def first(self, rows_BL: Tensor) -> Tensor:
        """The inverse of `last`."""
        return self._turned(rows_BL, -self.padding_B)

    def _turned(self, rows_BL: Tensor, by_B: Tensor) -> Tensor:
        length = rows_BL.shape[1]
        index_BL = (torch.arange(length, device=rows_BL.device) + by_B.unsqueeze(1)) % length
        return rows_BL[torch.arange(len(rows_BL), device=rows_BL.device).unsqueeze(1), index_BL]
