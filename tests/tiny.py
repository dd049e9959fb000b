"""The smallest real run: a few kilobytes of text, bytes as tokens, a cell of width 16."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from equilibria.cells import ContractiveCell
from equilibria.configuration import Recipe, RunRecipe, TrainingRecipe
from equilibria.configuration.building import build_model
from equilibria.data import CopyMemory, FolderText, TokenizerSpec
from equilibria.data.prepared import opened
from equilibria.depths import DepthSchedule, Equilibrium, RandomLimits, ResidualPenalty
from equilibria.models import LanguageModelRecipe
from equilibria.nn import UntiedEmbedding
from equilibria.optimization import Cosine
from equilibria.runs.folder import RunFolder
from equilibria.training.randomness import seed_everything
from equilibria.training.trainer import Trainer

_SENTENCES = (
    "the cat sat on the mat and looked at the moon",
    "a fixed point is where a map returns what it was given",
    "nobody knows how many times the bell rang that night",
)

CELL: partial[Any] = partial(ContractiveCell, d_model=16, heads=2, inner=32, dropout=0.1)

TRAINING = TrainingRecipe(
    steps=12,
    batch_size=2,
    segment_length=16,
    learning_rate=3e-3,
    schedule=Cosine(warmup_steps=2),
    evaluate_every=6,
    evaluate_tokens=200,
    checkpoint_every=4,
    log_every=3,
    seed=7,
    threads=1,
)


def write_text(folder: Path) -> Path:
    """A folder in the WikiText layout: 100 short lines to train on, 20 to validate on."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 100), ("valid", 20), ("test", 20)):
        lines = (f"{number} {_SENTENCES[number % 3]}" for number in range(count))
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def tiny_recipe(base: Path, training: TrainingRecipe = TRAINING, name: str = "tiny") -> Recipe:
    """A recipe whose text, cache and run folder are below `base`; dropout and memory are on."""
    text = write_text(base / "text")
    return Recipe(
        run=RunRecipe(name=name, directory=base / "runs"),
        data=FolderText(text, tokenizer=TokenizerSpec("bytes"), cache=base / "cache"),
        model=LanguageModelRecipe(cell=CELL, memory_length=8),
        training=training,
    )


def tiny_task_recipe(base: Path, training: TrainingRecipe = TRAINING, name: str = "task") -> Recipe:
    """The same about copy memory, by an equilibrium whose limits and penalty change, with dropout."""
    schedule = DepthSchedule(warmup_steps=3, limits=RandomLimits(2, 4), residual=ResidualPenalty(0.1))
    return Recipe(
        run=RunRecipe(name=name, directory=base / "runs"),
        data=CopyMemory(blanks=5, symbols=3, held_out=50),
        model=LanguageModelRecipe(
            embedding=partial(UntiedEmbedding),
            cell=partial(CELL, query_key_gain=2.0),
            depth=Equilibrium(schedule=schedule),
        ),
        training=training,
    )


def wider(recipe: Recipe) -> Recipe:
    """The recipe with a cell of another width."""
    return with_model(recipe, cell=partial(CELL, d_model=24))


def with_data(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with other options of its data."""
    assert isinstance(recipe.data, FolderText)
    return replace(recipe, data=replace(recipe.data, **changes))


def with_model(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with other options of its model."""
    return replace(recipe, model=replace(recipe.model, **changes))


def tiny_trainer(recipe: Recipe, console: Console | None = None) -> Trainer:
    """A trainer with a freshly seeded model; silent unless it is given a console."""
    task = opened(recipe.data)
    seed_everything(recipe.training.seed)
    model = build_model(recipe, task.tokenizer.vocabulary_size)
    console = console or Console(quiet=True)
    return Trainer(model, recipe, task, recipe.run.folder, console)


def weights(recipe: Recipe) -> dict[str, Tensor]:
    """Those of a run's last checkpoint."""
    return load_file(RunFolder(recipe.run.folder).checkpoint("last") / "model.safetensors")
