"""Averages of weights: what they are averages of, when they start, and that a run with one resumes exactly."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from equilibria.cells import ContractiveCell
from equilibria.configuration import TrainingRecipe
from equilibria.data.batches import TrainingStream
from equilibria.depths import UnrolledDepth
from equilibria.errors import UserError
from equilibria.inference import load
from equilibria.models import LanguageModel, TokenModel
from equilibria.nn import TiedEmbedding
from equilibria.optimization import Exponential, Uniform
from equilibria.runs.checkpoints import read_checkpoint
from equilibria.runs.folder import RunFolder
from equilibria.training.loop import TrainingLoop
from tiny import TRAINING, tiny_recipe, tiny_trainer

TOKENS = np.random.default_rng(0).integers(0, 31, 700).astype(np.uint16)
EXPONENTIAL = replace(TRAINING, averaging=Exponential(decay=0.8))
UNIFORM = replace(TRAINING, averaging=Uniform(start=3))
TRIGGERED = replace(TRAINING, averaging=Uniform(patience=2))


def loop(recipe: TrainingRecipe) -> TrainingLoop:
    torch.manual_seed(0)
    cell = ContractiveCell(d_model=16, heads=2, inner=32, dropout=0.1)
    batches = TrainingStream(TOKENS, recipe.batch_size * recipe.accumulation, recipe.segment_length)
    return TrainingLoop(LanguageModel(TiedEmbedding(31, 16), cell, UnrolledDepth(2), memory_length=4), recipe, batches)


def weights(model: TokenModel) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def history(learning: TrainingLoop, steps: int) -> list[Tensor]:
    """Weights after each step."""
    found = []
    for _ in range(steps):
        learning.step()
        found.append(weights(learning.model))
    return found


def test_without_averaging_the_model_itself_is_evaluated() -> None:
    learning = loop(TRAINING)
    learning.step()
    assert learning.evaluated is learning.model


def test_an_exponential_average() -> None:
    learning = loop(EXPONENTIAL)
    assert learning.evaluated is learning.model
    first, *later = history(learning, 5)
    expected = first
    for after in later:
        expected = 0.8 * expected + 0.2 * after
    assert learning.evaluated is not learning.model
    torch.testing.assert_close(weights(learning.evaluated), expected)


def test_a_uniform_average_from_a_step_on() -> None:
    learning = loop(UNIFORM)
    found = history(learning, 3)
    assert learning.evaluated is learning.model
    found = history(learning, 4)
    torch.testing.assert_close(weights(learning.evaluated), torch.stack(found).mean(0))


def test_averaging_does_not_disturb_training() -> None:
    assert torch.equal(history(loop(EXPONENTIAL), 4)[-1], history(loop(TRAINING), 4)[-1])


@pytest.mark.parametrize(
    ("losses", "starts"),
    [
        ([5, 4, 3, 2, 1], False),
        ([5, 3, 4, 3.5], False),  # 3.5 is below the 5 that is more than two evaluations back
        ([5, 3, 4, 3.5, 3.2], True),  # 3.2 is above the 3 that now is
        ([3, 4, 4], False),  # none is so far back
    ],
)
def test_a_uniform_average_starts_when_validation_stops_improving(losses: list[float], starts: bool) -> None:
    learning = loop(TRIGGERED)
    learning.step()
    for loss in losses:
        learning.validated(loss)
    found = history(learning, 2)
    assert (learning.evaluated is not learning.model) == starts
    if starts:
        torch.testing.assert_close(weights(learning.evaluated), torch.stack(found).mean(0))


@pytest.mark.parametrize("recipe", [EXPONENTIAL, UNIFORM, TRIGGERED], ids=["exponential", "uniform", "triggered"])
@pytest.mark.parametrize("saved_after", [2, 5])
def test_restored_goes_on_bit_for_bit(recipe: TrainingRecipe, saved_after: int) -> None:
    def go(learning: TrainingLoop, first: int, last: int) -> None:
        for step in range(first, last):
            learning.step()
            learning.validated(float(abs(step - 2)))  # falls to step 2, then rises

    torch.manual_seed(3)
    whole, half, resumed = loop(recipe), loop(recipe), loop(replace(recipe, seed=9))
    torch.manual_seed(1)
    go(whole, 0, 9)
    torch.manual_seed(1)
    go(half, 0, saved_after)
    saved = half.checkpoint()
    saved = replace(saved, trainer={name: tensor.detach().clone() for name, tensor in saved.trainer.items()})
    resumed.restore(saved, Path("step"))
    assert torch.equal(weights(resumed.evaluated), weights(half.evaluated))
    go(resumed, saved_after, 9)
    assert whole.evaluated is not whole.model
    assert torch.equal(weights(resumed.model), weights(whole.model))
    assert torch.equal(weights(resumed.evaluated), weights(whole.evaluated))


def test_a_run_evaluates_keeps_and_loads_the_average(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, replace(EXPONENTIAL, averaging=Exponential(decay=0.95)))
    trainer = tiny_trainer(recipe)
    result = trainer.run()
    path = RunFolder(recipe.run.folder).checkpoint("last")
    checkpoint, kept = read_checkpoint(path), load_file(path / "model.safetensors")
    averaged, trained = trainer.loop.evaluated, trainer.loop.model
    assert not torch.equal(weights(averaged), weights(trained))
    for name, tensor in averaged.state_dict().items():
        assert torch.equal(kept[name], tensor)
        assert torch.equal(checkpoint.trainer[f"average.weights.{name}"], tensor)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(checkpoint.trainer[f"weights.{name}"], tensor)
    assert torch.equal(weights(load(recipe.run.folder)), weights(averaged))
    plain = tiny_trainer(tiny_recipe(tmp_path, TRAINING, name="plain")).run()
    assert result.validation is not None
    assert plain.validation is not None
    assert result.validation.loss != plain.validation.loss


def test_an_interrupted_run_with_an_average_resumes_exactly(tmp_path: Path) -> None:
    whole, parts = (tiny_recipe(tmp_path, EXPONENTIAL, name=name) for name in ("whole", "parts"))
    tiny_trainer(whole).run()
    first = tiny_trainer(replace(parts, training=replace(EXPONENTIAL, checkpoint_every=5)))
    take = first.loop.step

    def stopping() -> Tensor:
        if first.loop.done == 5:
            raise RuntimeError("killed")
        return take()

    first.loop.step = stopping
    with pytest.raises(RuntimeError, match="killed"):
        first.run()
    tiny_trainer(parts).run(resume=True)
    expected, found = (RunFolder(r.run.folder).checkpoint("last") / "model.safetensors" for r in (whole, parts))
    assert all(torch.equal(load_file(found)[name], tensor) for name, tensor in load_file(expected).items())
    plain = replace(parts, training=replace(TRAINING, steps=14))
    with pytest.raises(UserError, match=r'training\.averaging\.kind = "exponential", the recipe '):
        tiny_trainer(plain).run(resume=True)
