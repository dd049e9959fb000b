from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from equilibria.cells import ContractiveCell, Memory
from equilibria.configuration.recipe import TrainingRecipe
from equilibria.depths import Depth, Equilibrium, UnrolledDepth
from equilibria.errors import UserError
from equilibria.gradients import Phantom
from equilibria.models import LanguageModel, Output
from equilibria.solvers import Picard
from equilibria.training.loop import TrainingLoop
from tiny import TRAINING

TOKENS = np.random.default_rng(0).integers(0, 31, 700).astype(np.uint16)


def loop(
    recipe: TrainingRecipe = TRAINING, dropout: float = 0.0, width: int = 16, depth: Depth | None = None
) -> TrainingLoop:
    torch.manual_seed(recipe.seed)
    cell = ContractiveCell(d_model=width, heads=2, inner=32, dropout=dropout)
    solver = Picard(tol=1e-6, max_evaluations=4, scope="prefix")
    depth = depth or Equilibrium(solver=solver, eval_solver=solver, gradient=Phantom(steps=2))
    return TrainingLoop(LanguageModel(vocabulary_size=31, cell=cell, depth=depth, memory_length=8), recipe, TOKENS)


def weights(trained: TrainingLoop) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trained.model.parameters()])


@pytest.mark.parametrize(
    ("optimizer", "learning_rate"), [("adamw", 3e-3), ("adam", 3e-3), ("radam", 3e-2), ("sgd", 1.0), ("muon", 3e-3)]
)
def test_learns(optimizer: Literal["adamw", "adam", "radam", "sgd", "muon"], learning_rate: float) -> None:
    learning = loop(replace(TRAINING, steps=60, optimizer=optimizer, learning_rate=learning_rate))
    losses = [float(learning.step()) for _ in range(60)]
    assert learning.done == 60
    assert losses[-1] < losses[0] - 0.05


def test_slots_are_the_step_of_a_batch_as_large_as_all() -> None:
    whole = loop(replace(TRAINING, batch_size=4, accumulation=1))
    parts = loop(replace(TRAINING, batch_size=2, accumulation=2))
    for _ in range(4):  # the second step on, memory of the slots matters
        assert float(whole.step()) == pytest.approx(float(parts.step()), abs=1e-5)
    torch.testing.assert_close(weights(whole), weights(parts), atol=1e-4, rtol=0)


def test_memory_flows_within_a_pass_and_is_dropped_at_its_end() -> None:
    learning = loop()
    seen: list[bool] = []
    forward = learning.model.forward

    def spy(tokens_BL: Tensor, targets: Tensor | None = None, memory: Memory | None = None) -> Output:
        seen.append(memory is not None)
        return forward(tokens_BL, targets, memory)

    learning.model.forward = spy
    length = len(learning._stream)
    for _ in range(length + 2):
        learning.step()
    assert seen == [False, *[True] * (length - 1), False, True]


def test_gradients_are_clipped() -> None:
    free, clipped = loop(), loop(replace(TRAINING, clip=1e-12))
    before = weights(clipped)
    free.step()
    clipped.step()
    summary = clipped.statistics.summary()
    assert summary is not None
    assert summary.gradient_norm > 1e-3  # as it was before clipping
    moved = (weights(clipped) - before).abs().max()  # what is left moves Adam by less than its epsilon allows
    assert moved < (weights(free) - before).abs().max() / 10


OPTIMIZERS = {
    "adamw": TRAINING,
    "adam": replace(TRAINING, optimizer="adam", schedule="linear"),
    "radam": replace(TRAINING, optimizer="radam", schedule="inverse_square_root"),
    "sgd": replace(TRAINING, optimizer="sgd", momentum=0.9, schedule="constant"),
    "muon": replace(TRAINING, optimizer="muon", schedule="warmup_stable_decay"),
}


@pytest.mark.parametrize("depth", [None, UnrolledDepth(applications=2)])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_restored_goes_on_bit_for_bit(optimizer: str, accumulation: int, depth: Depth | None) -> None:
    recipe = replace(OPTIMIZERS[optimizer], accumulation=accumulation)
    undisturbed, interrupted = (loop(recipe, dropout=0.2, depth=depth) for _ in range(2))
    torch.manual_seed(1)
    for _ in range(6):
        undisturbed.step()
    torch.manual_seed(1)
    for _ in range(3):
        interrupted.step()
    saved = interrupted.checkpoint()
    saved = replace(
        saved,
        model={name: tensor.detach().clone() for name, tensor in saved.model.items()},
        trainer={name: tensor.clone() for name, tensor in saved.trainer.items()},
    )
    resumed = loop(replace(recipe, seed=99), dropout=0.2, depth=depth)
    resumed.restore(saved, Path("step-3"))
    assert resumed.learning_rate == interrupted.learning_rate
    for _ in range(3):
        resumed.step()
    assert torch.equal(weights(resumed), weights(undisturbed))
    assert resumed.statistics.summary() == undisturbed.statistics.summary()


def test_two_loops_take_turns() -> None:
    alone, first, second = loop(), loop(), loop(depth=UnrolledDepth(applications=3))
    for _ in range(3):
        alone.step()
    for _ in range(3):
        first.step()
        second.step()
    assert torch.equal(weights(first), weights(alone))


def test_another_shape_is_named() -> None:
    small, wide = loop(), loop(width=24)
    with pytest.raises(UserError, match=r"model\.safetensors is of another shape: .* is \(.*in the file"):
        wide.restore(small.checkpoint(), Path("step-0"))


def test_an_incomplete_trainer_state_is_named() -> None:
    learning = loop()
    learning.step()
    saved = learning.checkpoint()
    for lacking in ("random.cpu", "statistics.sums", "optimizer.exp_avg.embedding.weight"):
        trainer = {name: tensor for name, tensor in saved.trainer.items() if name != lacking}
        with pytest.raises(UserError, match=r"trainer\.safetensors"):
            loop().restore(replace(saved, trainer=trainer), Path("step-1"))


def test_statistics_are_means_since_the_reset() -> None:
    learning = loop()
    learning.step()
    learning.statistics.reset()
    assert learning.statistics.summary() is None
    losses = [float(learning.step()) for _ in range(3)]
    summary = learning.statistics.summary()
    assert summary is not None
    assert summary.loss == pytest.approx(sum(losses) / 3)
    assert summary.steps == 3
    assert summary.tokens == 3 * 2 * 16
    assert (summary.evaluations or 0) >= 4
    assert 0 < (summary.residual or 0) <= (summary.residual_worst or 0)
    assert summary.finite


def test_explicit_depths_have_no_residual() -> None:
    learning = loop(depth=UnrolledDepth(applications=2))
    learning.step()
    summary = learning.statistics.summary()
    assert summary is not None
    assert (summary.evaluations, summary.residual, summary.residual_worst) == (None, None, None)
