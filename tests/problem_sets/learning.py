"""Fixed points of optimisation, statistics, transport and planning, and cells of small equilibrium networks."""

from __future__ import annotations

import torch
from torch import Tensor

from problem_sets.problem import Problem, columns, row, seeded, vector


def page_rank(z: Tensor, p: Tensor) -> Tensor:
    n = z.shape[-1]
    links = (seeded(5, n, n) > 0.4).double() + torch.roll(torch.eye(n, dtype=torch.float64), 1, 0)
    flow = (links / links.sum(0)).to(z)
    return p[0] * z @ flow.mT + (1 - p[0]) / n


def _decision_process(z: Tensor) -> tuple[Tensor, Tensor]:
    """Transitions `(actions, states, states)` and rewards `(actions, states)` of 3 actions in as many states as `z`."""
    n = z.shape[-1]
    return seeded(6, 3, n, n).mul(2).softmax(-1).to(z), seeded(7, 3, n).to(z)


def bellman(z: Tensor, p: Tensor) -> Tensor:
    moves, rewards = _decision_process(z)
    return (rewards + p[0] * torch.einsum("asn,bn->bas", moves, z)).amax(1)


def soft_bellman(z: Tensor, p: Tensor) -> Tensor:
    moves, rewards = _decision_process(z)
    values = rewards + p[0] * torch.einsum("asn,bn->bas", moves, z)
    return torch.logsumexp(values / p[1], dim=1) * p[1]


def _regression(z: Tensor) -> tuple[Tensor, Tensor]:
    """A design of 24 rows and a noisy target of a sparse vector."""
    n = z.shape[-1]
    design = seeded(8, 24, n)
    wanted = torch.where(torch.arange(n) % 3 == 0, 1.5, 0.0).double()
    return (design / 24**0.5).to(z), ((design @ wanted + 0.1 * seeded(9, 24)) / 24**0.5).to(z)


def ridge(z: Tensor, p: Tensor) -> Tensor:
    design, target = _regression(z)
    return z - 0.3 * ((z @ design.mT - target) @ design + p[0] * z)


def lasso(z: Tensor, p: Tensor) -> Tensor:
    """Iterative shrinkage (Daubechies, Defrise and De Mol 2004)."""
    design, target = _regression(z)
    moved = z - 0.3 * (z @ design.mT - target) @ design
    return torch.sign(moved) * torch.relu(moved.abs() - 0.3 * p[0])


def elastic_net(z: Tensor, p: Tensor) -> Tensor:
    return lasso(z, p) / (1 + 0.3 * p[1])


def nonnegative_least_squares(z: Tensor, p: Tensor) -> Tensor:
    design, target = _regression(z)
    return torch.relu(z - 0.3 * (z @ design.mT - target - p[0]) @ design)


def logistic_regression(z: Tensor, p: Tensor) -> Tensor:
    design, target = _regression(z)
    labels = (target > 0).to(z)
    return (z - 2.0 * (torch.sigmoid(z @ design.mT * 24**0.5) - labels) @ design / 24**0.5) / (1 + 2.0 * p[0])


def softmax_regression(z: Tensor, p: Tensor) -> Tensor:
    """Three classes; the weights are one row."""
    design, target = _regression(z[:, :4])
    weights = z.unflatten(-1, (4, 3))
    labels = torch.bucketize(target, torch.quantile(target.float(), vector(1 / 3, 2 / 3).float()).to(z))
    chosen = torch.nn.functional.one_hot(labels, 3).to(z)
    gap = (24**0.5 * design @ weights).softmax(-1) - chosen
    return z - 1.5 * ((design.mT @ gap / 24**0.5).flatten(1) + p[0] * z)


def mirror_descent(z: Tensor, p: Tensor) -> Tensor:
    """Exponentiated gradient on the simplex, of a strongly convex quadratic with entropy."""
    n = z.shape[-1]
    root = seeded(10, n, n).to(z) / n**0.5
    slope = z @ root @ root.mT + seeded(11, n).to(z) + p[0] * torch.log(z)
    return torch.softmax(torch.log(z) - 0.5 * slope, dim=-1)


def support_vectors(z: Tensor, p: Tensor) -> Tensor:
    """The dual of a support vector machine without offset, by projected gradients into its box."""
    points = seeded(12, z.shape[-1], 3)
    labels = torch.sign(points[:, 0] + 0.3 * points[:, 1])
    kernel = torch.exp(-torch.cdist(points, points).square() / 2) * labels * labels.unsqueeze(-1)
    step = z - 0.4 * (z @ kernel.to(z) - 1)
    return torch.minimum(torch.relu(step), p[0])


def sinkhorn(z: Tensor, p: Tensor) -> Tensor:
    """Dual potentials of entropic transport; one of the free constants is fixed by their mean."""
    n = z.shape[-1]
    cost = torch.cdist(seeded(13, n, 2), seeded(14, n, 2)).to(z)
    masses = seeded(15, 2, n).softmax(-1).to(z)
    other = torch.log(masses[1]) - torch.logsumexp(z.unsqueeze(-1) - cost / p[0], dim=1)
    value = torch.log(masses[0]) - torch.logsumexp(other.unsqueeze(1) - cost / p[0], dim=2)
    return value - value.mean(-1, keepdim=True)


def gradient_descent(z: Tensor, p: Tensor) -> Tensor:
    """On Rosenbrock's function: the valley is bent, the Hessian's condition about 2,500 at 100, here 250."""
    a, b = z.unbind(-1)
    valley = p[1] * (b - a.square())
    return z - 0.02 * columns(-4 * a * valley - 2 * (p[0] - a), 2 * valley)


def beale(z: Tensor, p: Tensor) -> Tensor:
    """Gradient descent on Beale's function."""
    a, b = z.unbind(-1)
    slope = torch.zeros_like(z)
    for power, target in enumerate((1.5, 2.25, 2.625), start=1):
        gap = p[0] * target - a * (1 - b**power)
        slope = slope + columns(-2 * gap * (1 - b**power), 2 * gap * a * power * b ** (power - 1))
    return z - 0.02 * slope


def himmelblau(z: Tensor, p: Tensor) -> Tensor:
    """Gradient descent on Himmelblau's function: four minima, a maximum and saddles."""
    a, b = z.unbind(-1)
    first, second = a.square() + b - p[0], a + b.square() - p[1]
    return z - 0.01 * columns(4 * a * first + 2 * second, 2 * first + 4 * b * second)


def mixture(z: Tensor, p: Tensor) -> Tensor:
    """Expectation and maximisation for two normal means of unit variance and a free share."""
    points = torch.cat([seeded(16, 20) - 2, seeded(17, 30) + 2]).to(z)
    logit, low, high = z.unbind(-1)
    difference = (high - low).unsqueeze(-1) * (points - ((high + low) / 2).unsqueeze(-1)) * p[0]
    share = torch.sigmoid(logit.unsqueeze(-1) + difference)
    part = share.mean(-1)
    mean_high = (share * points).sum(-1) / share.sum(-1)
    mean_low = ((1 - share) * points).sum(-1) / (1 - share).sum(-1)
    return columns(torch.log(part / (1 - part)), mean_low, mean_high)


def tanh_cell(z: Tensor, p: Tensor) -> Tensor:
    n = z.shape[-1]
    inputs = seeded(18, 3, n).to(z)
    return torch.tanh(p[0] * z @ seeded(19, n, n).to(z) / n**0.5 + p[1] * inputs)


def layer_norm_cell(z: Tensor, p: Tensor) -> Tensor:
    """A post-norm residual cell."""
    n = z.shape[-1]
    hidden = torch.tanh(z @ seeded(22, n, 2 * n).to(z) / n**0.5) @ seeded(23, 2 * n, n).to(z) / (2 * n) ** 0.5
    mixed = 0.5 * z + p[0] * hidden + p[1] * seeded(24, 2, n).to(z)
    return (mixed - mixed.mean(-1, keepdim=True)) / (mixed.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()


def monotone_cell(z: Tensor, p: Tensor) -> Tensor:
    """A ReLU layer whose `I − W` is strongly monotone (Winston and Kolter 2020), by forward-backward steps."""
    n = z.shape[-1]
    a, b = seeded(25, n, n).to(z) / n**0.5, seeded(26, n, n).to(z) / n**0.5
    pull = 0.8 * z - z @ (a.mT @ a) + z @ (b - b.mT)
    return torch.relu(0.85 * z + 0.15 * (pull + p[0] * seeded(27, 2, n).to(z)))


def gated_cell(z: Tensor, p: Tensor) -> Tensor:
    n = z.shape[-1]
    inputs = seeded(28, 2, n).to(z)
    gate = torch.sigmoid(z @ seeded(29, n, n).to(z) / n**0.5 + inputs)
    return gate * z * p[0] + (1 - gate) * torch.tanh(p[1] * z @ seeded(30, n, n).to(z) / n**0.5 - inputs)


def retrieval(z: Tensor, p: Tensor) -> Tensor:
    """A modern Hopfield network (Ramsauer et al. 2020) that completes a pattern."""
    patterns = seeded(31, 6, z.shape[-1]).to(z)
    return torch.softmax(p[0] * z @ patterns.mT, -1) @ patterns


def _zeros(rows: int, n: int) -> Tensor:
    return torch.zeros(rows, n, dtype=torch.float64)


def _even(n: int) -> Tensor:
    return torch.full((1, n), 1 / n, dtype=torch.float64)


LEARNING = (
    Problem("PageRank", "Brin and Page 1998", page_rank, _even(12), vector(0.85)),
    Problem("value iteration", "Bellman 1957", bellman, _zeros(1, 8), vector(0.9)),
    Problem("soft value iteration", "Ziebart 2008", soft_bellman, _zeros(1, 8), vector(0.9, 0.5)),
    Problem("ridge", "jaxopt", ridge, _zeros(1, 9), vector(0.1)),
    Problem("lasso", "jaxopt", lasso, _zeros(1, 9), vector(0.1)),
    Problem("elastic net", "jaxopt", elastic_net, _zeros(1, 9), vector(0.05, 0.2)),
    Problem("non-negative least squares", "jaxopt", nonnegative_least_squares, _zeros(1, 9), vector(0.0)),
    Problem("logistic regression", "jaxopt", logistic_regression, _zeros(1, 6), vector(0.05)),
    Problem("softmax regression", "jaxopt", softmax_regression, _zeros(1, 12), vector(0.1)),
    Problem("mirror descent", "jaxopt", mirror_descent, _even(8), vector(0.5)),
    Problem("support vectors", "jaxopt", support_vectors, _zeros(1, 12), vector(1)),
    Problem("Sinkhorn", "Cuturi 2013", sinkhorn, _zeros(1, 7), vector(0.3)),
    Problem("gradient descent in a valley", "optimistix", gradient_descent, row(-0.5, 0.5), vector(1, 10),
            answer=row(1, 1), unique=True),
    Problem("Beale", "optimistix", beale, row(2, 0.2), vector(1), answer=row(3, 0.5)),
    Problem("Himmelblau", "optimistix", himmelblau, row(2.5, 1.5), vector(11, 7), answer=row(3, 2)),
    Problem("mixture of two normals", "Dempster, Laird and Rubin 1977", mixture, row(0, -1, 1), vector(1)),
    Problem("tanh cell", "Bai, Kolter and Koltun 2019", tanh_cell, _zeros(3, 10), vector(0.9, 1)),
    Problem("post-norm cell", "Bai, Kolter and Koltun 2019", layer_norm_cell, _zeros(2, 10), vector(0.4, 1)),
    Problem("monotone cell", "Winston and Kolter 2020", monotone_cell, _zeros(2, 10), vector(1)),
    Problem("gated cell", "Li et al. 2016", gated_cell, _zeros(2, 10), vector(0.9, 0.8)),
    Problem("retrieval", "Ramsauer et al. 2020", retrieval, 0.5 * seeded(31, 6, 8)[:2], vector(1.5)),
)  # fmt: skip
