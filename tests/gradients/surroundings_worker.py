"""One of two processes of a distributed test: `surroundings_worker.py RANK STORE`.

Fails where gradients under DDP with a static graph, or under FSDP2, are not the mean of both processes'.
"""

import sys
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import equilibria as eq


class Cell(nn.Module):
    """A contracting map."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4).double()
        nn.init.orthogonal_(self.linear.weight, gain=0.6)

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.linear(z) + x)


def layer() -> eq.DEQ:
    torch.manual_seed(0)
    return eq.DEQ(Cell(), eq.Anderson(tol=1e-11, max_evaluations=200), eq.Implicit(eq.GMRES(tol=1e-12)))


# The second process has an easy problem: its solves, forward and backward, end sooner.
INPUTS = torch.stack([torch.linspace(-1, 1, 12), torch.full((12,), 40.0)]).double().view(2, 3, 4)


def expected() -> list[torch.Tensor]:
    """The mean of both gradients, computed here."""
    alone = layer()
    for x in INPUTS:
        alone(torch.zeros_like(x), x).value.square().sum().backward()
    return [0.5 * parameter.grad for parameter in alone.parameters() if parameter.grad is not None]


def check(wrapped: nn.Module, rank: int) -> None:
    """Two backward passes; the report of the adjoint is that of the solution which the caller has."""
    for _ in range(2):
        wrapped.zero_grad()
        solution = wrapped(torch.zeros_like(INPUTS[rank]), INPUTS[rank])
        solution.value.square().sum().backward()
        assert solution.adjoint.status is eq.Status.CONVERGED
        counts = [torch.zeros(1, dtype=torch.long) for _ in range(2)]
        dist.all_gather(counts, torch.tensor([solution.evaluations]))
        assert counts[0] != counts[1]
        for parameter, mean in zip(wrapped.parameters(), expected(), strict=True):
            grad = parameter.grad
            torch.testing.assert_close(grad.full_tensor() if isinstance(grad, DTensor) else grad, mean)


if __name__ == "__main__":
    rank = int(sys.argv[1])
    dist.init_process_group(
        "gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    check(DistributedDataParallel(layer(), static_graph=True), rank)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    whole = layer()
    fully_shard(whole, mesh=mesh)
    check(whole, rank)
    inner = layer()
    fully_shard(inner.cell, mesh=mesh)
    with pytest.raises(RuntimeError, match=r"fully_shard\(deq\)"):
        inner(torch.zeros_like(INPUTS[rank]), INPUTS[rank])
    dist.destroy_process_group()
