"""A seeded bank of maps with known answers, shared by the tests of solvers, gradients and diagnostics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Affine:
    """`f(z) = M z + b`, on states `(batch, length, features)` flattened per sample; solved in closed form."""

    matrix: Tensor
    offset: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        return (z.flatten(1) @ self.matrix.to(z).mT).reshape(z.shape) + self.offset.to(z)

    @property
    def start(self) -> Tensor:
        return torch.zeros_like(self.offset)

    @property
    def answer(self) -> Tensor:
        identity = torch.eye(self.matrix.shape[0], dtype=self.matrix.dtype)
        flat = torch.linalg.solve(identity - self.matrix, self.offset.flatten(1).mT).mT
        return flat.reshape(self.offset.shape)


def affine(radius: float, causal: bool = False, batch: int = 3, length: int = 6, features: int = 4) -> Affine:
    """A random non-normal affine map of the given spectral radius; block lower triangular when causal."""
    generator = torch.Generator().manual_seed(7)
    size = length * features
    matrix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    if causal:
        blocks = torch.ones(length, length, dtype=torch.float64).tril()
        matrix = matrix * torch.kron(blocks, torch.ones(features, features, dtype=torch.float64))
    matrix = matrix * (radius / torch.linalg.eigvals(matrix).abs().max())
    offset = torch.randn(batch, length, features, generator=generator, dtype=torch.float64)
    return Affine(matrix, offset)


def slow_diagonal(radius: float, size: int = 200) -> Affine:
    """A symmetric affine map whose spectrum fills `(0, radius]`: plain iteration converges like `radius^k`."""
    generator = torch.Generator().manual_seed(3)
    spectrum = torch.linspace(0.0, radius, size, dtype=torch.float64)
    offset = torch.randn(1, 1, size, generator=generator, dtype=torch.float64)
    return Affine(torch.diag(spectrum), offset)


def rotation(scale: float) -> Affine:
    """`scale` times a quarter turn: a complex pair of eigenvalues of modulus `scale`."""
    matrix = scale * torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    return Affine(matrix, torch.tensor([[[1.0, 2.0]]], dtype=torch.float64))


def without_fixed_point(z: Tensor) -> Tensor:
    """`z + 1`."""
    return z + 1


def doubling(z: Tensor) -> Tensor:
    """`2 z + 1`: its fixed point −1 repels."""
    return 2 * z + 1


def two_fixed_points(z: Tensor) -> Tensor:
    """`z²/2`-like logistic map on a scalar: `z = 0` repels, `z = 1/2` attracts."""
    return 2 * z * (1 - z)


def nan_for_sample_after(sample: int, calls: int) -> Callable[[Tensor], Tensor]:
    """`z/2 + 1`, which returns NaN for one sample from the given call on."""
    count = 0

    def f(z: Tensor) -> Tensor:
        nonlocal count
        count += 1
        value = z / 2 + 1
        if count > calls:
            value = value.clone()
            value[sample] = torch.nan
        return value

    return f


@dataclass(frozen=True)
class CausalAttention:
    """A random nonlinear causal map: one attention head, a tanh and an injection. No closed form; strictly causal."""

    weights: tuple[Tensor, Tensor, Tensor]
    injection: Tensor
    gain: float

    def __call__(self, z: Tensor) -> Tensor:
        q, k, v = (z @ w.to(z) for w in self.weights)
        scores = (q @ k.mT) / z.shape[-1] ** 0.5
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v
        return torch.tanh(self.gain * (mixed + 0.5 * z) + self.injection.to(z))


def causal_attention(gain: float = 0.6, batch: int = 2, length: int = 12, features: int = 6) -> CausalAttention:
    """A seeded `CausalAttention`."""
    generator = torch.Generator().manual_seed(11)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = tuple(random(features, features) / features**0.5 for _ in range(3))
    return CausalAttention(weights, random(batch, length, features), gain)  # type: ignore[arg-type]


@dataclass(frozen=True)
class CausalMixing:
    """`tanh(M z + b)` with a random block lower triangular `M`: causal, nonlinear, contracting or not by its gain."""

    matrix: Tensor
    offset: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        return torch.tanh((z.flatten(1) @ self.matrix.to(z).mT).reshape(z.shape) + self.offset.to(z))


def causal_mixing(seed: int, gain: float, batch: int, length: int, features: int) -> CausalMixing:
    """A seeded `CausalMixing`, `gain` times as strong as one whose rows have unit norm on average."""
    generator = torch.Generator().manual_seed(seed)
    size = length * features
    blocks = torch.ones(length, length, dtype=torch.float64).tril()
    matrix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix = matrix * torch.kron(blocks, torch.ones(features, features, dtype=torch.float64)) * (gain / size**0.5)
    return CausalMixing(matrix, torch.randn(batch, length, features, generator=generator, dtype=torch.float64))


def settling_late(z: Tensor) -> Tensor:
    """Token 0 goes to 2 by halves; each later token copies the one before it: its residual falls before it rises."""
    return torch.cat([0.5 * z[:, :1] + 1.0, z[:, :-1]], dim=1)


def nan_once_at(sample: int, call: int) -> Callable[[Tensor], Tensor]:
    """`z/2 + 1`, which returns NaN for one sample at one call and is itself again after it."""
    count = 0

    def f(z: Tensor) -> Tensor:
        nonlocal count
        count += 1
        value = z / 2 + 1
        if count == call:
            value = value.clone()
            value[sample] = torch.nan
        return value

    return f
