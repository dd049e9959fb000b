"""Padding at the left of a batch: taken from an attention mask, and moved behind the text.

Models are causal and know only relative positions, so a row rotated to put its text first is exactly the row alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from equilibria.data.batches import NO_TARGET


@dataclass(frozen=True)
class LeftPadding:
    """Numbers `(B,)` of padding tokens at the left of each row, and the length of the rows."""

    padding_B: Tensor
    length: int

    @classmethod
    def of(cls, mask: Tensor | None, batch: int, length: int) -> LeftPadding | None:
        """The padding in the last `length` columns of an attention mask; None for none.

        Zeros at the right end, or a whole row of them, are ignored: nothing before them sees what is there.

        Raises:
            ValueError: the mask has another shape, or zeros between ones.
        """
        if mask is None:
            return None
        if mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] < length:
            raise ValueError(
                f"attention_mask must be ({batch}, {length}), one number for each cached and new token, "
                f"found {tuple(mask.shape)}"
            )
        present_BL = mask[:, mask.shape[1] - length :].bool()
        first_B = present_BL.int().argmax(dim=1)  # the first of equal ones
        positions_L = torch.arange(length, device=mask.device)
        end_B = first_B + present_BL.sum(dim=1)
        in_one_BL = (positions_L >= first_B.unsqueeze(1)) & (positions_L < end_B.unsqueeze(1))
        if not torch.equal(in_one_BL, present_BL):
            raise ValueError("attention_mask has zeros between ones; padding must be at the ends of a row")
        return cls(first_B, length) if bool(first_B.any()) else None

    def targets(self, labels_BL: Tensor) -> Tensor:
        """Labels of the last L tokens, without those of padding and of the first token after it.

        The state that would predict that one is of padding, which in a rotated row has seen the text.
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
