"""Numbers carried as an unevaluated sum `high + low`, with twice the digits of their dtype (Dekker 1971).

A damped step `x ↦ c x + w` with `c < 1` pushes `log2(1/c)` bits of `x` out of its last digits, and its inverse cannot
bring them back. With the bits of `low` below it, it takes many steps until digits of `high` are lost.
"""

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
"""`high` and `low`: `high` is the sum rounded to its dtype."""

# An integer dtype of the same size, and the mask that keeps the upper half of the significand.
_UPPER = {torch.float64: (torch.int64, -(1 << 27)), torch.float32: (torch.int32, -(1 << 12))}


def scale_and_add(x: Pair, factor: float, w: Tensor) -> Pair:
    """`factor · x + w`."""
    product, error = _product(x[0], factor)
    total, rest = _sum(product, w)
    return _normalised(total, rest + (error + factor * x[1]))


def subtract_and_divide(x: Pair, factor: float, w: Tensor) -> Pair:
    """`(x − w) / factor`, the inverse of `scale_and_add`."""
    total, rest = _sum(x[0], -w)
    total, rest = _normalised(total, rest + x[1])
    quotient = total / factor
    product, error = _product(quotient, factor)
    return _normalised(quotient, (((total - product) - error) + rest) / factor)


def _sum(a: Tensor, b: Tensor) -> Pair:
    """`a + b` and its rounding error."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def _normalised(a: Tensor, b: Tensor) -> Pair:
    """`a + b` and its rounding error, where `a` is the larger one."""
    total = a + b
    return total, b - (total - a)


def _product(x: Tensor, factor: float) -> Pair:
    """`factor · x` and its rounding error; `factor` is a number of the dtype of `x`."""
    product = factor * x
    upper = _upper(x)
    lower = x - upper
    of_factor = float(_upper(torch.tensor(factor, dtype=x.dtype)))
    rest = factor - of_factor
    return product, (((of_factor * upper - product) + rest * upper) + of_factor * lower) + rest * lower


def _upper(x: Tensor) -> Tensor:
    """`x` without the lower half of its digits, so that products of halves are exact."""
    integer, mask = _UPPER[x.dtype]
    return (x.view(integer) & mask).view(x.dtype)
