"""`torch.func` around a fixed point: the derivatives of sixty plain evaluations, or a sentence."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, grad_and_value, hessian, jacfwd, jacrev, jvp, vjp, vmap

import equilibria as eq
from equilibria.gradients import Gradient
from equilibria.solvers import Solver

# torch warns of itself when it first loads its forward-mode decompositions.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

torch.manual_seed(0)
W, X = 0.1 * torch.randn(3, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
WS, XS = torch.stack([W, 2 * W, 3 * W]), torch.stack([X, X + 1, X - 1])
START = torch.zeros(2, 3, dtype=torch.float64)
EXACT = eq.Implicit(eq.GMRES(tol=1e-10))


def unrolled(weight, x):
    z = START
    for _ in range(60):
        z = torch.tanh(z @ weight + x)
    return z


def solved(solver: Solver = eq.Anderson(tol=1e-10), gradient: Gradient = EXACT):  # noqa: B008 - frozen
    def solve(weight, x):
        return eq.fixed_point(lambda z: torch.tanh(z @ weight + x), START, solver, gradient).value

    return solve


def squares(solve):
    return lambda weight, x: solve(weight, x).square().sum()


def backward_of_vmap(solve):
    weights = WS.clone().requires_grad_()
    vmap(solve)(weights, XS).square().sum().backward()
    return weights.grad


FORWARD = {
    "jvp": lambda solve: jvp(lambda w: solve(w, X), (W,), (W,))[1],
    "jacfwd": lambda solve: jacfwd(solve)(W, X),
    "jvp of vmap": lambda solve: jvp(lambda w: vmap(solve)(w, XS), (WS,), (WS,))[1],
    "vmap of jvp": lambda solve: vmap(lambda w: jvp(lambda w: solve(w, X), (w,), (w,))[1])(WS),
}
REVERSE = {
    "grad": lambda solve: grad(squares(solve))(W, X),
    "grad_and_value": lambda solve: grad_and_value(squares(solve))(W, X),
    "vjp": lambda solve: vjp(solve, W, X)[1](torch.ones_like(X)),
    "jacrev": lambda solve: jacrev(solve, argnums=(0, 1))(W, X),
}
MAPPED = {
    "vmap": lambda solve: vmap(solve)(WS, XS),
    "vmap of one input, to the end": lambda solve: vmap(solve, (0, None), 1)(WS, X),
    "vmap of vmap": lambda solve: vmap(lambda w: vmap(lambda x: solve(w, x))(XS))(WS),
    "vmap of grad": lambda solve: vmap(grad(squares(solve)))(WS, XS),
    "vmap of jacrev": lambda solve: vmap(jacrev(solve))(WS, XS),
    "grad of vmap": lambda solve: grad(lambda w: vmap(solve)(w, XS).square().sum())(WS),
    "backward of vmap": backward_of_vmap,
}


@pytest.mark.parametrize("transform", [*FORWARD, *REVERSE, *MAPPED])
@pytest.mark.parametrize("solver", [eq.Anderson(tol=1e-10), eq.Broyden(tol=1e-10)], ids=["anderson", "broyden"])
def test_transform(transform, solver):
    take = {**FORWARD, **REVERSE, **MAPPED}[transform]
    torch.testing.assert_close(take(solved(solver)), take(unrolled), atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("transform", [*REVERSE, *MAPPED])
@pytest.mark.parametrize("gradient", [eq.Phantom(60), eq.Unrolled(60), eq.Guarded(eq.GMRES(tol=1e-10))], ids=str)
def test_transform_of_other_gradients(transform, gradient):
    take = {**REVERSE, **MAPPED}[transform]
    torch.testing.assert_close(take(solved(gradient=gradient)), take(unrolled), atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("transform", [*REVERSE, "jvp", "jacfwd"])
def test_newton_krylov_under_transforms_that_do_not_map_the_solve(transform):
    take = {**FORWARD, **REVERSE}[transform]
    torch.testing.assert_close(take(solved(eq.NewtonKrylov(tol=1e-10))), take(unrolled), atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("transform", MAPPED)
def test_newton_krylov_takes_differences_where_the_solve_is_mapped(transform):
    take = MAPPED[transform]
    torch.testing.assert_close(take(solved(eq.NewtonKrylov(tol=1e-9))), take(unrolled), atol=1e-7, rtol=1e-6)


def test_gradients_per_sample_of_a_layer():
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3).double()

        def forward(self, z, x):
            return torch.tanh(0.3 * self.linear(z) + x)

    layer = eq.DEQ(Cell(), eq.Anderson(tol=1e-10), EXACT)
    parameters = {name: part.detach() for name, part in layer.named_parameters()}

    def loss(parameters, x):
        return functional_call(layer, parameters, (torch.zeros(1, 3).double(), x[None])).value.square().sum()

    together = vmap(grad(loss), (None, 0))(parameters, X)
    for row, x in enumerate(X):
        layer.zero_grad()
        layer(torch.zeros(1, 3).double(), x[None]).value.square().sum().backward()
        for name, part in layer.named_parameters():
            torch.testing.assert_close(together[name][row], part.grad)


def test_a_solution_comes_out_of_vmap():
    solution = vmap(lambda x: eq.fixed_point(lambda z: 0.5 * z + x, START, eq.Picard(tol=1e-6)))(XS)
    torch.testing.assert_close(solution.value, 2 * XS, rtol=1e-5, atol=0.0)
    assert solution.residual.shape == solution.converged.shape == (3, 2)
    assert solution.status is eq.Status.CONVERGED


def test_a_failure_in_vmap_is_raised():
    with pytest.raises(eq.ConvergenceError, match="of 6 groups"):
        vmap(lambda x: eq.fixed_point(lambda z: z + x, START, eq.Picard(max_evaluations=5)).value)(XS)
    with pytest.raises(eq.ConvergenceError, match="of 6 groups"):
        vmap(grad(lambda x: eq.fixed_point(lambda z: z + x, START, eq.Picard(max_evaluations=5)).value.sum()))(XS)


REFUSED = {
    "grad of grad": (lambda solve: grad(lambda w: grad(squares(solve))(w, X).sum())(W), r"higher_order=True"),
    "hessian": (lambda solve: hessian(squares(solve))(W, X), r"create_graph=True"),
    "jacrev of jacfwd": (lambda solve: jacrev(jacfwd(solve))(W, X), r"create_graph=True"),
    "vectorize": (
        lambda solve: torch.autograd.functional.jacobian(lambda w: solve(w, X), W, vectorize=True),
        r"torch\.func\.jacrev",
    ),
}


@pytest.mark.parametrize("gradient", [eq.Implicit(), eq.Guarded(), eq.Unrolled(3), eq.Phantom(3)], ids=str)
def test_a_failure_under_mapped_gradients_is_raised(gradient):
    with pytest.raises(eq.ConvergenceError):
        MAPPED["vmap of grad"](solved(eq.Picard(tol=1e-12, max_evaluations=3), gradient))


@pytest.mark.parametrize("transform", REFUSED)
def test_what_cannot_be_right_says_what_to_take(transform):
    take, message = REFUSED[transform]
    with pytest.raises((RuntimeError, NotImplementedError), match=message):
        take(solved())


@pytest.mark.parametrize(
    ("solver", "gradient", "take", "message"),
    [
        (eq.NewtonKrylov(products="exact"), EXACT, MAPPED["vmap"], "Anderson, Broyden or Picard"),
        (eq.Broyden(), eq.ReuseInverse(), REVERSE["grad"], r"take Implicit\(\)"),
        (eq.Anderson(), eq.Implicit(higher_order=True), REVERSE["grad"], "create_graph=True"),
    ],
)
def test_parts_that_no_transform_reaches_say_so(solver, gradient, take, message):
    with pytest.raises((RuntimeError, NotImplementedError), match=message):
        take(solved(solver, gradient))


def test_a_map_with_a_long_history_is_differentiated_too():
    def loss(x):
        for _ in range(700):
            x = x * 1.0
        return eq.fixed_point(lambda z: torch.tanh(z @ W + x), START, eq.Anderson(tol=1e-10), EXACT).value.sum()

    expected = grad(lambda x: unrolled(W, x).sum())(X)
    torch.testing.assert_close(grad(loss)(X), expected)
    inputs = X.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(loss(inputs), inputs)[0], expected)  # nothing is left behind


def test_what_a_transform_costs_is_in_the_trace_too():
    def solve(x):
        solution = eq.fixed_point(lambda z: torch.tanh(z @ W + x), START, eq.Anderson(trace_groups=True))
        assert solution.group_trace is not None
        assert len(solution.trace) == solution.evaluations == len(solution.group_trace)
        return solution.value

    vmap(solve)(XS)
    vmap(grad(lambda x: solve(x).sum()))(XS)
    grad(lambda x: vmap(solve)(x).sum())(XS)
