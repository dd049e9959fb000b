"""Texts of a run from Python."""

from pathlib import Path

import pytest
import torch

import equilibria as eq
from equilibria.errors import UserError
from tiny import TRAINING, tiny_recipe, tiny_trainer
from watching import Watcher


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = tiny_recipe(tmp_path_factory.mktemp("run"), TRAINING)
    tiny_trainer(recipe).run()
    return recipe.run.folder


def test_texts_are_told_in_turn_and_drawn_again_by_their_seeds(run: Path) -> None:
    told: list[str] = []
    draw = {"max_new_tokens": 7, "sampling": eq.Sampling(temperature=0.7)}
    samples = eq.generate(run, ["the cat", "a fixed"], samples=2, seed=5, say=lambda text, _: told.append(text), **draw)
    assert [(sample.prompt, sample.seed) for sample in samples] == [
        ("the cat", 5),
        ("the cat", 6),
        ("a fixed", 7),
        ("a fixed", 8),
    ]
    assert "".join(told) == "\n---\n".join(sample.prompt + sample.text for sample in samples)
    for sample in samples:
        assert eq.generate(eq.load_run(run), [sample.prompt], seed=sample.seed, **draw) == [sample]


def test_less_effort_is_another_depth(run: Path) -> None:
    counts: list[int | None] = []
    draw = {"seed": 1, "max_new_tokens": 5, "effort": eq.Effort(max_evaluations=2, tolerance=1e-9)}
    with pytest.warns(eq.ConvergenceWarning, match="5 of 5 tokens"):
        (sample,) = eq.generate(run, **draw, say=lambda _, evaluations: counts.append(evaluations))
    assert sample.unconverged == 5
    assert sample.residual is not None
    assert 1e-9 < sample.residual < 10
    assert counts[0] is None
    assert all(count is not None and count <= 3 for count in counts[1:])


def test_a_solve_without_a_state_is_an_error(run: Path) -> None:
    loaded = eq.load_run(run)
    with torch.no_grad():
        next(loaded.model.cell.parameters()).fill_(torch.nan)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(UserError, match="not finite"):
        eq.generate(loaded, "the cat", max_new_tokens=3)


@pytest.mark.parametrize("wrong", [{"max_new_tokens": 0}, {"samples": 0}, {"stop": [""]}])
def test_numbers_out_of_range_are_errors_of_the_user(run: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"at least 1|1 character"):
        eq.generate(run, **wrong)  # pyright: ignore[reportArgumentType]


def test_reading_several_prompts_and_writing_are_watched(run: Path) -> None:
    watcher = Watcher()
    eq.generate(run, ["the cat", "a fixed"], samples=2, max_new_tokens=3, seed=5, progress=watcher)
    (reading, prompts, read), (writing, tokens, written) = watcher.bars
    assert (reading, prompts, sum(read)) == ("reading the prompts", 2, 2)
    assert (writing, tokens, sum(written)) == ("writing", 12, 8)  # the first of each text comes with its prompt
