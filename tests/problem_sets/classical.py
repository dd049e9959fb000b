"""Root problems of the classical collections, as `z − s F(z)`, each after its source; `θ` are constants of the formula.

Moré, Garbow and Hillstrom 1981, "Testing unconstrained optimization software" (MGH below), whose problems later sets
repeat; Broyden 1965 and 1971; Dennis and Schnabel 1983; Chandrasekhar 1960; Hammarling's matrix square roots.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from problem_sets.problem import Problem, columns, numbers, root, row, vector


def rosenbrock(z: Tensor, p: Tensor) -> Tensor:
    following = p[1] * (z[:, 1:] - z[:, :-1].square())
    return torch.cat([z[:, :1] - p[0], following], dim=1)


def powell_singular(z: Tensor, p: Tensor) -> Tensor:
    a, b, c, d = z.unbind(-1)
    return columns(a + p[0] * b, 5**0.5 * (c - d), (b - 2 * c).square(), 10**0.5 * (a - d).square())


def powell_badly_scaled(z: Tensor, p: Tensor) -> Tensor:
    a, b = z.unbind(-1)
    return columns(p[0] * a * b - 1, torch.exp(-a) + torch.exp(-b) - p[1])


def wood(z: Tensor, p: Tensor) -> Tensor:
    """The gradient of Wood's function, halved."""
    a, b, c, d = z.unbind(-1)
    first, second = b - a.square(), d - c.square()
    return columns(
        -2 * p[0] * a * first - (1 - a),
        p[0] * first + p[2] * (b - 1) + p[3] * (d - 1),
        -2 * p[1] * c * second - (1 - c),
        p[1] * second + p[2] * (d - 1) + p[3] * (b - 1),
    )


def helical_valley(z: Tensor, p: Tensor) -> Tensor:
    a, b, c = z.unbind(-1)
    turn = torch.atan2(b, a) / (2 * math.pi)
    return columns(10 * (c - 10 * turn), 10 * (torch.hypot(a, b) - p[0]), c)


def watson(z: Tensor, p: Tensor) -> Tensor:
    """Half the gradient of the sum of squares over 29 points of a polynomial's differential equation."""
    n = z.shape[-1]
    t = numbers(1, 29, z).unsqueeze(-1) / 29
    powers = t ** numbers(0, n - 1, z)
    slopes = numbers(0, n - 1, z) * t ** (numbers(0, n - 1, z) - 1).clamp(min=0)
    value = z @ powers.mT
    residual = z @ slopes.mT - value.square() - p[0]
    sums = residual @ slopes - 2 * (residual * value) @ powers
    last = z[:, 1] - z[:, 0].square() - p[0]
    ends = torch.cat([columns(z[:, 0] - 2 * z[:, 0] * last, last), torch.zeros_like(z[:, 2:])], dim=1)
    return sums + ends


def chebyquad(z: Tensor, p: Tensor) -> Tensor:
    """Moments of Chebyshev polynomials on [0, 1]: the nodes of an equal-weight quadrature."""
    n = z.shape[-1]
    x = 2 * z - 1
    before, here = torch.ones_like(x), x
    moments = []
    for order in range(1, n + 1):
        exact = -p[0] / (order**2 - 1) if order % 2 == 0 else 0.0
        moments.append(here.mean(-1) - exact)
        before, here = here, 2 * x * here - before
    return columns(*moments)


def brown_almost_linear(z: Tensor, p: Tensor) -> Tensor:
    linear = z + z.sum(-1, keepdim=True) - (z.shape[-1] + p[0])
    return torch.cat([linear[:, :-1], z.prod(-1, keepdim=True) - 1], dim=1)


def _padded(z: Tensor) -> tuple[Tensor, Tensor]:
    """The neighbours to the left and to the right; zero beyond the ends."""
    end = torch.zeros_like(z[:, :1])
    return torch.cat([end, z[:, :-1]], dim=1), torch.cat([z[:, 1:], end], dim=1)


def discrete_boundary_value(z: Tensor, p: Tensor) -> Tensor:
    n = z.shape[-1]
    h, t = 1 / (n + 1), numbers(1, n, z) / (n + 1)
    left, right = _padded(z)
    return 2 * z - left - right + p[0] * h**2 * (z + t + 1) ** 3 / 2


def discrete_integral(z: Tensor, p: Tensor) -> Tensor:
    """As a fixed point by itself: the boundary value problem through its Green's function."""
    n = z.shape[-1]
    t = numbers(1, n, z) / (n + 1)
    green = torch.minimum(t.unsqueeze(-1), t) * (1 - torch.maximum(t.unsqueeze(-1), t))
    return -p[0] * (z + t + 1) ** 3 @ green / (2 * (n + 1))


def trigonometric(z: Tensor, p: Tensor) -> Tensor:
    n = z.shape[-1]
    cosines = torch.cos(z)
    return n - cosines.sum(-1, keepdim=True) + numbers(1, n, z) * (p[0] - cosines) - torch.sin(z)


def variably_dimensioned(z: Tensor, p: Tensor) -> Tensor:
    weights = numbers(1, z.shape[-1], z)
    moment = ((z - p[0]) * weights).sum(-1, keepdim=True)
    return z - p[0] + weights * moment * (1 + 2 * moment.square())


def broyden_tridiagonal(z: Tensor, p: Tensor) -> Tensor:
    left, right = _padded(z)
    return (3 - p[0] * z) * z - left - 2 * right + p[1]


def broyden_banded(z: Tensor, p: Tensor) -> Tensor:
    n = z.shape[-1]
    offset = torch.arange(n).unsqueeze(-1) - torch.arange(n)
    band = ((offset <= 5) & (offset >= -1) & (offset != 0)).to(z)
    return z * (2 + p[0] * z.square()) + p[1] - (z * (1 + z)) @ band.mT


def matrix_root(z: Tensor, p: Tensor) -> Tensor:
    """`X² = A` with the entries of `A` for `θ`."""
    n = math.isqrt(z.shape[-1])
    x = z.unflatten(-1, (n, n))
    return (x @ x).flatten(1) - p


def dennis_schnabel(z: Tensor, p: Tensor) -> Tensor:
    a, b = z.unbind(-1)
    return columns(a + b - p[0], a.square() + b.square() - p[1])


def bells(z: Tensor, p: Tensor) -> Tensor:
    a, b = z.unbind(-1)
    return columns(b.square() / a * -torch.expm1(-p[0] * a * a), a / b * -torch.expm1(-p[0] * b * b))


def cubic_rays(z: Tensor, p: Tensor) -> Tensor:
    return p[0] * z * z.square().sum(-1, keepdim=True)


def double_root(z: Tensor, p: Tensor) -> Tensor:
    return z * (z - p[0]).square()


def freudenstein_roth(z: Tensor, p: Tensor) -> Tensor:
    a, b = z.unbind(-1)
    return columns(a - b**3 + 5 * b.square() - 2 * b - p[0], a + b**3 + b.square() - 14 * b - p[1])


def boggs(z: Tensor, p: Tensor) -> Tensor:
    a, b = z.unbind(-1)
    return columns(a.square() - b + p[0], a - torch.cos(p[1] * b))


def chandrasekhar(z: Tensor, p: Tensor) -> Tensor:
    """The H equation by the midpoint rule, as a fixed point by itself."""
    n = z.shape[-1]
    mu = (numbers(1, n, z) - 0.5) / n
    kernel = mu.unsqueeze(-1) / (mu.unsqueeze(-1) + mu)
    return 1 / (1 - p[0] / (2 * n) * z @ kernel.mT)


def _ones(n: int) -> Tensor:
    return torch.ones(1, n, dtype=torch.float64)


_GRID = numbers(1, 10, vector(0)) / 11
_SQUARE = 1e-4

CLASSICAL = (
    Problem(
        "Rosenbrock, extended", "MGH 1 and 21", root(rosenbrock, 0.1), row(-1.2, 1, 1, 1, 1), vector(1, 10),
        answer=_ones(5), unique=True,
    ),
    Problem(
        "Powell singular", "MGH 13", root(powell_singular, 0.1), row(3, -1, 0, 1), vector(10),
        answer=torch.zeros(1, 4, dtype=torch.float64), singular=True,
    ),
    Problem("Powell badly scaled", "MGH 3", root(powell_badly_scaled), row(0, 1), vector(1e4, 1.0001)),
    Problem(
        "Wood", "MGH 14", root(wood, 1e-3), row(-3, -1, -3, -1), vector(200, 180, 20.2, 19.8), answer=_ones(4)
    ),
    Problem("helical valley", "MGH 7", root(helical_valley, 0.1), row(-1, 0.1, 0), vector(1), answer=row(1, 0, 0)),
    Problem("Watson", "MGH 20", root(watson, 0.02), row(0, 0, 0, 0), vector(1)),
    Problem("Chebyquad", "MGH 35", root(chebyquad), numbers(1, 5, vector(0)).unsqueeze(0) / 6, vector(1)),
    Problem(
        "Brown almost linear", "MGH 27", root(brown_almost_linear, 0.1), 0.5 * _ones(10), vector(1)
    ),
    Problem("discrete boundary value", "MGH 28", root(discrete_boundary_value, 0.5), (_GRID * (_GRID - 1)).unsqueeze(0),
            vector(1)),
    Problem("discrete integral", "MGH 29", discrete_integral, (_GRID * (_GRID - 1)).unsqueeze(0), vector(1)),
    Problem("trigonometric", "MGH 26", root(trigonometric, -0.1), 0.1 * _ones(10), vector(1)),
    Problem(
        "variably dimensioned", "MGH 25", root(variably_dimensioned, 0.01),
        1 - numbers(1, 6, vector(0)).unsqueeze(0) / 6, vector(1), answer=_ones(6), unique=True,
    ),
    Problem("Broyden tridiagonal", "Broyden 1965; MGH 30", root(broyden_tridiagonal, 0.2), -_ones(10), vector(2, 1)),
    Problem("Broyden banded", "Broyden 1971; MGH 31", root(broyden_banded, 0.2), -_ones(10), vector(5, 1)),
    Problem(
        "matrix square root, 2 × 2", "Hammarling", root(matrix_root, 0.5), row(1, 0, 0, 1),
        vector(_SQUARE, 1, 0, _SQUARE), answer=row(1e-2, 50, 0, 1e-2),
    ),
    Problem(
        "matrix square root, 3 × 3", "Hammarling", root(matrix_root, 0.5), row(1, 0, 0, 0, 1, 0, 0, 0, 1),
        vector(_SQUARE, 1, 0, 0, _SQUARE, 0, 0, 0, _SQUARE), answer=row(1e-2, 50, 0, 0, 1e-2, 0, 0, 0, 1e-2),
    ),
    Problem("line and circle", "Dennis and Schnabel 1983", root(dennis_schnabel, 0.1), row(1, 5), vector(3, 9),
            answer=row(0, 3)),
    Problem("two bells", "sample 18 of NonlinearSolve.jl", root(bells, 0.1), row(2, 2), vector(1),
            singular=True),
    Problem("cubic rays", "sample 19 of NonlinearSolve.jl", root(cubic_rays, 0.05), row(3, 3), vector(1),
            answer=row(0, 0), singular=True),
    Problem("double root", "sample 20 of NonlinearSolve.jl", root(double_root, 0.02), row(1), vector(5), answer=row(0),
            singular=True),
    Problem("Freudenstein and Roth", "MGH 2", root(freudenstein_roth, 0.02), row(6, 3), vector(13, 29),
            answer=row(5, 4)),
    Problem("Boggs", "Boggs 1971", root(boggs, 0.5), row(1, 0), vector(1, math.pi / 2), answer=row(0, 1)),
    Problem("Chandrasekhar H", "Chandrasekhar 1960", chandrasekhar, _ones(10), vector(0.9)),
)  # fmt: skip
