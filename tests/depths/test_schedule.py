"""Schedules of a depth: which depth each step has, and that it depends on the step's number alone."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import equilibria as eq
from equilibria.depths import (
    DepthSchedule,
    Equilibrium,
    GrowingLimits,
    JacobianPenalty,
    RandomLimits,
    ResidualPenalty,
    UnrolledDepth,
)


def limit(depth) -> int:
    assert isinstance(depth, Equilibrium)
    return depth.solver.max_evaluations


def test_the_warm_up_is_unrolled_and_then_the_equilibrium_comes():
    shallow, deep = UnrolledDepth(3), Equilibrium()
    schedule = DepthSchedule(deep, warmup_steps=4, warmup=shallow)
    assert [schedule.at(step, 10) for step in range(10)] == [shallow] * 4 + [deep] * 6


def test_growing_limits_reach_their_ends_evenly():
    schedule = DepthSchedule(Equilibrium(), warmup_steps=2, limits=GrowingLimits(2, 8))
    assert [limit(schedule.at(step, 9)) for step in range(2, 9)] == [2, 3, 4, 5, 6, 7, 8]
    assert limit(schedule.at(50, 9)) == 8
    assert limit(DepthSchedule(Equilibrium(), limits=GrowingLimits(2, 8)).at(0, 1)) == 8
    assert [GrowingLimits(9, 3).at(step, 3) for step in range(3)] == [9, 6, 3]


def test_random_limits_depend_on_seed_and_step_alone():
    limits = RandomLimits(3, 6, seed=5)
    drawn = [limits.at(step, 400) for step in range(400)]
    torch.manual_seed(1)
    random.seed(1)
    assert [limits.at(step, 999) for step in reversed(range(400))] == drawn[::-1]
    assert all(80 < drawn.count(value) < 120 for value in (3, 4, 5, 6))
    assert sum(one == two for one, two in pairwise(drawn)) < 150
    assert drawn != [RandomLimits(3, 6, seed=6).at(step, 400) for step in range(400)]
    before = torch.get_rng_state(), random.getstate()
    limits.at(7, 10)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_limits_are_of_what_training_evaluates_and_never_of_evaluation():
    solving = Equilibrium(gradient=eq.Phantom(steps=2))
    schedule = DepthSchedule(solving, limits=GrowingLimits(7, 7))
    assert schedule.at(0, 5) == replace(solving, solver=replace(solving.solver, max_evaluations=7))
    unrolled = Equilibrium(gradient=eq.Unrolled(steps=2, checkpoint=True))
    schedule = DepthSchedule(unrolled, limits=GrowingLimits(7, 7))
    assert schedule.at(0, 5) == replace(unrolled, gradient=eq.Unrolled(steps=7, checkpoint=True))
    reversible = Equilibrium(gradient=eq.Reversible(steps=2, damping=0.5))
    schedule = DepthSchedule(reversible, limits=GrowingLimits(7, 7))
    assert schedule.at(0, 5) == replace(reversible, gradient=eq.Reversible(steps=7, damping=0.5))
    budgeted = Equilibrium(gradient=eq.Reversible())
    schedule = DepthSchedule(budgeted, limits=GrowingLimits(7, 7))
    assert schedule.at(0, 5) == replace(budgeted, solver=replace(budgeted.solver, max_evaluations=7))


def test_the_jacobian_penalty_grows_and_comes_with_its_probability():
    weights = [JacobianPenalty(0.5, last_weight=1.5).at(step, 5) for step in range(6)]
    assert weights == [0.5, 0.75, 1.0, 1.25, 1.5, 1.5]
    schedule = DepthSchedule(Equilibrium(), warmup_steps=1, jacobian=JacobianPenalty(2.0, probability=0.3, seed=1))
    assert isinstance(schedule.at(0, 400), UnrolledDepth)
    drawn = [schedule.at(step, 1001) for step in range(1, 1001)]
    found = [depth.jacobian_penalty for depth in drawn if isinstance(depth, Equilibrium)]
    assert set(found) == {0.0, 2.0}
    assert 250 < found.count(2.0) < 350
    assert JacobianPenalty(2.0, probability=0.3, seed=1).at(3, 9) in (0.0, 2.0)


def test_the_residual_penalty_falls_along_a_line_after_the_warm_up():
    schedule = DepthSchedule(Equilibrium(), warmup_steps=2, residual=ResidualPenalty(0.5, last_weight=0.1))
    assert schedule.at(1, 7) == schedule.warmup
    found = [schedule.at(step, 7) for step in range(2, 9)]
    weights = [depth.residual_penalty for depth in found if isinstance(depth, Equilibrium)]
    assert weights == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1])
    assert ResidualPenalty(0.5).at(3, 5) == 0.5
    both = replace(schedule, limits=GrowingLimits(7, 7), jacobian=JacobianPenalty(1.5))
    deep = Equilibrium(residual_penalty=0.5, jacobian_penalty=1.5)
    assert both.at(2, 7) == replace(deep, solver=replace(deep.solver, max_evaluations=7))


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: RandomLimits(0, 3), "least"),
        (lambda: RandomLimits(4, 3), "most"),
        (lambda: GrowingLimits(0, 3), "first"),
        (lambda: JacobianPenalty(-1.0), "weight"),
        (lambda: JacobianPenalty(1.0, last_weight=-1.0), "last_weight"),
        (lambda: JacobianPenalty(1.0, probability=0.0), "probability"),
        (lambda: ResidualPenalty(-1.0), "weight"),
        (lambda: ResidualPenalty(1.0, last_weight=-1.0), "last_weight"),
        (lambda: DepthSchedule(Equilibrium(), warmup_steps=-1), "warmup_steps"),
    ],
)
def test_impossible_options_are_errors_that_name_them(build, name):
    with pytest.raises(ValueError, match=name):
        build()
