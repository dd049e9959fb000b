"""Maps whose leading eigenvalues are complex: iterates turn about the solution, and plain iteration gains little."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from problem_sets.problem import Problem, columns, numbers, row, seeded, vector


def turn(z: Tensor, p: Tensor) -> Tensor:
    """A rotation by the angle `θ₁`, scaled by `θ₀`."""
    a, b = z.unbind(-1)
    cosine, sine = torch.cos(p[1]), torch.sin(p[1])
    return row(1, 2).to(z) + p[0] * columns(cosine * a - sine * b, sine * a + cosine * b)


def _turned(z: Tensor, radii: Tensor, angles: Tensor) -> Tensor:
    """Each pair of features by its own angle and radius."""
    a, b = z[:, 0::2], z[:, 1::2]
    cosine, sine = radii * torch.cos(angles), radii * torch.sin(angles)
    return torch.stack([cosine * a - sine * b, sine * a + cosine * b], dim=-1).flatten(1)


def many_turns(z: Tensor, p: Tensor) -> Tensor:
    """Angles from 0.3 to 3 at one radius."""
    pairs = z.shape[-1] // 2
    angles = 0.3 + 2.7 * numbers(0, pairs - 1, z) / (pairs - 1)
    return seeded(41, 1, z.shape[-1]).to(z) + _turned(z, p[0].expand(pairs), angles)


def shifted(z: Tensor, p: Tensor) -> Tensor:
    """A cyclic shift: every root of unity is an eigenvalue, times `θ`."""
    return seeded(42, 1, z.shape[-1]).to(z) + p[0] * z.roll(1, -1)


def skew_tanh(z: Tensor, p: Tensor) -> Tensor:
    """`tanh` of a skew matrix: a bent rotation."""
    n = z.shape[-1]
    matrix = seeded(43, n, n).to(z)
    return torch.tanh(p[0] * z @ (matrix - matrix.mT) / n**0.5 + seeded(44, 2, n).to(z))


def mostly_skew_tanh(z: Tensor, p: Tensor) -> Tensor:
    n = z.shape[-1]
    matrix, other = seeded(45, n, n).to(z), seeded(46, n, n).to(z)
    return torch.tanh(p[0] * z @ (matrix - matrix.mT + p[1] * other) / n**0.5 + seeded(47, 2, n).to(z))


def oscillator(z: Tensor, p: Tensor) -> Tensor:
    """One implicit midpoint step of a chain of weakly nonlinear oscillators."""
    n = z.shape[-1] // 2
    before = seeded(48, 1, 2 * n).to(z)
    middle = (z + before) / 2
    place, speed = middle[:, :n], middle[:, n:]
    force = -place - p[1] * place**3 + 0.2 * (place.roll(1, -1) - place)
    return before + p[0] * torch.cat([speed, force], dim=1)


def saddle(z: Tensor, p: Tensor) -> Tensor:
    """Descent and ascent at once on a bilinear game with a little curvature: the iterates circle."""
    n = z.shape[-1] // 2
    matrix = seeded(49, n, n).to(z) / n**0.5
    low, high = z[:, :n], z[:, n:]
    down = p[0] * low + high @ matrix.mT + seeded(50, n).to(z)
    up = low @ matrix - p[0] * high + seeded(51, n).to(z)
    return z + 0.5 * torch.cat([-down, up], dim=1)


def spinning_cell(z: Tensor, p: Tensor) -> Tensor:
    """A relaxed orthogonal layer with a soft nonlinearity."""
    n = z.shape[-1]
    orthogonal = torch.linalg.qr(seeded(52, n, n))[0].to(z)
    value = z @ orthogonal.mT * p[0] + seeded(53, 2, n).to(z)
    return value / (1 + p[1] * value.square()).sqrt()


def _zeros(rows: int, n: int) -> Tensor:
    return torch.zeros(rows, n, dtype=torch.float64)


def _turn_answer(radius: float, angle: float) -> Tensor:
    cosine, sine = radius * math.cos(angle), radius * math.sin(angle)
    matrix = torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float64)
    return torch.linalg.solve(torch.eye(2, dtype=torch.float64) - matrix, vector(1, 2)).unsqueeze(0)


ROTATING = (
    Problem("quarter turn", "our own", turn, row(0, 0), vector(0.95, math.pi / 2),
            answer=_turn_answer(0.95, math.pi / 2), unique=True, rotates=True),
    Problem("spiral outwards", "our own", turn, row(0, 0), vector(1.5, 2.0), answer=_turn_answer(1.5, 2.0),
            unique=True, rotates=True),
    Problem("many turns", "our own", many_turns, _zeros(1, 12), vector(0.97), rotates=True),
    Problem("many turns outwards", "our own", many_turns, _zeros(1, 12), vector(1.2), rotates=True),
    Problem("cyclic shift", "our own", shifted, _zeros(1, 16), vector(0.95), rotates=True),
    Problem("skew tanh", "our own", skew_tanh, _zeros(2, 20), vector(1.0), rotates=True),
    Problem("skew tanh, small", "our own", skew_tanh, _zeros(2, 6), vector(1.5), rotates=True),
    Problem("mostly skew tanh", "our own", mostly_skew_tanh, _zeros(2, 20), vector(0.7, 0.3), rotates=True),
    Problem("chain of oscillators", "our own", oscillator, _zeros(1, 16), vector(1.2, 0.1), rotates=True),
    Problem("saddle point", "Arrow, Hurwicz and Uzawa 1958", saddle, _zeros(1, 12), vector(0.2), rotates=True),
    Problem("orthogonal cell", "our own", spinning_cell, _zeros(2, 16), vector(1.0, 0.2), rotates=True),
)  # fmt: skip
