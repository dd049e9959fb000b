"""Options every solver has: criterion, synchronisation, kept iterates, traces; and the line search."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from equilibria.solvers import GMRES, Anderson, Broyden, NewtonKrylov, Picard, Solver, Status
from problems import affine, causal_attention, doubling, nan_once_at, rotation

EVERY: list[Solver] = [Picard(), Anderson(), Broyden(), Broyden(halvings=2), NewtonKrylov(inner=4)]


class CountSynchronisations(TorchFunctionMode):
    """Counts what would make the host wait for a device."""

    READS = frozenset(
        getattr(torch.Tensor, name)
        for name in ("tolist", "item", "__bool__", "__float__", "__int__", "__index__", "nonzero", "equal", "numpy")
    )

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func in self.READS
        return func(*args, **(kwargs or {}))


class CountScalars(TorchDispatchMode):
    """The same below the surface: numbers read from tensors, each on its own."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.name() == "aten::_local_scalar_dense"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("solver", EVERY, ids=repr)
@pytest.mark.parametrize("scope", ["sample", "prefix"])
@pytest.mark.parametrize("check_every", [1, 4, 100])
def test_synchronises_no_more_often_than_asked(solver, scope, check_every, monkeypatch):
    monkeypatch.setattr("equilibria.solvers.few._FEW", 0)  # a shorter loop, for the CPU
    if isinstance(solver, NewtonKrylov):
        scope = "sample"
    f = causal_attention(gain=1.2)
    solver = replace(solver, scope=scope, tol=0.0, max_evaluations=21, check_every=check_every)
    with CountSynchronisations() as counted, CountScalars() as scalars:
        iterate = solver.solve(f, torch.zeros_like(f.injection))
    # At the end the outcome is read: the trace, four flags for the status, and for samples whether the best iterates
    # have to be put together; looking at every evaluation, the first also chooses the units.
    assert counted.count <= iterate.evaluations // check_every + (5 if check_every > 1 else 6)
    assert scalars.count <= counted.count
    assert counted.count >= 2


class CountRepeats(TorchDispatchMode):
    """Repetitions whose number is known to the device alone, so that the host has to wait."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.name() == "aten::repeat_interleave.Tensor" and not (kwargs or {}).get("output_size")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("solver", EVERY, ids=repr)
def test_the_units_of_several_leaves_cost_no_synchronisation(solver):
    z0 = {"large": torch.zeros(3, 4), "small": torch.zeros(3, 2)}
    solver = replace(solver, tol=0.0, max_evaluations=15, check_every=100)
    with CountRepeats() as counted:
        iterate = solver.solve(lambda z: {"large": 0.5 * z["large"] + 1e4, "small": 0.9 * z["small"] + 1e-3}, z0)
    assert iterate.evaluations >= 15
    assert counted.count == 0


@pytest.mark.parametrize("solver", EVERY, ids=repr)
def test_looking_less_often_finds_the_same_solution(solver):
    f = causal_attention(gain=0.7)
    z0 = torch.zeros_like(f.injection)
    often = replace(solver, tol=1e-4, max_evaluations=100).solve(f, z0)
    seldom = replace(solver, tol=1e-4, max_evaluations=100, check_every=7).solve(f, z0)
    assert often.status is seldom.status is Status.CONVERGED
    assert often.evaluations <= seldom.evaluations < often.evaluations + 14
    assert torch.equal(often.value, seldom.value)
    if not isinstance(solver, NewtonKrylov):  # whose steps may end early when they may look
        assert torch.equal(often.group_evaluations, seldom.group_evaluations)


@pytest.mark.parametrize("solver", [*EVERY, GMRES(restart=10)], ids=repr)
def test_absolute_criterion_stops_at_the_norm_of_the_difference(solver):
    f = affine(radius=0.8)
    solver = replace(solver, tol=1e-3, max_evaluations=300, criterion="absolute")
    iterate = solver.solve(f, f.start)
    value = iterate.value.reshape(f.start.shape)
    difference = torch.linalg.vector_norm((f(value) - value).flatten(1), dim=-1)
    assert iterate.status is Status.CONVERGED
    torch.testing.assert_close(iterate.residual.double(), difference, rtol=1e-3, atol=1e-9)
    assert float(difference.max()) <= 1e-3


@pytest.mark.parametrize("solver", EVERY, ids=repr)
@pytest.mark.parametrize("scope", ["sample", "prefix"])
def test_the_trace_per_group_has_the_worst_as_its_maximum(solver, scope):
    scope = "sample" if isinstance(solver, NewtonKrylov) else scope
    f = causal_attention(gain=1.0)
    z0 = torch.zeros_like(f.injection)
    solver = replace(solver, scope=scope, tol=1e-5, max_evaluations=30)
    assert solver.solve(f, z0).group_trace is None
    iterate = replace(solver, trace_groups=True).solve(f, z0)
    assert iterate.group_trace is not None
    assert iterate.group_trace.shape == (iterate.evaluations, *iterate.residual.shape)
    assert iterate.group_trace.flatten(1).amax(1).tolist() == iterate.trace


def test_kept_iterates_are_those_that_were_evaluated():
    seen = []

    def f(z):
        seen.append(z["a"].clone())
        return {"a": 0.5 * z["a"] + 1.0}

    iterate = Anderson(tol=0.0, max_evaluations=6).solve(f, {"a": torch.zeros(2, 3)}, iterates=(0, 2, 8))
    assert list(iterate.iterates) == [0, 2]
    assert torch.equal(iterate.iterates[0]["a"], seen[0])
    assert torch.equal(iterate.iterates[2]["a"], seen[2])


def test_kept_iterates_count_evaluations_inside_a_step():
    f = causal_attention(gain=1.0)
    solver = NewtonKrylov(tol=0.0, max_evaluations=12, inner=4, forcing=1e-6)
    found = solver.solve(f, torch.zeros_like(f.injection), iterates=(0, 3, 5)).iterates
    assert torch.equal(found[3], found[5])
    assert not torch.equal(found[0], found[3])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"criterion": "both"}, "criterion"), ({"check_every": 0}, "check_every")],
)
def test_impossible_options_are_errors(options, message):
    for method in (Picard, Anderson, Broyden, NewtonKrylov):
        with pytest.raises(ValueError, match=message):
            method(**options)
    with pytest.raises(ValueError, match="halvings"):
        Broyden(halvings=-1)
    with pytest.raises(ValueError, match="criterion"):
        GMRES(criterion="both")  # type: ignore[arg-type]


@pytest.mark.parametrize("scope", ["sample", "token", "prefix"])
def test_the_line_search_helps_where_full_steps_overshoot(scope):
    # arctan: Newton-like steps from afar overshoot further and further.
    def f(z):
        return z - 8.0 * torch.arctan(z)

    z0 = torch.full((2, 2, 1), 3.0, dtype=torch.float64)
    searched = Broyden(tol=1e-6, criterion="absolute", max_evaluations=60, halvings=8, scope=scope).solve(f, z0)
    assert searched.status is Status.CONVERGED
    torch.testing.assert_close(searched.value.flatten(), torch.zeros(4, dtype=torch.float64), atol=1e-5, rtol=0)


def test_the_line_search_changes_nothing_where_steps_are_good():
    f = affine(radius=0.5)
    full = Broyden(tol=1e-8, max_evaluations=100).solve(f, f.start)
    searched = Broyden(tol=1e-8, max_evaluations=100, halvings=4).solve(f, f.start)
    assert searched.evaluations <= full.evaluations + 2


@pytest.mark.parametrize("solver", EVERY, ids=repr)
def test_one_nan_is_recovered_from(solver):
    f = nan_once_at(sample=1, call=3)
    iterate = replace(solver, tol=1e-5, max_evaluations=80).solve(f, torch.zeros(3, 2))
    torch.testing.assert_close(iterate.value, torch.full((3, 2), 2.0), rtol=1e-3, atol=0)
    assert iterate.status is Status.CONVERGED


def test_a_method_that_proposes_nonsense_is_sent_back_to_the_best_iterate():
    class Reckless(Solver):
        def init(self, z, groups):
            return 0

        def step(self, memory, point, groups):
            wild = memory == 3
            return (point.value * torch.nan if wild else point.value.clone()), memory + 1

    f = affine(radius=0.5)
    iterate = Reckless(tol=1e-6, max_evaluations=60).solve(f, f.start)
    assert iterate.status is Status.CONVERGED


def test_stall_and_divergence_are_found_per_group():
    # Sample 0 converges slowly, sample 1 stands still far from a solution, sample 2 runs away.
    def f(z):
        return torch.stack([0.9 * z[0] + 1.0, 1.0 - z[1], doubling(z[2])])

    def of(*samples):
        iterate = Picard(tol=1e-6, max_evaluations=40).solve(f, torch.zeros(3, 1))
        return iterate.residual[list(samples)]

    assert float(of(0)) < 0.02
    alone = Picard(tol=1e-6, max_evaluations=40).solve(lambda z: 0.9 * z + 1.0, torch.zeros(1, 1))
    assert alone.status is Status.MAX_EVALUATIONS
    stalled = Picard(tol=1e-6, max_evaluations=40).solve(lambda z: f(torch.cat([z, z[:1]]))[:2], torch.zeros(2, 1))
    assert stalled.status is Status.STALLED
    assert Picard(tol=1e-6, max_evaluations=40).solve(f, torch.zeros(3, 1)).status is Status.DIVERGED
    g = rotation(1.5)
    assert Picard(tol=1e-6, max_evaluations=40).solve(g, g.start).status is Status.DIVERGED


@pytest.mark.parametrize("scope", ["token", "prefix"])
def test_a_token_that_waits_for_earlier_ones_has_not_stalled(scope):
    """Down a chain, a late token stays wrong until all before it are right."""

    def chain(z):
        before = torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], dim=1)
        return torch.cos(7.0 * before + 1.0) + 0.1 * z

    picard = Picard(tol=1e-4, max_evaluations=30, scope=scope)
    start = torch.zeros(2, 60, 1, dtype=torch.float64)
    waiting = picard.solve(chain, start)
    assert waiting.status is Status.MAX_EVALUATIONS
    assert waiting.converged[:, :10].all()
    assert not waiting.converged[:, -20:].any()
    assert replace(picard, max_evaluations=200).solve(chain, start).status is Status.CONVERGED

    def never(z):
        return torch.cat([1.0 - z[:, :1], chain(z)[:, 1:]], dim=1)

    assert picard.solve(never, start).status is Status.STALLED
