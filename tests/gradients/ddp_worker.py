"""One of two processes of a distributed test: `ddp_worker.py RANK STORE`. Fails where gradients are not the mean."""

import sys

import torch
import torch.distributed as dist
from torch import nn
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


class Model(nn.Module):
    """A layer whose output is a tensor."""

    def __init__(self, gradient: eq.Implicit | eq.Phantom | eq.JacobianFree) -> None:
        super().__init__()
        self.layer = eq.DEQ(Cell(), eq.Anderson(tol=1e-11, max_evaluations=200), gradient)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.zeros_like(x), x).value


def check(gradient: eq.Implicit | eq.Phantom | eq.JacobianFree, rank: int) -> None:
    """Two backward passes under DDP against the mean of both processes' gradients, computed here."""
    torch.manual_seed(0)
    model = Model(gradient)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    for share in x:
        model(share).square().sum().backward()
    expected = [0.5 * p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    wrapped = DistributedDataParallel(model)
    for _ in range(2):
        wrapped.zero_grad()
        wrapped(x[rank]).square().sum().backward()
        for parameter, mean in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, mean)


if __name__ == "__main__":
    rank = int(sys.argv[1])
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
    exact = eq.GMRES(tol=1e-12)
    for gradient in (eq.Implicit(exact), eq.Implicit(exact, higher_order=True), eq.Phantom(3), eq.JacobianFree()):
        check(gradient, rank)
    dist.destroy_process_group()
