"""What PyTorch puts around a layer: compilers, hooks, checkpoints, other processes, long graphs; and complex states."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

import equilibria as eq
from equilibria.gradients import history


class Cell(nn.Module):
    """A contracting map that counts its evaluations."""

    def __init__(self):
        super().__init__()
        self.linear, self.evaluations = nn.Linear(4, 4).double(), 0
        nn.init.orthogonal_(self.linear.weight, gain=0.6)

    def forward(self, z, x):
        self.evaluations += 1
        return torch.tanh(self.linear(z) + x)


class Still(nn.Module):
    """A map of its state alone."""

    def forward(self, z):
        return 0.5 * z


class Curved(nn.Module):
    """`tanh(W z / 2) + x`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(3, 3).double()

    def forward(self, z, x):
        return torch.tanh(0.5 * self.layer(z)) + x


class Model(nn.Module):
    """A layer between others."""

    def __init__(self, wrap=lambda cell: cell):
        super().__init__()
        torch.manual_seed(0)
        self.before = nn.Linear(4, 4).double()
        self.layer = eq.DEQ(wrap(Cell()), eq.Anderson(tol=1e-10))

    def forward(self, x):
        x = self.before(x)
        return self.layer(torch.zeros_like(x), x).value.square().sum()


# The compiler looks at the gradient of whatever a resumed function is given.
COMPILED = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")

X = torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4)


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()))


@COMPILED
def test_torch_compile_of_a_model_leaves_the_solve_outside():
    graphs = []

    def backend(graph, _):
        graphs.append({node.name for node in graph.graph.nodes})
        return graph.forward

    model = Model()
    expected, loss = gradients(model, model(X)), torch.compile(model, backend=backend)(X)
    torch.testing.assert_close(gradients(model, loss), expected)
    assert graphs
    assert not any("tanh" in name for names in graphs for name in names)


@COMPILED
def test_torch_compile_of_a_model_whose_cell_is_compiled():
    graphs = []

    def backend(graph, _):
        graphs.append({node.name for node in graph.graph.nodes})
        return graph.forward

    plain, model = Model(), Model(lambda cell: torch.compile(cell, backend=backend))
    loss = torch.compile(model, backend=backend)(X)
    torch.testing.assert_close(gradients(model, loss), gradients(plain, plain(X)))
    assert any("tanh" in name for names in graphs for name in names)


@COMPILED
def test_torch_compile_of_a_function_that_solves():
    cell = Cell()

    def loss(x):
        return eq.fixed_point(lambda z: cell(z, x), torch.zeros_like(x), eq.Anderson(tol=1e-10)).value.sum()

    expected = gradients(cell, loss(X))
    torch.testing.assert_close(gradients(cell, torch.compile(loss, backend="eager")(X)), expected)


def test_full_backward_hooks_of_a_layer_fire():
    layer, seen = Model().layer, []
    layer.register_full_backward_pre_hook(lambda module, outgoing: seen.append(outgoing))
    layer.register_full_backward_hook(lambda module, incoming, outgoing: seen.append((incoming, outgoing)))
    x = X.clone().requires_grad_()
    value = layer(torch.zeros_like(x), x).value
    value.square().sum().backward()
    (before,), (incoming, outgoing) = seen
    torch.testing.assert_close(before, 2 * value.detach())
    torch.testing.assert_close(outgoing, (2 * value.detach(),))
    assert len(incoming) == 2
    torch.testing.assert_close(incoming[1], x.grad)


def test_a_backward_hook_may_change_the_gradient():
    layer = Model().layer
    x = X.clone().requires_grad_()
    (plain,) = torch.autograd.grad(layer(torch.zeros_like(x), x).value.sum(), x)
    layer.register_full_backward_hook(lambda module, incoming, outgoing: (incoming[0], 3 * incoming[1]))
    (changed,) = torch.autograd.grad(layer(torch.zeros_like(x), x).value.sum(), x)
    torch.testing.assert_close(changed, 3 * plain)


def test_checkpoint_of_a_layer():
    layer = Model().layer
    x = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(layer(torch.zeros_like(x), x).value.sum(), x)
    layer.cell.evaluations = 0  # pyright: ignore[reportArgumentType]
    layer(torch.zeros_like(x), x)
    once = layer.cell.evaluations
    layer.cell.evaluations = 0  # pyright: ignore[reportArgumentType]
    solution = checkpoint(layer, torch.zeros_like(x), x, use_reentrant=False)
    (found,) = torch.autograd.grad(solution.value.sum(), x)
    torch.testing.assert_close(found, expected)
    assert layer.cell.evaluations <= 2 * once  # and not once more for each product of the adjoint
    value = checkpoint(lambda x: layer(torch.zeros_like(x), x).value, x, use_reentrant=True)
    value.sum().backward()
    torch.testing.assert_close(x.grad, expected)


def test_a_reentrant_checkpoint_of_a_layer_says_what_to_do():
    layer = Model().layer
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        checkpoint(layer, torch.zeros_like(X), X.clone().requires_grad_(), use_reentrant=True)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        checkpoint(nn.Sequential(eq.DEQ(Still())), X.clone().requires_grad_(), use_reentrant=True)


def test_a_solution_is_a_pytree_whose_report_stays():
    x = X.clone().requires_grad_()
    solution = Model().layer(torch.zeros_like(x), x)
    tensors, structure = tree_flatten(solution)
    again = tree_unflatten([part * 2 if isinstance(part, torch.Tensor) else part for part in tensors], structure)
    assert again.adjoint is solution.adjoint
    assert (again.status, again.evaluations, again.trace) == (solution.status, solution.evaluations, solution.trace)
    again.value.sum().backward()
    assert solution.adjoint.status is eq.Status.CONVERGED


def test_static_graphs_of_ddp_and_fsdp2(tmp_path: Path):
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"}
    worker = [sys.executable, str(Path(__file__).with_name("surroundings_worker.py"))]
    processes = [
        subprocess.Popen([*worker, str(rank), str(tmp_path / "store")], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors.decode()
    finally:
        for process in processes:
            process.kill()


def chain(length: int, gradient) -> tuple[torch.Tensor, torch.Tensor]:
    """So many steps of implicit Euler in one graph: the last value, and what it depends on."""
    rate, z = torch.tensor(0.3, dtype=torch.float64, requires_grad=True), torch.ones(1, 1, dtype=torch.float64)
    for _ in range(length):
        before = z

        def step(u, before=before):
            return before - 0.01 * rate * u

        z = eq.fixed_point(step, before.detach(), eq.Picard(tol=1e-12), gradient).value
    return z, rate


def test_products_do_not_walk_the_solves_before(monkeypatch):
    # What autograd leaves out is below every input in topological number, so the histories that are long are cut off.
    monkeypatch.setattr(history, "LONG", 20)
    monkeypatch.setattr("equilibria.gradients.adjoint.LONG", 20)
    raised = []
    above = history.above
    monkeypatch.setattr(
        "equilibria.gradients.adjoint.above", lambda leaf, length: raised.append(length) or above(leaf, length)
    )
    z, rate = chain(30, eq.Implicit(eq.GMRES(tol=1e-12)))
    (found,) = torch.autograd.grad(z.sum(), rate)
    expected = -30 * 0.01 * (1 + 0.01 * 0.3) ** -31
    assert found.item() == pytest.approx(expected, rel=1e-8)
    # The chain grows with the history, step by step, and no faster than by a few nodes each.
    assert len(raised) > 20
    assert raised == sorted(raised)
    assert raised[-1] < 30 * 40


@pytest.mark.parametrize("solver", [eq.Picard(), eq.Anderson(), eq.Broyden(), eq.NewtonKrylov()], ids=str)
@pytest.mark.parametrize("higher_order", [False, True])
def test_a_complex_state_is_a_pair_of_reals(solver, higher_order):
    torch.manual_seed(0)
    weight = (0.2 * torch.randn(3, 3, dtype=torch.complex128)).requires_grad_()
    x = torch.randn(2, 3, dtype=torch.complex128)

    def loss(gradient):
        solution = eq.fixed_point(
            lambda z: 0.5 * torch.tanh(z.conj() @ weight + x), torch.zeros_like(x), solver, gradient, tol=1e-11
        )
        return (solution.value.abs() ** 2 + solution.value.imag).sum()

    exact = eq.Implicit(eq.GMRES(tol=1e-11), higher_order=higher_order)
    found, expected = (torch.autograd.grad(loss(gradient), weight) for gradient in (exact, eq.Unrolled(60)))
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-8)


def test_a_complex_value_of_a_real_state_says_so():
    with pytest.raises(ValueError, match="complex"):
        eq.fixed_point(lambda z: 1j * z, torch.zeros(2, 3))


EVERY_WAY = [
    *(eq.Guarded(), eq.Implicit(), eq.Implicit(higher_order=True), eq.Neumann(), eq.Switching(), eq.JacobianFree()),
    *(eq.Phantom(), eq.Phantom(checkpoint=True), eq.Unrolled(20), eq.Unrolled(20, checkpoint=True), eq.Reversible(20)),
]


@pytest.mark.parametrize("gradient", EVERY_WAY, ids=lambda way: type(way).__name__)
@pytest.mark.parametrize("early", [True, False], ids=["early-stop", "whole"])
def test_what_follows_a_solve_inside_a_checkpoint_keeps_its_gradient(gradient, early):
    torch.manual_seed(0)
    head = nn.Linear(3, 3).double()
    layer = eq.DEQ(Curved(), gradient=gradient)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def block(x):
        return head(torch.relu(head(layer(None, torch.tanh(head(x))).value)))

    def gradients(y):
        return torch.autograd.grad(y.square().sum(), [x, *head.parameters()])

    with set_checkpoint_early_stop(early):
        found = gradients(checkpoint(block, x, use_reentrant=False))
    for one, other in zip(gradients(block(x)), found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("gradient", EVERY_WAY, ids=lambda way: type(way).__name__)
def test_a_solve_inside_a_map_that_is_evaluated_again_keeps_its_gradient(gradient):
    """Evaluations that are made again contain solves: those of checkpointed gradients, and of reversible ones."""
    inner = eq.DEQ(Curved(), eq.Picard(tol=1e-12, max_evaluations=200), gradient, on_failure="ignore")
    x = torch.full((2, 3), 0.3, dtype=torch.float64, requires_grad=True)

    def found(outer):
        solution = eq.fixed_point(
            lambda z: 0.5 * torch.sin(2 * inner(None, x + 0.2 * z).value),
            torch.zeros_like(x),
            eq.Picard(tol=1e-12, max_evaluations=100),
            outer,
            on_failure="ignore",
        )
        return torch.autograd.grad(solution.value.sum(), x)[0]

    torch.testing.assert_close(found(eq.Unrolled(20, checkpoint=True)), found(eq.Unrolled(20)))
    torch.testing.assert_close(found(eq.Phantom(20, checkpoint=True)), found(eq.Phantom(20)))
    torch.testing.assert_close(found(eq.Reversible(60)), found(eq.Unrolled(60)), rtol=1e-5, atol=1e-6)


def test_a_reversible_solve_of_complex_states():
    torch.manual_seed(0)
    weight = (0.2 * torch.randn(3, 3, dtype=torch.complex128)).requires_grad_()
    x = torch.randn(2, 3, dtype=torch.complex128)
    found = []
    for gradient in (eq.Reversible(60), eq.Unrolled(60)):
        solution = eq.fixed_point(
            lambda z: {"z": torch.tanh(z["z"] @ weight) + x, "r": 0.5 * z["r"] + z["z"].real.sum(-1)},
            {"z": torch.zeros_like(x), "r": torch.zeros(2, dtype=torch.float64)},
            eq.Picard(tol=1e-9, max_evaluations=100),
            gradient,
            iterates=[3],
        )
        assert solution.iterates[3]["z"].is_complex()
        loss = solution.value["z"].abs().square().sum() + solution.value["r"].sum()
        found.append((solution.value["z"].detach(), torch.autograd.grad(loss, weight)[0]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("gradient", EVERY_WAY, ids=lambda way: type(way).__name__)
def test_a_state_keeps_its_dtype_whatever_the_map_computes_in(gradient):
    layer = nn.Linear(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        solution = eq.fixed_point(lambda z: layer(torch.tanh(z)) * 0.5, torch.zeros(2, 4), None, gradient, "ignore")
    assert solution.value.dtype == torch.float32
