"""Scalar equations, steps of ordinary and partial differential equations, and equilibria of physics and chemistry.

The kinds that optimistix, jaxopt and scipy test their root finders on, written out anew.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from problem_sets.problem import Problem, columns, numbers, row, seeded, vector


def cosine(z: Tensor, p: Tensor) -> Tensor:
    return torch.cos(p[0] * z)


def kepler(z: Tensor, p: Tensor) -> Tensor:
    """The eccentric anomaly of four mean anomalies."""
    return columns(vector(0.1, 0.8, 1.9, 3.0).to(z)) + p[0] * torch.sin(z)


def logistic(z: Tensor, p: Tensor) -> Tensor:
    return p[0] * z * (1 - z)


def square_root(z: Tensor, p: Tensor) -> Tensor:
    return torch.sqrt(vector(10, 12).to(z) * p[0] / (z + vector(3, 5).to(z) * p[1]))


def heron(z: Tensor, p: Tensor) -> Tensor:
    return (z + p / z) / 2


def golden_ratio(z: Tensor, p: Tensor) -> Tensor:
    return p[0] + 1 / z


def lambert(z: Tensor, p: Tensor) -> Tensor:
    """`W(θ)`: `z eᶻ = θ`."""
    return p[0] * torch.exp(-z)


def colebrook(z: Tensor, p: Tensor) -> Tensor:
    """`1/√λ` of the flow in a rough pipe, by roughness and Reynolds number."""
    return -2 * torch.log10(p[0] / 3.7 + 2.51 * z / (1e5 * p[1]))


def equation_of_state(z: Tensor, p: Tensor) -> Tensor:
    """Van der Waals' molar volume."""
    return p[0] / (1 + p[1] / z.square()) + p[2]


def lorenz_step(z: Tensor, p: Tensor) -> Tensor:
    """One implicit Euler step of the Lorenz system."""
    a, b, c = z.unbind(-1)
    slope = columns(p[0] * (b - a), a * (p[1] - c) - b, a * b - p[2] * c)
    return row(1, 2, 20).to(z) + 0.02 * slope


def lorenz_path(z: Tensor, p: Tensor) -> Tensor:
    """Eight implicit Euler steps at once: each state from the one before it."""
    states = z.unflatten(-1, (8, 3))
    a, b, c = states.unbind(-1)
    slope = torch.stack([p[0] * (b - a), a * (p[1] - c) - b, a * b - p[2] * c], dim=-1)
    before = torch.cat([row(1, 1, 20).to(z).unsqueeze(1), states[:, :-1]], dim=1)
    return (before + 0.02 * slope).flatten(1)


def van_der_pol_step(z: Tensor, p: Tensor) -> Tensor:
    a, b = z.unbind(-1)
    return columns(2 + 0.1 * b, 0.1 * (p[0] * (1 - a.square()) * b - a))


def pendulum_step(z: Tensor, p: Tensor) -> Tensor:
    """The implicit midpoint rule: rotates as the pendulum does."""
    a, b = ((1.5 + z[:, 0]) / 2, (0.3 + z[:, 1]) / 2)
    return columns(1.5 + p[1] * b, 0.3 - p[1] * p[0] * torch.sin(a))


def duffing_step(z: Tensor, p: Tensor) -> Tensor:
    a, b = ((0.8 + z[:, 0]) / 2, (z[:, 1] - 0.2) / 2)
    return columns(0.8 + 0.6 * b, -0.2 + 0.6 * (p[0] * a - p[1] * a**3))


def robertson_step(z: Tensor, p: Tensor) -> Tensor:
    """A stiff implicit Euler step, relaxed by the size of each species' own rate."""
    a, b, c = z.unbind(-1)
    made, used, joined = p[0] * a, 3e7 * p[1] * b.square(), 1e4 * p[2] * b * c
    residual = columns(a - 1 - 0.1 * (joined - made), b - 0.1 * (made - joined - used), c - 0.1 * used)
    return z - row(1, 1e-2, 1).to(z) * residual


def _laplacian(n: int) -> Tensor:
    """The negative second difference, zero beyond the ends, `(n, n)`."""
    ones = torch.ones(n - 1, dtype=torch.float64)
    return 2 * torch.eye(n, dtype=torch.float64) - torch.diag(ones, 1) - torch.diag(ones, -1)


_INVERSE = torch.linalg.inv(_laplacian(12))


def bratu(z: Tensor, p: Tensor) -> Tensor:
    """`u'' + θ eᵘ = 0`, through the inverse of the Laplacian."""
    return p[0] / 13**2 * torch.exp(z) @ _INVERSE.to(z)


def bratu_jacobi(z: Tensor, p: Tensor) -> Tensor:
    """The same by sweeps: slow, as the Laplacian is ill conditioned."""
    return z - 0.5 * (z @ _laplacian(12).to(z) - p[0] / 13**2 * torch.exp(z))


def plane_with_integral(z: Tensor, p: Tensor) -> Tensor:
    """`Δu = θ (mean cosh u)²` on a 5 × 5 grid with 1 on one side: local and global at once."""
    grid = z.unflatten(-1, (5, 5))
    side = torch.ones_like(grid[:, :1])
    wide = torch.cat([side, grid, torch.zeros_like(side)], dim=1)
    zero = torch.zeros_like(wide[:, :, :1])
    wide = torch.cat([zero, wide, zero], dim=2)
    around = wide[:, :-2, 1:-1] + wide[:, 2:, 1:-1] + wide[:, 1:-1, :-2] + wide[:, 1:-1, 2:]
    mean = torch.cosh(grid).mean((1, 2), keepdim=True).square()
    return ((around - p[0] * mean / 36) / 4).flatten(1)


def burgers_step(z: Tensor, p: Tensor) -> Tensor:
    """One implicit Euler step of the viscous Burgers equation on a circle of 16 points."""
    n = z.shape[-1]
    before = torch.sin(2 * math.pi * numbers(0, n - 1, z) / n)
    left, right = z.roll(1, -1), z.roll(-1, -1)
    return before - 0.03 * (z * (right - left) * n / 2 - p[0] * n**2 * (left - 2 * z + right))


def advection_step(z: Tensor, p: Tensor) -> Tensor:
    """Central differences on a circle: the Jacobian is skew, its spectrum imaginary."""
    n = z.shape[-1]
    before = torch.exp(-((numbers(0, n - 1, z) - 6) ** 2) / 8)
    return before - p[0] * (z.roll(-1, -1) - z.roll(1, -1))


def reaction_diffusion(z: Tensor, p: Tensor) -> Tensor:
    """A steady state of Fisher's equation, in pseudo-time."""
    n = z.shape[-1]
    slope = p[0] * z * (1 - z) - 30 / (n + 1) ** 2 * z @ (_laplacian(n) * (n + 1) ** 2 / 30).to(z)
    return z + 0.2 * slope


def lotka_volterra(z: Tensor, p: Tensor) -> Tensor:
    """The steady state of three competing species."""
    return z + 0.5 * z * (1 - z - z @ p.reshape(3, 3).mT)


def power_flow(z: Tensor, p: Tensor) -> Tensor:
    """Voltages, real and imaginary, of two loads at a slack bus through two lines, by their currents (Z-bus Gauss)."""
    real, imaginary = z[:, :2], z[:, 2:]
    size = real.square() + imaginary.square()
    active, reactive = p[:2], p[2:]
    current = (active * real + reactive * imaginary) / size, (active * imaginary - reactive * real) / size
    resistance = vector(0.02, 0.02, 0.02, 0.05).reshape(2, 2).to(z)
    reactance = 3 * resistance
    drop = current[0] @ resistance - current[1] @ reactance, current[0] @ reactance + current[1] @ resistance
    return torch.cat([1 - drop[0], -drop[1]], dim=1)


def weak_acid(z: Tensor, p: Tensor) -> Tensor:
    """`log [H]` of an acid at three concentrations, from its dissociation and that of water (balance of charge)."""
    hydrogen = torch.exp(z)
    total = p[2] * columns(vector(1, 1e-2, 1e-5).to(z))
    return 0.5 * torch.log(p[1] * 1e-14 + total * p[0] * hydrogen / (p[0] + hydrogen))


def stirred_tank(z: Tensor, p: Tensor) -> Tensor:
    """Conversion and temperature of an exothermic reaction in a cooled stirred tank."""
    conversion, heat = z.unbind(-1)
    rate = p[0] * (1 - conversion) * torch.exp(heat / (1 + heat / 20))
    return columns(rate, (p[1] * rate + p[2]) / 1.3)


def mean_field(z: Tensor, p: Tensor) -> Tensor:
    """The magnetisation of coupled spins: `m = tanh(β (J m + h))`."""
    couplings = seeded(21, 12, 12)
    couplings = (couplings + couplings.mT).to(z) / 12**0.5 / 2
    return torch.tanh(p[0] * (z @ couplings + p[1] * numbers(1, 12, z) / 12))


def nested_cournot(z: Tensor, p: Tensor) -> Tensor:
    """Best responses of five firms under a curved demand, each damped by half."""
    total = z.sum(-1, keepdim=True)
    costs = numbers(1, 5, z) / 20
    return 0.75 * z + 0.25 * torch.relu(p[0] - costs - (total - z) - p[1] * total.square()) / 2


def leading_direction(z: Tensor, p: Tensor) -> Tensor:
    """Power iteration of a positive matrix, in the 1-norm."""
    matrix = seeded(4, 8, 8).abs().to(z) + torch.diag(p[0] * numbers(1, 8, z) / 8)
    value = z @ matrix.mT
    return value / value.sum(-1, keepdim=True)


_PHI = (1 + 5**0.5) / 2

EQUATIONS = (
    Problem("cosine", "optimistix", cosine, columns(vector(0, 1, 2)), vector(1),
            answer=0.7390851332151607 * columns(vector(1, 1, 1)), unique=True),
    Problem("Kepler", "Kepler 1609", kepler, columns(vector(0.1, 0.8, 1.9, 3.0)), vector(0.9)),
    Problem("logistic", "May 1976", logistic, row(0.5), vector(2.5), answer=row(0.6)),
    Problem("logistic, repelling", "May 1976", logistic, row(0.6), vector(3.3), answer=row(1 - 1 / 3.3)),
    Problem("square root of a quotient", "scipy", square_root, row(1.2, 1.3), vector(1, 1)),
    Problem("Heron", "Heron, 1st century", heron, row(1, 1, 1), vector(2, 10, 1e4),
            answer=vector(2, 10, 1e4).sqrt().unsqueeze(0)),
    Problem("golden ratio", "Euclid", golden_ratio, row(1), vector(1), answer=row(_PHI)),
    Problem("Lambert W", "Lambert 1758", lambert, row(0), vector(2), answer=row(0.8526055020137254), unique=True),
    Problem("Colebrook", "Colebrook 1939", colebrook, row(5), vector(1e-4, 1)),
    Problem("equation of state", "van der Waals 1873", equation_of_state, row(24), vector(24.5, 3.6, 0.04)),
    Problem("Lorenz step", "Lorenz 1963", lorenz_step, row(1, 2, 20), vector(10, 28, 8 / 3)),
    Problem("Lorenz path", "optimistix", lorenz_path, row(*[1, 1, 20] * 8), vector(10, 28, 8 / 3)),
    Problem("van der Pol step", "van der Pol 1926", van_der_pol_step, row(2, 0), vector(5)),
    Problem("Robertson step", "Robertson 1966", robertson_step, row(1, 3e-5, 0), vector(0.04, 1, 1)),
    Problem("Bratu", "Bratu 1914", bratu, torch.zeros(1, 12, dtype=torch.float64), vector(2)),
    Problem("Bratu by sweeps", "Bratu 1914", bratu_jacobi, torch.zeros(1, 12, dtype=torch.float64), vector(2)),
    Problem("plane with an integral", "scipy", plane_with_integral, torch.zeros(1, 25, dtype=torch.float64),
            vector(10)),
    Problem("Burgers step", "optimistix", burgers_step, torch.zeros(1, 16, dtype=torch.float64), vector(0.05)),
    Problem("reaction and diffusion", "Fisher 1937", reaction_diffusion, 0.5 * torch.ones(1, 10, dtype=torch.float64),
            vector(0.5)),
    Problem("competing species", "Lotka 1925", lotka_volterra, row(0.3, 0.3, 0.3),
            vector(0, 0.5, 0.2, 0.3, 0, 0.4, 0.1, 0.6, 0)),
    Problem("power flow", "Ward and Hale 1956", power_flow, row(1, 1, 0, 0), vector(0.8, 0.5, 0.2, 0.3)),
    Problem("weak acid", "Ostwald 1888", weak_acid, columns(vector(-7, -7, -7)), vector(1.8e-5, 1, 0.1)),
    Problem("stirred tank", "Uppal 1974", stirred_tank, row(0, 0), vector(0.1, 2, 0.1)),
    Problem("mean field", "Weiss 1907", mean_field, torch.zeros(1, 12, dtype=torch.float64), vector(0.8, 1)),
    Problem("Cournot", "Cournot 1838", nested_cournot, 0.1 * torch.ones(1, 5, dtype=torch.float64), vector(1, 0.3)),
    Problem("leading direction", "von Mises 1929", leading_direction, torch.ones(1, 8, dtype=torch.float64) / 8,
            vector(1)),
)  # fmt: skip
