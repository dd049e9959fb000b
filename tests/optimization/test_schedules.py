import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from equilibria.configuration import TrainingRecipe
from equilibria.optimization import Constant, Cosine, InverseSquareRoot, Linear, Schedule, WarmupStableDecay
from equilibria.optimization.schedules import scheduler

SCHEDULES = {
    "cosine": Cosine(warmup_steps=10, final_rate=0.1),
    "linear": Linear(warmup_steps=10, final_rate=0.1),
    "inverse_square_root": InverseSquareRoot(warmup_steps=10),
    "warmup_stable_decay": WarmupStableDecay(warmup_steps=10, final_rate=0.1, decay_steps=30),
    "constant": Constant(warmup_steps=10),
}


def factors(schedule: Schedule, steps: int = 100) -> list[float]:
    return [schedule.factor(step, steps) for step in range(steps)]


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_rises_linearly_to_the_peak_and_never_again(schedule: Schedule) -> None:
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
    options = {"warmup_steps": warmup, "final_rate": final, "decay_steps": decay}
    schedule = SCHEDULES[name]
    schedule = replace(schedule, **{key: value for key, value in options.items() if hasattr(schedule, key)})
    assert all(0 <= schedule.factor(step, steps) <= 1 + 1e-12 for step in range(steps + 2))
    assert schedule.factor(steps + 5, steps) <= schedule.factor(max(0, steps - 1), steps) + 1e-12 or steps < warmup


def test_what_is_left_out() -> None:
    assert (Cosine().final_rate, Linear().final_rate, WarmupStableDecay().final_rate) == (0.1, 0.0, 0.0)
    assert {schedule().warmup_steps for schedule in (Constant, Cosine, InverseSquareRoot, Linear)} == {100}
    fifth, given_steps = (WarmupStableDecay(warmup_steps=5, decay_steps=steps) for steps in (None, 10))
    assert factors(fifth, 50) == factors(given_steps, 50)
    assert factors(fifth, 50) != factors(replace(given_steps, decay_steps=7), 50)


def test_the_rate_of_a_recipe_is_that_of_its_schedule() -> None:
    recipe = TrainingRecipe(steps=50, learning_rate=0.5, schedule=Linear(warmup_steps=5, final_rate=0.2))
    assert [recipe.rate_at(step) for step in (0, 4, 49, 60)] == pytest.approx([0.1, 0.5, 0.1, 0.1])


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (Constant, {"warmup_steps": -1}, "warmup_steps must be at least 0, found -1"),
        (Cosine, {"final_rate": -0.1}, r"final_rate must be at least 0, found -0\.1"),
        (Linear, {"final_rate": math.inf}, "final_rate must be at least 0 and finite, found inf"),
        (WarmupStableDecay, {"decay_steps": 0}, "decay_steps must be at least 1, found 0"),
    ],
)
def test_numbers_out_of_range_are_named(kind: type[Schedule], options: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        kind(**options)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.parametrize("done", [0, 1, 4, 5, 19])
def test_a_resumed_schedule_goes_on_where_the_other_stands(schedule: Schedule, done: int) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    short = replace(schedule, warmup_steps=4)

    def rates(taken: int, steps: int) -> list[float]:
        optimizer = torch.optim.SGD([parameter], lr=0.5)
        scheduled = scheduler(optimizer, short, 20, done=taken)
        found = []
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduled.step()
        return found

    assert rates(done, 20 - done) == rates(0, 20)[done:]
