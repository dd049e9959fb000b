"""Curves stay small and true to the lines they come from."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equilibria.report.curves import MOST_POINTS, loss_plots, points, solve_plots, thinned
from equilibria.report.gather import RunRecord
from equilibria.runs.folder import RunFolder


def record(metrics: list[dict[str, object]]) -> RunRecord:
    return RunRecord(RunFolder(Path("run")), metrics=metrics)


@given(st.lists(st.floats(-1e6, 1e6)), st.integers(1, 50))
def test_thinning_keeps_bounds_and_never_exceeds_the_limit(values: list[float], most: int) -> None:
    kept = thinned(values, most)
    assert len(kept) <= most
    assert bool(kept) == bool(values)
    if values:
        slack = 1e-6
        assert min(values) - slack <= min(kept)
        assert max(kept) <= max(values) + slack
    if len(values) <= most:
        assert kept == values


@given(st.integers(1, 20), st.integers(1, 20))
def test_thinning_into_equal_runs_keeps_the_mean(runs: int, length: int) -> None:
    values = [float(number * number % 17) for number in range(runs * length)]
    kept = thinned(values, runs)
    assert sum(kept) / len(kept) == pytest.approx(sum(values) / len(values))


def test_a_long_run_gives_few_points_at_the_steps_they_belong_to() -> None:
    lines: list[dict[str, object]] = [{"step": step, "loss": 2.0 * step} for step in range(100_000)]
    steps, losses = points(lines, "step", "loss")
    assert 0.9 * MOST_POINTS <= len(steps) <= MOST_POINTS
    assert losses == pytest.approx([2 * step for step in steps])


def test_lines_without_a_number_are_left_out() -> None:
    values: list[object] = [1.0, None, float("nan"), "text", True, 3]
    lines = [{"step": step, "loss": value} for step, value in enumerate(values)]
    assert points(lines, "step", "loss") == ([0.0, 5.0], [1.0, 3.0])


def test_time_is_shown_in_the_unit_that_suits_the_run() -> None:
    lines: list[dict[str, object]] = [
        {"kind": "train", "step": step, "loss": 1.0, "seconds": 3600.0 * step} for step in (1, 5)
    ]
    _, by_time = loss_plots(record(lines))
    assert by_time.x_label == "training time (hours)"
    assert list(by_time.curves[0].x) == [1.0, 5.0]


def test_baselines_become_losses() -> None:
    run = record([])
    run.evaluation = {"unigram_perplexity": 1.0, "trigram_perplexity": None}
    assert [plot.references for plot in loss_plots(run)] == [[("unigram", 0.0)]] * 2


def test_plots_without_a_point_are_empty() -> None:
    run = record([{"kind": "train", "step": 1, "loss": 1.0, "residual": 0.0}])
    assert [plot.empty for plot in loss_plots(run)] == [False, True]  # there are no seconds
    assert [plot.empty for plot in solve_plots(run)] == [True, True]  # 0 has no place on a logarithmic axis
