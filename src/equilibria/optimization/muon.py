"""Muon for CPUs: PyTorch's steps, but orthogonalised in float32 and through products of the smaller side.

PyTorch computes those products in bfloat16, which most laptop CPUs emulate: with AVX2 alone they take tens of times as
long as in float32, and longer than the rest of a step.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# Jordan et al. 2024: an odd polynomial that takes singular values of up to 1, five times over, to about 1.
LINEAR, CUBIC, QUINTIC = 3.4445, -4.7750, 2.0315
ITERATIONS = 5


class GramMuon(Optimizer):
    """Muon (Jordan et al. 2024) with Nesterov's momentum, steps as large as AdamW's (Liu et al. 2025,
    arXiv:2502.16982) and decoupled weight decay; see `orthogonalised`.

    Args:
        groups: of matrices with two dimensions, each group with what it has of its own.
        lr: learning rate.
        weight_decay: share of a matrix, times the rate, that a step takes from it.
        momentum: share of the old in the mean of gradients.

    Raises:
        ValueError: a parameter does not have two dimensions.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float = 1e-3, weight_decay: float = 0.1, momentum: float = 0.95
    ) -> None:
        super().__init__(list(groups), {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for matrix in (matrix for group in self.param_groups for matrix in group["params"]):
            if matrix.ndim != 2:
                raise ValueError(
                    f"Muon is for matrices of two dimensions, found a parameter of shape {tuple(matrix.shape)}; "
                    f"leave it to another optimizer"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore
        """Takes a step along the gradients, which `closure` may compute; returns its loss."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._move(matrix, group["lr"], group["weight_decay"], group["momentum"])
        return loss

    def _move(self, matrix: Tensor, rate: float, decay: float, momentum: float) -> None:
        state, gradient = self.state[matrix], matrix.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        mean = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        direction = _orthogonal(gradient.lerp(mean, momentum))
        matrix.mul_(1 - rate * decay).add_(direction, alpha=-0.2 * rate * math.sqrt(max(matrix.shape)))


def _orthogonal(matrix: Tensor) -> Tensor:
    """The orthogonalised matrix; a sharded one is gathered first."""
    if type(matrix) is Tensor:
        return orthogonalised(matrix)
    from torch.distributed.tensor import DTensor, distribute_tensor  # half a second, which every command would take

    if not isinstance(matrix, DTensor):
        return orthogonalised(matrix)
    # Every process has computed the same, so nothing is sent.
    return distribute_tensor(
        orthogonalised(matrix.full_tensor()), matrix.device_mesh, matrix.placements, src_data_rank=None
    )


def orthogonalised(matrix: Tensor) -> Tensor:
    """A matrix with its singular vectors and singular values of about 1 (0.7 to 1.2; those near 0 stay small).

    Five Newton-Schulz iterations `X <- (a + b X Xᵀ + c (X Xᵀ)²) X` of the matrix over its norm. Each multiplies `X`
    from the left by a polynomial of its Gram matrix, so that the Gram matrix alone is followed and `X` multiplied once,
    by the product of all (Gram Newton-Schulz: dao-lab.ai/blog/2026/gram-newton-schulz). Small negative eigenvalues,
    which rounding leaves and iterations enlarge 10,000 times, end that in half precision; in float32 they stay below
    0.01.

    Args:
        matrix: `(N, M)`.

    Returns:
        `(N, M)`, in the precision of the matrix.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    x_KM = (matrix if wide else matrix.T).to(torch.promote_types(matrix.dtype, torch.float32))
    x_KM = x_KM / x_KM.norm().clamp(min=1e-7)
    gram_KK = x_KM @ x_KM.T
    product_KK = factor_KK = _factor(gram_KK)
    for _ in range(ITERATIONS - 1):
        gram_KK = factor_KK @ gram_KK @ factor_KK
        factor_KK = _factor(gram_KK)
        product_KK = factor_KK @ product_KK
    x_KM = (product_KK @ x_KM).to(matrix.dtype)
    return x_KM if wide else x_KM.T


def _factor(gram_KK: Tensor) -> Tensor:
    factor_KK = torch.addmm(gram_KK, gram_KK, gram_KK, beta=CUBIC, alpha=QUINTIC)
    factor_KK.diagonal().add_(LINEAR)
    return factor_KK
