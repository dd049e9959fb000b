"""Saved bytes against what is known to be saved, and the peak against the profiler's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import equilibria as eq
from allocations import peak_bytes as allocated
from equilibria.configuration.building import build_model
from equilibria.data.batches import ZipfBatches
from equilibria.measuring import peak_bytes
from equilibria.measuring.memory import Watch
from equilibria.training.loop import TrainingLoop
from problems import causal_attention
from tiny import tiny_recipe

CPU = torch.device("cpu")


def test_counts_what_a_product_saves():
    x, w = torch.randn(10, 4), torch.randn(4, 3, requires_grad=True)
    assert eq.saved_bytes(lambda: x @ w) == 10 * 4 * 4
    assert eq.saved_bytes(lambda: (x @ w).exp()) == 10 * 4 * 4 + 10 * 3 * 4
    assert eq.saved_bytes(lambda: x @ w, exclude=[x]) == 0


def test_a_tensor_saved_twice_counts_once():
    w = torch.randn(5, requires_grad=True)
    assert eq.saved_bytes(lambda: (w * w, w * w)) == 5 * 4


def phantom_bytes(steps: int, checkpoint: bool) -> int:
    f = causal_attention()
    inputs = f.injection.clone().requires_grad_()
    solver = eq.Picard(tol=0.0, max_evaluations=3)
    gradient = eq.Phantom(steps, checkpoint=checkpoint)
    closed = type(f)(f.weights, inputs, f.gain)
    return eq.saved_bytes(lambda: eq.fixed_point(closed, inputs, solver, gradient, "ignore"), [inputs])


def test_checkpointing_keeps_states_only():
    plain, checkpointed = phantom_bytes(6, checkpoint=False), phantom_bytes(6, checkpoint=True)
    state = causal_attention().injection.untyped_storage().nbytes()
    assert checkpointed <= 7 * state
    assert checkpointed < 0.5 * plain


def test_the_watch_sees_what_the_profiler_sees(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    torch.manual_seed(0)
    loop = TrainingLoop(build_model(recipe, 50), recipe.training, ZipfBatches(50, 2, 16))
    for _ in range(2):
        loop.step()
    assert peak_bytes(loop.step, CPU) == pytest.approx(allocated(loop.step), rel=0.01)


def test_the_watch_knows_views_and_what_was_freed() -> None:
    kept: list[Tensor] = []

    def run() -> None:
        kept.append(torch.zeros(1000).view(10, 100)[2:])  # 4000 bytes, however they are seen
        for _ in range(3):
            torch.ones(500)  # 2000, freed each time
        kept[0].add_(1)

    assert peak_bytes(run, CPU) == 6000


def test_what_is_made_in_a_pause_does_not_count():
    with Watch() as watch:
        kept = torch.ones(10)
        watch.paused = True
        uncounted = torch.ones(100)
        watch.paused = False
    assert watch.peak == kept.nbytes < uncounted.nbytes
