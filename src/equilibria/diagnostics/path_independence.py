"""Does the solution depend on where the solve starts? (Anil et al. 2022, arXiv:2211.09961)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from equilibria.ranges import whole
from equilibria.solvers import Map, Solver, State
from equilibria.solvers.residual import NOTHING, norm
from equilibria.solvers.state import Packing, leaves, rebuild


@dataclass(frozen=True)
class PathIndependence:
    """How far apart the solutions from several starts are, per group of the solver's scope.

    Attributes:
        distance: the largest distance between two of the solutions, over the largest of their norms; float32,
            `(*groups,)`. Of the order of the tolerance where the start does not matter.
        converged: whether the solves of that group all converged; if not, a distance says little.
    """

    distance: Tensor
    converged: Tensor


@torch.no_grad()
def path_independence(
    f: Map, z0: State, solver: Solver, starts: int = 4, scale: float = 1.0, seed: int = 0
) -> PathIndependence:
    """Solve `z = f(z)` from `z0` and from random states, and compare the solutions group by group.

    Args:
        f, z0: the map, and the start that the model uses.
        solver: how to solve, to a tolerance well below the distances of interest.
        starts: how many in all, `z0` included, at least 2.
        scale: standard deviation of the normal distribution of the other starts.
    """
    whole(2, starts=starts)
    generator = torch.Generator().manual_seed(seed)

    def random() -> State:
        # Drawn on the CPU, so that the starts are the same on every device.
        return rebuild(z0, (scale * torch.randn(x.shape, generator=generator).to(x) for x in leaves(z0)))

    packing = Packing.of(z0, solver.scope)
    results = [solver.solve(f, z0), *(solver.solve(f, random()) for _ in range(starts - 1))]
    solutions = [packing.pack(packing.unpack(result.value)) for result in results]
    size = torch.stack([norm(z) for z in solutions]).amax(dim=0)
    distances = [norm(a - b) for i, a in enumerate(solutions) for b in solutions[:i]]
    return PathIndependence(
        distance=(torch.stack(distances).amax(dim=0) / size.clamp(min=NOTHING)).float(),
        converged=torch.stack([result.converged for result in results]).all(dim=0),
    )
