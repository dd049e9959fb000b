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
    depth = Equilibrium(schedule=DepthSchedule(warmup_steps=4, warmup_applications=3))
    assert [depth.at(step, 10, 0) for step in range(10)] == [shallow] * 4 + [deep] * 6
    assert (depth.warmup(10), deep.warmup(10)) == (4, 0)
    assert depth.steady() == deep
    assert deep.at(3, 10, 0) is deep


@pytest.mark.parametrize(("share", "expected"), [(0.75, 30), (1.0 - 1e-9, 39), (1.0, 40)])
def test_a_warm_up_that_is_a_share_of_all_steps_leaves_one_unless_it_is_all(share, expected):
    assert DepthSchedule(warmup_share=share).warmup(40) == expected


def test_growing_limits_reach_their_ends_evenly():
    scheduled = Equilibrium(schedule=DepthSchedule(warmup_steps=2, limits=GrowingLimits(2, 8)))
    assert [limit(scheduled.at(step, 9, 1)) for step in range(2, 9)] == [2, 3, 4, 5, 6, 7, 8]
    assert limit(scheduled.at(50, 9, 1)) == 8
    assert limit(Equilibrium(schedule=DepthSchedule(limits=GrowingLimits(2, 8))).at(0, 1, 0)) == 8
    assert [GrowingLimits(9, 3).at(step, 3, 0) for step in range(3)] == [9, 6, 3]


def test_random_limits_depend_on_seed_and_step_alone():
    limits = RandomLimits(3, 6)
    drawn = [limits.at(step, 400, 5) for step in range(400)]
    torch.manual_seed(1)
    random.seed(1)
    assert [limits.at(step, 999, 5) for step in reversed(range(400))] == drawn[::-1]
    assert all(80 < drawn.count(value) < 120 for value in (3, 4, 5, 6))
    assert sum(one == two for one, two in pairwise(drawn)) < 150
    assert drawn != [limits.at(step, 400, 6) for step in range(400)]
    before = torch.get_rng_state(), random.getstate()
    limits.at(7, 10, 5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_limits_are_of_what_training_evaluates_and_never_of_evaluation():
    sevens = DepthSchedule(limits=GrowingLimits(7, 7))
    solving = Equilibrium(gradient=eq.Phantom(steps=2))
    expected = replace(solving, solver=replace(solving.solver, max_evaluations=7))
    assert replace(solving, schedule=sevens).at(0, 5, 0) == expected
    unrolled = Equilibrium(gradient=eq.Unrolled(steps=2, checkpoint=True))
    expected = replace(unrolled, gradient=eq.Unrolled(steps=7, checkpoint=True))
    assert replace(unrolled, schedule=sevens).at(0, 5, 0) == expected
    reversible = Equilibrium(gradient=eq.Reversible(steps=2, damping=0.5))
    expected = replace(reversible, gradient=eq.Reversible(steps=7, damping=0.5))
    assert replace(reversible, schedule=sevens).at(0, 5, 0) == expected
    budgeted = Equilibrium(gradient=eq.Reversible())
    expected = replace(budgeted, solver=replace(budgeted.solver, max_evaluations=7))
    assert replace(budgeted, schedule=sevens).at(0, 5, 0) == expected


def test_the_jacobian_penalty_grows_and_comes_with_its_probability():
    weights = [JacobianPenalty(0.5, last_weight=1.5).at(step, 5, 0) for step in range(6)]
    assert weights == [0.5, 0.75, 1.0, 1.25, 1.5, 1.5]
    scheduled = Equilibrium(schedule=DepthSchedule(warmup_steps=1, jacobian=JacobianPenalty(2.0, probability=0.3)))
    assert isinstance(scheduled.at(0, 400, 1), UnrolledDepth)
    drawn = [scheduled.at(step, 1001, 1) for step in range(1, 1001)]
    found = [depth.jacobian_penalty for depth in drawn if isinstance(depth, Equilibrium)]
    assert set(found) == {0.0, 2.0}
    assert 250 < found.count(2.0) < 350
    assert JacobianPenalty(2.0, probability=0.3).at(3, 9, 1) in (0.0, 2.0)


def test_the_residual_penalty_falls_along_a_line_after_the_warm_up():
    scheduled = Equilibrium(schedule=DepthSchedule(warmup_steps=2, residual=ResidualPenalty(0.5, last_weight=0.1)))
    assert scheduled.at(1, 7, 1) == UnrolledDepth(2)
    found = [scheduled.at(step, 7, 1) for step in range(2, 9)]
    weights = [depth.residual_penalty for depth in found if isinstance(depth, Equilibrium)]
    assert weights == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1])
    assert ResidualPenalty(0.5).at(3, 5) == 0.5
    assert scheduled.schedule is not None
    limited = replace(scheduled.schedule, limits=GrowingLimits(7, 7), jacobian=JacobianPenalty(1.5))
    both = Equilibrium(schedule=limited)
    deep = Equilibrium(residual_penalty=0.5, jacobian_penalty=1.5)
    assert both.at(2, 7, 1) == replace(deep, solver=replace(deep.solver, max_evaluations=7))


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
        (lambda: DepthSchedule(warmup_steps=-1), "warmup_steps"),
    ],
)
def test_impossible_options_are_errors_that_name_them(build, name):
    with pytest.raises(ValueError, match=name):
        build()


def test_what_a_schedule_says_in_place_of_an_option_refuses_another_value_of_it():
    growing = DepthSchedule(gradient_steps=GrowingLimits(1, 3))
    for gradient in (eq.Phantom(), eq.Phantom(checkpoint=True)):
        at = Equilibrium(gradient=gradient, schedule=growing).at(4, 5, 0)
        assert isinstance(at, Equilibrium)
        assert at.gradient == replace(gradient, steps=3)
    with pytest.raises(ValueError, match=r"gradient.steps has no effect beside schedule.gradient_steps; drop one"):
        Equilibrium(gradient=eq.Phantom(steps=3), schedule=growing)
    with pytest.raises(ValueError, match=r"residual_penalty has no effect beside schedule.residual; drop one"):
        Equilibrium(residual_penalty=1.0, schedule=DepthSchedule(residual=ResidualPenalty(1.0)))
    with pytest.raises(ValueError, match=r"jacobian_penalty has no effect beside schedule.jacobian; drop one"):
        Equilibrium(jacobian_penalty=1.0, schedule=DepthSchedule(jacobian=JacobianPenalty(1.0)))


@pytest.mark.parametrize(
    ("options", "schedule", "named"),
    [
        ({"noise": eq.PathNoise()}, {}, "noise"),
        ({"rounds": 2, "start": eq.RandomStart(1.0)}, {}, "start, rounds"),
        ({"states_every": 1}, {}, "states_every"),
        ({}, {"limits": GrowingLimits(1, 3), "residual": ResidualPenalty(1.0)}, r"schedule.limits, schedule.residual"),
    ],
)
def test_what_solves_in_training_would_do_is_refused_where_it_never_solves(options, schedule, named):
    said = f"{named}: no effect with schedule.warmup_share = 1, where training never solves"
    with pytest.raises(ValueError, match=said):
        Equilibrium(**options, schedule=DepthSchedule(warmup_share=1.0, **schedule))
    Equilibrium(**options, schedule=DepthSchedule(warmup_share=0.9, **schedule))
