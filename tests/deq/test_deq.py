"""The `DEQ` module: its arguments, its defaults, and a cell that is held still during a solve."""

from __future__ import annotations

import inspect
import re
import threading
import time
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import equilibria as eq
from equilibria.deq import held_cell
from problems import without_fixed_point

TIGHT = eq.Anderson(tol=1e-9, max_evaluations=200)
EXACT = eq.Implicit(eq.GMRES(tol=1e-10))
GRADIENTS = {
    "implicit": EXACT,
    "jacobian-free": eq.JacobianFree(),
    "phantom": eq.Phantom(steps=3),
    "checkpointed": eq.Phantom(steps=3, checkpoint=True),
    "switching": eq.Switching(otherwise=eq.Phantom(steps=3, checkpoint=True)),
    "unrolled": eq.Unrolled(steps=40),
    "unrolled-checkpointed": eq.Unrolled(steps=40, checkpoint=True),
}
GRADIENT = pytest.mark.parametrize("gradient", GRADIENTS.values(), ids=GRADIENTS)


class Cell(nn.Module):
    """`z ↦ (z + x) / 2`, and less where masked."""

    def forward(self, z: Tensor, x: Tensor, y: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        value = 0.5 * z + x + (0.0 if y is None else y)
        return value if mask is None else value * mask


class Growing(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return without_fixed_point(z)


class TestInputs:
    def test_several_and_by_name(self):
        layer, x = eq.DEQ(Cell(), TIGHT), torch.ones(2, 3)
        mask = torch.tensor([1.0, 0.0, 1.0])
        value = layer(torch.zeros(2, 3), x, 0.5 * x, mask=mask).value
        torch.testing.assert_close(value, 3.0 * mask.expand(2, 3))

    def test_gradients_reach_inputs_by_name(self):
        x, mask = torch.ones(2, 3, requires_grad=True), torch.ones(3, requires_grad=True)
        eq.DEQ(Cell(), TIGHT, EXACT)(torch.zeros(2, 3), x=x, mask=mask).value.sum().backward()
        torch.testing.assert_close(x.grad, torch.full((2, 3), 2.0))
        torch.testing.assert_close(mask.grad, torch.full((3,), 8.0))  # z = 1 m / (1 - m / 2), twice for two rows

    def test_without_a_start_it_is_zeros_like_the_first_input(self):
        layer, x = eq.DEQ(Cell(), TIGHT), torch.ones(2, 3)
        for solution in (layer(None, x), layer(x=x), layer(None, x=x), layer(x=x, iterates=[0])):
            torch.testing.assert_close(solution.value, 2.0 * x)
        assert not layer(x=x, iterates=[0]).iterates[0].any()

    def test_a_cell_knows_its_start_and_the_layer_knows_better(self):
        class Starting(Cell):
            def initial_state(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
                return 5.0 * x

        x = torch.ones(2, 3)
        assert eq.DEQ(Starting(), TIGHT)(None, x, iterates=[0]).iterates[0].eq(5.0).all()
        layer = eq.DEQ(Starting(), TIGHT, start=lambda x, mask=None: 7.0 * x)
        assert layer(None, x, mask=x, iterates=[0]).iterates[0].eq(7.0).all()
        assert layer(3.0 * x, x, iterates=[0]).iterates[0].eq(3.0).all()

    def test_no_start_to_be_had_is_an_error(self):
        with pytest.raises(ValueError, match="no input is a tensor"):
            eq.DEQ(Cell())()
        with pytest.raises(ValueError, match=r"torch\.int64, which is not a state"):
            eq.DEQ(Cell())(None, torch.ones(2, 3, dtype=torch.int64))

    @pytest.mark.parametrize(
        ("call", "named"),
        [
            (lambda layer, x: layer(x, x, x, x), "Cell: too many positional arguments; a DEQ is called as deq(z0"),
            (lambda layer, x: layer(x, x, max_iter=3), "Cell: got an unexpected keyword argument 'max_iter'; a DEQ"),
            (lambda layer, x: nn.Sequential(layer)(x), "Cell: missing a required argument: 'x'; a DEQ is called"),
        ],
    )
    def test_a_cell_that_cannot_be_called_so_says_how_a_layer_is_called(
        self, call: Callable[[eq.DEQ, Tensor], object], named: str
    ) -> None:
        with pytest.raises(TypeError, match=re.escape(named)):
            call(eq.DEQ(Cell()), torch.ones(2, 3))

    def test_an_error_of_the_cell_stays_its_own(self) -> None:
        class Broken(nn.Module):
            def forward(self, z: Tensor, x: Tensor) -> Tensor:
                raise TypeError("my own")

        with pytest.raises(TypeError, match=r"^my own$"):
            eq.DEQ(Broken())(None, torch.ones(2, 3))


class TestArguments:
    @pytest.mark.parametrize(
        ("option", "value", "message"),
        [
            ("solver", eq.Anderson, r"class Anderson; make one: Anderson\(\)"),
            ("solver", eq.Implicit(), r"Implicit is a gradient, not a solver; give it by name: gradient=Implicit\("),
            ("solver", "anderson", r"such as Anderson\(tol=1e-4\); found 'anderson'"),
            ("solver", eq.GMRES(), "GMRES solves affine equations"),
            ("solver", eq.GMRES, "GMRES solves affine equations"),
            ("gradient", eq.Implicit, r"class Implicit; make one: Implicit\(\)"),
            ("gradient", "implicit", "found 'implicit'"),
        ],
    )
    def test_what_is_not_an_object_is_named(self, option, value, message):
        with pytest.raises(TypeError, match=message):
            eq.DEQ(Cell(), **{option: value})
        with pytest.raises(TypeError, match=message):
            eq.fixed_point(torch.tanh, torch.ones(1, 1), **{option: value})

    def test_a_class_or_function_is_no_cell(self):
        with pytest.raises(TypeError, match=r"found the class Cell; make one: Cell\(\)"):
            eq.DEQ(Cell)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="fixed_point takes any function"):
            eq.DEQ(torch.tanh)  # type: ignore[arg-type]

    def test_a_reaction_is_checked_when_the_layer_is_made(self):
        with pytest.raises(ValueError, match="on_failure must be one of"):
            eq.DEQ(Cell(), on_failure="retry")  # type: ignore[arg-type]

    def test_iterates_may_come_from_a_generator(self):
        solution = eq.fixed_point(lambda z: 0.5 * z + 1, torch.zeros(1, 2), iterates=(k for k in (1, 2)))
        assert list(solution.iterates) == [1, 2]

    def test_repr_shows_solver_and_gradient(self):
        shown = repr(eq.DEQ(Cell(), eq.Picard(tol=1e-5), eq.Phantom(steps=2), eq.Broyden(), "raise"))
        for part in ("Picard(tol=1e-05", "Phantom(steps=2", "eval_solver=Broyden(", "on_failure='raise'", "Cell()"):
            assert part in shown


class TestFailures:
    def test_training_warns_once_at_the_users_line_and_counts(self):
        layer = nn.Sequential(eq.DEQ(Growing()))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            line = inspect.currentframe().f_lineno + 1  # type: ignore[union-attr]
            layer(torch.zeros(2, 2))
            layer(torch.zeros(2, 2))
        assert [type(w.message) for w in caught] == [eq.ConvergenceWarning]
        assert (caught[0].filename, caught[0].lineno) == (__file__, line)
        deq = layer[0]
        assert isinstance(deq, eq.DEQ)
        assert deq.failures == 2
        assert not deq.state_dict()

    @pytest.mark.parametrize("reaction", ["raise", "warn", "ignore", None])
    def test_every_failure_counts_whatever_is_done_about_it(self, reaction):
        short = eq.Implicit(eq.GMRES(tol=1e-12, max_evaluations=3))
        torch.manual_seed(0)
        layer = eq.DEQ(nn.Linear(8, 8), gradient=short, on_failure=reaction)
        raised = 0
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for budget in (200, 1):  # the adjoint fails, then the solve and the adjoint
                try:
                    layer(torch.zeros(2, 8), max_evaluations=budget).value.sum().backward()
                except eq.ConvergenceError:
                    raised += 1
        expected = {"raise": (2, 2, 0), "warn": (3, 0, 3), "ignore": (3, 0, 0), None: (3, 0, 1)}
        assert (layer.failures, raised, len(caught)) == expected[reaction]

    def test_evaluation_warns_each_time_and_does_not_count(self):
        layer = eq.DEQ(Growing()).eval()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                layer(torch.zeros(2, 2))
        assert len(caught) == 3
        assert layer.failures == 0

    @pytest.mark.parametrize("training", [True, False])
    def test_what_is_asked_for_is_done_each_time(self, training):
        for _ in range(2):
            with pytest.raises(eq.ConvergenceError):
                eq.DEQ(Growing(), on_failure="raise").train(training)(torch.zeros(2, 2))
        layer = eq.DEQ(Growing(), on_failure="warn").train(training)
        for _ in range(2):
            with pytest.warns(eq.ConvergenceWarning):
                layer(torch.zeros(2, 2))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            eq.DEQ(Growing(), on_failure="ignore").train(training)(torch.zeros(2, 2))

    def test_a_bare_warning_points_at_its_caller(self):
        with pytest.warns(eq.ConvergenceWarning) as caught:
            eq.fixed_point(without_fixed_point, torch.zeros(2, 2), on_failure="warn")
        assert caught[0].filename == __file__


class Normed(nn.Module):
    """A linear map with a norm of its weight, and what else a test asks for."""

    def __init__(self, linear: nn.Module, *rest: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(linear, *rest).double()

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return 0.7 * torch.tanh(self.body(z)) + x


def spectral(kind: str) -> nn.Module:
    linear = nn.Linear(4, 4).double()
    return {"new": parametrizations.spectral_norm, "old": nn.utils.spectral_norm}[kind](linear)


def x() -> Tensor:
    torch.manual_seed(5)
    return torch.randn(6, 4, dtype=torch.float64)


class TestHeldStill:
    @pytest.mark.parametrize("kind", ["new", "old"])
    @GRADIENT
    def test_power_iteration_goes_on_by_one_step_a_solve(self, kind, gradient):
        torch.manual_seed(0)
        cell, twin = Normed(spectral(kind)), Normed(spectral(kind))
        twin.load_state_dict(cell.state_dict())
        layer = eq.DEQ(cell, TIGHT, gradient, on_failure="raise")
        for _ in range(3):
            layer(x(), x()).value.sum().backward()
            twin(x(), x())
        for (name, own), other in zip(cell.named_buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(own, other, msg=name)
        assert len(list(cell.buffers())) == 2

    @pytest.mark.parametrize("kind", ["new", "old"])
    @GRADIENT
    def test_the_gradient_is_that_of_the_map_as_it_stood(self, kind, gradient):
        torch.manual_seed(0)
        cell, twin = Normed(spectral(kind)), Normed(spectral(kind))
        twin.load_state_dict(cell.state_dict())
        eq.DEQ(cell, TIGHT, gradient)(x(), x()).value.square().sum().backward()
        twin(x(), x())  # the one step of the solve
        twin.eval()
        if kind == "old":
            twin(x(), x())
        eq.DEQ(twin, TIGHT, gradient)(x(), x()).value.square().sum().backward()
        own = {name: parameter.grad for name, parameter in cell.named_parameters()}
        other = {name: parameter.grad for name, parameter in twin.named_parameters()}
        assert all(gradient is not None and bool(gradient.any()) for gradient in own.values())
        torch.testing.assert_close(own, other)

    def test_weights_are_computed_once(self):
        class Halved(nn.Module):
            calls = 0

            def forward(self, weight: Tensor) -> Tensor:
                Halved.calls += 1
                return 0.5 * weight

        linear = nn.Linear(4, 4).double()
        parametrize.register_parametrization(linear, "weight", Halved(), unsafe=True)
        Halved.calls = 0
        solution = eq.DEQ(Normed(linear), TIGHT, EXACT)(x(), x())
        assert solution.evaluations > 3
        solution.value.sum().backward()
        assert Halved.calls == 1
        assert linear.parametrizations.weight.original.grad.any()  # type: ignore[union-attr]

    def test_weights_in_a_draft_are_not_of_its_precision(self):
        linear = parametrizations.orthogonal(nn.Linear(4, 4))
        cell = nn.Sequential(linear, nn.Tanh(), nn.Linear(4, 4))
        with torch.no_grad():
            cell[2].weight.mul_(0.5)  # type: ignore[operator, union-attr]
        layer = eq.DEQ(cell, eq.Anderson(tol=1e-5, draft=eq.Draft(tol=2e-2)))
        assert layer(torch.zeros(2, 4)).value.dtype == torch.float32

    @GRADIENT
    def test_batch_statistics_are_those_of_one_evaluation_at_the_solution(self, gradient):
        torch.manual_seed(0)
        norm = nn.BatchNorm1d(4)
        cell = Normed(nn.Linear(4, 4), norm)
        layer = eq.DEQ(cell, TIGHT, gradient, on_failure="ignore")
        for number in (1, 2):
            before = norm.running_mean.clone()  # type: ignore[union-attr]
            solution = layer(x(), x())
            solution.value.sum().backward()
            assert norm.num_batches_tracked == number
            mean = cell.body[0](solution.value.detach()).mean(0)
            expected = 0.9 * before + 0.1 * mean
            torch.testing.assert_close(norm.running_mean, expected.detach(), rtol=1e-5, atol=1e-5)

    def test_a_shared_cell_is_updated_once_by_each_of_its_solves(self):
        torch.manual_seed(0)
        norm = nn.BatchNorm1d(4)
        layer = eq.DEQ(Normed(nn.Linear(4, 4), norm), TIGHT, GRADIENTS["checkpointed"], on_failure="ignore")
        first = layer(x(), x()).value
        second = layer(first, first.tanh()).value
        kept = norm.running_mean.clone()  # type: ignore[union-attr]
        second.sum().backward()
        assert norm.num_batches_tracked == 2
        assert torch.equal(kept, norm.running_mean)  # type: ignore[arg-type]

    def test_a_layer_in_evaluation_updates_nothing_and_may_go_back_to_training(self):
        norm = nn.BatchNorm1d(4)
        layer = eq.DEQ(Normed(nn.Linear(4, 4), norm), TIGHT, on_failure="ignore")
        for training, expected in ((False, 0), (True, 1), (False, 1), (True, 2)):
            layer.train(training)(x(), x())
            assert norm.num_batches_tracked == expected

    def test_a_module_frozen_or_thawed_later_is_still_updated_once(self):
        norm = nn.BatchNorm1d(4)
        layer = eq.DEQ(Normed(nn.Linear(4, 4), norm), TIGHT, on_failure="ignore")
        norm.eval()
        layer(x(), x())
        norm.train()
        for number in (1, 2):
            layer(x(), x())
            assert norm.num_batches_tracked == number

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_without_gradients_it_is_the_same(self, mode):
        torch.manual_seed(0)
        norm, twin = nn.BatchNorm1d(4).double(), nn.BatchNorm1d(4).double()
        linear = nn.Linear(4, 4).double()
        layer = eq.DEQ(Normed(linear, norm), TIGHT, EXACT, on_failure="ignore")
        other = eq.DEQ(Normed(linear, twin), TIGHT, EXACT, on_failure="ignore")
        with mode():
            value = layer(x(), x()).value
        torch.testing.assert_close(value, other(x(), x()).value.detach())
        assert norm.num_batches_tracked == twin.num_batches_tracked == 1
        torch.testing.assert_close(norm.running_mean, twin.running_mean)

    def test_dropout_in_the_cell_converges(self):
        torch.manual_seed(0)
        solution = eq.DEQ(Normed(nn.Linear(4, 4), nn.Dropout(0.5)), TIGHT, EXACT, on_failure="raise")(x(), x())
        solution.value.sum().backward()
        assert solution.status is eq.Status.CONVERGED

    def test_caches_are_given_back_where_a_solve_fails(self):
        layer = eq.DEQ(Normed(spectral("new"), nn.Linear(4, 5)), TIGHT)
        with pytest.raises(RuntimeError):
            layer(x(), x())
        assert parametrize._cache_enabled == 0


def test_training_beside_an_evaluation_in_another_thread_keeps_its_gradient():
    """PyTorch keeps parametrized weights in one place for all threads; the other one's have no graph."""
    inside = threading.Event()

    class Waiting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.utils.parametrizations.orthogonal(nn.Linear(3, 3))

        def forward(self, z, x):
            if threading.current_thread() is not threading.main_thread() and not inside.is_set():
                inside.set()
                time.sleep(0.3)
            return torch.tanh(0.8 * self.layer(z) + x)

    layer, x = eq.DEQ(Waiting()), torch.randn(2, 3)

    def gradient():
        layer.zero_grad()
        layer(None, x).value.sum().backward()
        weight = layer.get_parameter("cell.layer.parametrizations.weight.original")
        assert weight.grad is not None
        return weight.grad.clone()

    def evaluate():
        with torch.no_grad():
            layer(None, x)

    alone = gradient()
    other = threading.Thread(target=evaluate)
    other.start()
    inside.wait()
    beside = gradient()
    other.join()
    torch.testing.assert_close(beside, alone)


def test_weights_are_computed_anew_though_another_layer_is_being_solved():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))

        def forward(self, z, x):
            found.append(inner(None, x).value.detach())
            with torch.no_grad():
                size.mul_(0.5)
            return 0.5 * torch.tanh(self.layer(z)) + x

    found: list[torch.Tensor] = []
    inner = eq.DEQ(Weighted())
    size = inner.get_parameter("cell.layer.parametrizations.weight.original0")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        eq.DEQ(Outer(), eq.Picard(max_evaluations=3))(None, torch.ones(1, 3))
    assert not torch.allclose(found[0], found[1])


class Weighted(nn.Module):
    """With a weight that is computed from its direction and size."""

    def __init__(self):
        super().__init__()
        self.layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))

    def forward(self, z, x):
        return torch.tanh(0.8 * self.layer(z) + x)


def test_a_batch_norm_that_is_thawed_later_remembers_the_solution():
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, z, x):
            return 0.2 * self.norm(z) + x

    cell, x = Normalised(), 2 + torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    layer = eq.DEQ(cell, eq.Picard(tol=1e-6, max_evaluations=100, scope="all"))
    cell.eval()
    layer(None, x)
    cell.train()
    solution = layer(None, x)
    assert cell.norm.running_mean is not None
    torch.testing.assert_close(cell.norm.running_mean, 0.1 * solution.value.mean(0), rtol=1e-4, atol=1e-4)


def test_a_solve_that_cannot_begin_keeps_no_other_thread_waiting(monkeypatch: pytest.MonkeyPatch):
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = parametrizations.spectral_norm(nn.Linear(3, 3))

        def forward(self, z, x):
            return 0.5 * torch.tanh(self.layer(z)) + x

    def fail(*_: object) -> None:
        raise MemoryError

    layer, x = eq.DEQ(Spectral()), torch.ones(1, 3)
    with monkeypatch.context() as patch:
        patch.setattr(held_cell, "_Buffers", fail)
        with pytest.raises(MemoryError) as kept:  # with its frames, as a debugger or a log keeps it
            layer(None, x)
    assert not parametrize._cache
    other = threading.Thread(target=lambda: layer(None, x), daemon=True)
    other.start()
    other.join(60)
    assert not other.is_alive()
    assert kept.tb is not None
