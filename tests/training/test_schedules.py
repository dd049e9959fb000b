import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from equilibria.configuration.training import TrainingRecipe
from equilibria.training.schedules import (
    Constant,
    Cosine,
    InverseSquareRoot,
    Linear,
    WarmupStableDecay,
    build_schedule,
    scheduler,
)

SCHEDULES = {
    "cosine": Cosine(100, 10, 0.1),
    "linear": Linear(100, 10, 0.1),
    "inverse_square_root": InverseSquareRoot(100, 10),
    "warmup_stable_decay": WarmupStableDecay(100, 10, 0.1, 30),
    "constant": Constant(100, 10),
}


def factors(schedule: Constant) -> list[float]:
    return [schedule.factor(step) for step in range(schedule.steps)]


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_rises_linearly_to_the_peak_and_never_again(schedule: Constant) -> None:
    found = factors(schedule)
    assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert found[9:] == sorted(found[9:], reverse=True)


def test_after_the_rise_each_has_its_own_shape() -> None:
    found = {name: factors(schedule) for name, schedule in SCHEDULES.items()}
    for name in ("cosine", "linear", "warmup_stable_decay"):
        assert found[name][99] == pytest.approx(0.1)
    assert sum(found["cosine"][54:56]) / 2 == pytest.approx(0.55)  # half-way lies between two steps
    assert found["cosine"][20] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 10 / 89)))
    assert sum(found["linear"][54:56]) / 2 == pytest.approx(0.55)
    assert found["linear"][20] == pytest.approx(1 - 0.9 * 10 / 89)
    assert found["warmup_stable_decay"][10:70] == [1.0] * 60
    assert found["warmup_stable_decay"][70:] == pytest.approx([1 - 0.9 * (step + 1) / 30 for step in range(30)])
    assert found["inverse_square_root"][39] == pytest.approx(0.5)
    assert found["constant"][10:] == [1.0] * 90


def pytorchs(name: str, optimizer: Optimizer) -> LRScheduler:
    """PyTorch's own schedulers one after another: a linear rise over 10 steps, then what falls over 90."""
    rise = LinearLR(optimizer, start_factor=0.1, total_iters=9)
    stay = ConstantLR(optimizer, factor=1.0)
    match name:
        case "cosine":
            return SequentialLR(optimizer, [rise, CosineAnnealingLR(optimizer, T_max=89, eta_min=0.1)], [10])
        case "linear":
            return SequentialLR(optimizer, [rise, LinearLR(optimizer, 1.0, 0.1, total_iters=89)], [10])
        case "warmup_stable_decay":
            return SequentialLR(optimizer, [rise, stay, LinearLR(optimizer, 1.0, 0.1, total_iters=30)], [10, 69])
        case _:
            return SequentialLR(optimizer, [rise, stay], [10])


@pytest.mark.parametrize("name", sorted(SCHEDULES.keys() - {"inverse_square_root"}))
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")  # SequentialLR's own call
def test_they_are_those_of_pytorch_where_it_has_them(name: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=1.0)
    theirs, found = pytorchs(name, optimizer), []
    for _ in range(100):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert factors(SCHEDULES[name]) == pytest.approx(found, rel=1e-6)


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 50), st.integers(0, 60), st.floats(0, 1), st.integers(1, 70))
def test_stays_between_zero_and_the_peak(name: str, steps: int, warmup: int, final: float, decay: int) -> None:
    recipe = TrainingRecipe(schedule="cosine", steps=steps, warmup_steps=warmup)
    options = {"final_rate": final, "decay_steps": decay}
    kept = {key: value for key, value in options.items() if hasattr(SCHEDULES[name], key)}
    schedule = build_schedule(replace(recipe, schedule=name, **kept))
    assert type(schedule) is type(SCHEDULES[name])
    assert all(0 <= schedule.factor(step) <= 1 + 1e-12 for step in range(steps + 2))
    assert schedule.factor(steps + 5) <= schedule.factor(max(0, steps - 1)) + 1e-12 or steps < warmup


def test_a_recipe_names_the_schedule_and_its_options() -> None:
    recipe = TrainingRecipe(steps=50, warmup_steps=5)
    assert build_schedule(recipe) == Cosine(50, 5, 0.1)
    assert build_schedule(replace(recipe, final_rate=0.3)) == Cosine(50, 5, 0.3)
    assert build_schedule(replace(recipe, schedule="linear")) == Linear(50, 5, 0.0)
    assert build_schedule(replace(recipe, schedule="inverse_square_root")) == InverseSquareRoot(50, 5)
    assert build_schedule(replace(recipe, schedule="warmup_stable_decay")) == WarmupStableDecay(50, 5, 0.0, 10)
    given_steps = replace(recipe, schedule="warmup_stable_decay", decay_steps=7)
    assert build_schedule(given_steps) == WarmupStableDecay(50, 5, 0.0, 7)
    assert build_schedule(replace(recipe, schedule="constant")) == Constant(50, 5)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.parametrize("done", [0, 1, 4, 5, 19])
def test_a_resumed_schedule_goes_on_where_the_other_stands(schedule: Constant, done: int) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    short = replace(schedule, steps=20, warmup_steps=4)

    def rates(taken: int, steps: int) -> list[float]:
        optimizer = torch.optim.SGD([parameter], lr=0.5)
        scheduled = scheduler(optimizer, short, done=taken)
        found = []
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduled.step()
        return found

    assert rates(done, 20 - done) == rates(0, 20)[done:]
