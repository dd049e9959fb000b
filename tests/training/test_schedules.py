import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equilibria.training.schedules import warmup_cosine, warmup_cosine_factor


def test_rises_then_falls_to_the_final_rate() -> None:
    factors = [warmup_cosine_factor(step, 100, 10, 0.1) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == pytest.approx(1.0)
    assert factors[10] == pytest.approx(1.0)
    assert factors[99] == pytest.approx(0.1)
    assert factors[10:] == sorted(factors[10:], reverse=True)


@given(st.integers(1, 50), st.integers(0, 60), st.floats(0, 1))
def test_stays_between_zero_and_the_peak(steps: int, warmup: int, final: float) -> None:
    assert all(0 <= warmup_cosine_factor(step, steps, warmup, final) <= 1 + 1e-12 for step in range(steps + 2))


@pytest.mark.parametrize("done", [0, 1, 4, 5, 19])
def test_a_resumed_schedule_goes_on_where_the_other_stands(done: int) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))

    def rates(taken: int, steps: int) -> list[float]:
        optimizer = torch.optim.SGD([parameter], lr=0.5)
        schedule = warmup_cosine(optimizer, 20, 4, 0.2, done=taken)
        found = []
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return found

    assert rates(done, 20 - done) == rates(0, 20)[done:]
