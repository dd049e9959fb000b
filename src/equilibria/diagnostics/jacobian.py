"""The Jacobian of a map at a state: a penalty on its size and the radius of its spectrum."""

from __future__ import annotations

import torch
from torch import Tensor

from equilibria.solvers import Map, State
from equilibria.solvers.state import detach, leaves, rebuild


def jacobian_penalty(f: Map, z: State, probes: int = 1, generator: torch.Generator | None = None) -> Tensor:
    """Estimate `‖J‖²_F / n` at `z`, differentiable with respect to everything `f` closes over.

    Hutchinson's estimator with Gaussian probes, as a regulariser: Bai, Koltun and Kolter 2021, arXiv:2106.14342.
    `n` is the number of elements of the state, so the penalty is a mean gain per element.

    Args:
        f: the map; it must be twice differentiable (fused attention is not: use the math backend).
        z: the state; it is detached.
        probes: vectors averaged over, at least 1.
        generator: of the probes.
    """
    if probes < 1:
        raise ValueError(f"probes must be at least 1, found {probes}")
    with torch.enable_grad():
        point = rebuild(z, (leaf.detach().requires_grad_() for leaf in leaves(z)))
        inputs, outputs = list(leaves(point)), list(leaves(f(point)))
        total = torch.zeros((), device=inputs[0].device)
        for _ in range(probes):
            probe = [
                torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype, device=leaf.device) for leaf in outputs
            ]
            product = torch.autograd.grad(outputs, inputs, probe, create_graph=True, materialize_grads=True)
            total = total + sum(part.float().square().sum() for part in product)
    return total / (probes * sum(leaf.numel() for leaf in inputs))


def spectral_radius(f: Map, z: State, iterations: int = 40, seed: int = 0) -> float:
    """The largest modulus of an eigenvalue of the Jacobian of `f` at `z`, by Arnoldi iteration (Arnoldi 1951).

    Unlike power iteration it is right for complex leading pairs. Below 1, plain iteration converges from nearby.

    Args:
        f: the map.
        z: the state.
        iterations: size of the Krylov space; exact when it reaches the number of elements.
        seed: of the starting vector.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, found {iterations}")
    with torch.enable_grad():
        point = rebuild(detach(z), (leaf.detach().requires_grad_() for leaf in leaves(z)))
        inputs, outputs = list(leaves(point)), list(leaves(f(point)))

    def transposed(v: Tensor) -> Tensor:
        # The transposed Jacobian has the same spectrum and needs one backward pass per product.
        parts = v.split([leaf.numel() for leaf in outputs])
        probe = [part.reshape(leaf.shape).to(leaf.dtype) for part, leaf in zip(parts, outputs, strict=True)]
        product = torch.autograd.grad(outputs, inputs, probe, retain_graph=True, materialize_grads=True)
        return torch.cat([part.flatten().double() for part in product])

    size = sum(leaf.numel() for leaf in inputs)
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(size, generator=generator, dtype=torch.float64).to(inputs[0].device)
    basis = [v / torch.linalg.vector_norm(v)]
    hessenberg = torch.zeros(iterations + 1, iterations, dtype=torch.float64)
    used = 0
    for k in range(min(iterations, size)):
        w = transposed(basis[k])
        for _ in range(2):
            for j, direction in enumerate(basis):
                overlap = torch.dot(direction, w)
                hessenberg[j, k] += float(overlap)
                w = w - overlap * direction
        length = float(torch.linalg.vector_norm(w))
        hessenberg[k + 1, k] = length
        used = k + 1
        if length < 1e-12:
            break
        basis.append(w / length)
    return float(torch.linalg.eigvals(hessenberg[:used, :used]).abs().max())
