"""Positions: rotary angles (Su et al. 2021, arXiv:2104.09864), along a text or by row and column of a grid, sinusoidal
distances (Dai et al. 2019, arXiv:1901.02860) and linear biases. All are relative, so a memory of any length needs no
offset."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from equilibria.devices import widest

_BASE, _GRID_BASE = 10_000.0, 100.0


@dataclass(frozen=True)
class Rotation:
    """Unit complex numbers: position `t` turns feature pair `i` by `t · base^(−2i/size)`, with a base of 10,000."""

    turn: Tensor
    """Real and imaginary parts, `(length, head_size / 2, 2)`, or with a batch before it where rows differ."""

    @classmethod
    def of(cls, positions: Tensor, head_size: int, dtype: torch.dtype = torch.float32, base: float = _BASE) -> Self:
        """The rotation of integer `positions` `(…, length)` for heads of even size, in float64 or else float32. Angles
        are taken in the widest floats, so that a difference of positions turns by as much far from the start as near
        it."""
        if head_size % 2:
            raise ValueError(f"rotary positions need an even head size, found {head_size}")
        real = torch.promote_types(dtype, torch.float32)
        exact = widest(positions.device)
        exponent = torch.arange(0, head_size, 2, device=positions.device, dtype=exact) / head_size
        angle = (positions.unsqueeze(-1) * base**-exponent).remainder(2 * torch.pi).to(real)
        return cls(_unit(angle))

    @classmethod
    def of_grid(cls, positions: Tensor, columns: int, head_size: int, dtype: torch.dtype = torch.float32) -> Self:
        """The rotation of cells of a grid, numbered row by row: half of the features are turned by the row, the others
        by the column, each as `of` turns heads of half the size, with a base of 100: rows and columns are few (Heo et
        al. 2024, arXiv:2403.13298). The head size is a multiple of 4."""
        rows, places = positions // columns, positions % columns
        halves = (cls.of(along, head_size // 2, dtype, _GRID_BASE).turn for along in (rows, places))
        return cls(torch.cat([*halves], dim=-2))

    def at(self, row: int, tokens_T: Tensor) -> Self:
        """The rotation of some tokens of a row."""
        return type(self)((self.turn if self.turn.dim() == 3 else self.turn[row])[tokens_T])

    def apply(self, x_BLHE: Tensor) -> Tensor:
        """Rotate `(…, length, heads, head_size)` by position."""
        if torch.compiler.is_exporting():  # a program for other runtimes has real numbers alone
            pairs = x_BLHE.to(self.turn.dtype).unflatten(-1, (-1, 2))
            return _product(pairs, self.turn.unsqueeze(-3)).flatten(-2).to(x_BLHE.dtype)
        wide = x_BLHE if x_BLHE.dtype == self.turn.dtype else x_BLHE.to(self.turn.dtype)
        turned = torch.view_as_complex(wide.view(*wide.shape[:-1], -1, 2)) * self._units
        turned = torch.view_as_real(turned).flatten(-2)
        return turned if wide is x_BLHE else turned.to(x_BLHE.dtype)

    @cached_property
    def _units(self) -> Tensor:
        """The complex numbers, `(…, length, 1, head_size / 2)`: with them a turn is ten times as fast."""
        return torch.view_as_complex(self.turn).unsqueeze(-2)


def _unit(angle: Tensor) -> Tensor:
    """The complex number of size 1 at each angle, as a pair of real ones."""
    if torch.compiler.is_exporting():
        return torch.stack([angle.cos(), angle.sin()], dim=-1)
    return torch.view_as_real(torch.polar(torch.ones_like(angle), angle))


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Of complex numbers as pairs of real ones."""
    (a_re, a_im), (b_re, b_im) = a.unbind(-1), b.unbind(-1)
    return torch.stack([a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re], dim=-1)


def distance_embedding(length: int, features: int, like: Tensor) -> Tensor:
    """Sinusoidal embeddings of the distances `length − 1, …, 0`: `(length, features)`, sines then cosines."""
    real = torch.promote_types(like.dtype, torch.float32)
    distance = torch.arange(length - 1, -1, -1, device=like.device, dtype=real)
    exponent = torch.arange(0, features, 2, device=like.device, dtype=real) / features
    angle = distance.unsqueeze(-1) * _BASE**-exponent
    return torch.cat([angle.sin(), angle.cos()], dim=-1).to(like.dtype)


def relative_shift(scores_BHLR: Tensor) -> Tensor:
    """Turn scores against distances into scores against the key positions, `(B, H, L, S)`, a view.

    Query `i` of `L` stands at key position `S − L + i`; its score for key `j` is that of distance `S − L + i − j`.
    Entries of later keys are arbitrary (finite) and must be masked.

    Args:
        scores_BHLR: `R = 1 + S`: a column of anything finite, then the distances `S − 1, …, 0`. The column comes free
            as a row of zeros before the projected distances, and makes the shift a matter of strides (Transformer-XL's
            code pads at each evaluation instead).
    """
    B, H, L, R = scores_BHLR.shape
    return scores_BHLR.reshape(B, H, R, L)[:, :, 1:].view(B, H, L, R - 1)


def linear_biases(heads: int, length: int, past: int, like: Tensor, factor: float = 1.0) -> Tensor:
    """Biases `−slope · distance` of attention scores (Press et al. 2021, arXiv:2108.12409): `(heads, length, S)`.

    The slopes are `2^(−8/heads), 2^(−16/heads), …, 2^−8`, times `factor`; a later key is as far as an earlier one.
    """
    keys = torch.arange(past + length, device=like.device)
    distance_LS = (keys[past:].unsqueeze(-1) - keys).abs()
    slopes = factor * 2.0 ** (-8.0 * torch.arange(1, heads + 1, device=like.device, dtype=widest(like.device)) / heads)
    return (-slopes.view(-1, 1, 1) * distance_LS).to(like.dtype)
