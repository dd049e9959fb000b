"""The smallest real run: a few kilobytes of text, bytes as tokens, a cell of width 16."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from equilibria.configuration import (
    CellRecipe,
    DataRecipe,
    DepthRecipe,
    EmbeddingRecipe,
    ModelRecipe,
    Recipe,
    RunRecipe,
    ScheduleRecipe,
    TrainingRecipe,
    build_model,
    build_task,
)
from equilibria.inference.run_folder import RunFolder
from equilibria.training.randomness import seed_everything
from equilibria.training.trainer import Trainer

_SENTENCES = (
    "the cat sat on the mat and looked at the moon",
    "a fixed point is where a map returns what it was given",
    "nobody knows how many times the bell rang that night",
)

TRAINING = TrainingRecipe(
    steps=12,
    batch_size=2,
    segment_length=16,
    learning_rate=3e-3,
    warmup_steps=2,
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
        data=DataRecipe(source="folder", path=text, tokenizer="bytes", cache=base / "cache"),
        model=ModelRecipe(cell=CellRecipe(d_model=16, heads=2, inner=32, dropout=0.1), memory_length=8),
        training=training,
    )


def tiny_task_recipe(base: Path, training: TrainingRecipe = TRAINING, name: str = "task") -> Recipe:
    """The same about copy memory, by an equilibrium whose limits and penalty change, with dropout."""
    schedule = ScheduleRecipe(
        warmup_steps=3, limits="random", least_evaluations=2, most_evaluations=4, residual_weight=0.1
    )
    cell = CellRecipe(d_model=16, heads=2, inner=32, dropout=0.1, query_key_gain=2.0)
    return Recipe(
        run=RunRecipe(name=name, directory=base / "runs"),
        data=DataRecipe(source="copy_memory", blanks=5, symbols=3, held_out=50),
        model=ModelRecipe(embedding=EmbeddingRecipe(kind="untied"), cell=cell, depth=DepthRecipe(schedule=schedule)),
        training=training,
    )


def wider(recipe: Recipe) -> Recipe:
    """The recipe with a cell of another width."""
    return replace(recipe, model=replace(recipe.model, cell=replace(recipe.model.cell, d_model=24)))


def tiny_trainer(recipe: Recipe, console: Console | None = None) -> Trainer:
    """A trainer with a freshly seeded model; silent unless it is given a console."""
    task = build_task(recipe)
    seed_everything(recipe.training.seed)
    model = build_model(recipe, task.tokenizer.vocabulary_size)
    console = console or Console(quiet=True)
    return Trainer(model, recipe, task, recipe.run.folder, console)


def weights(recipe: Recipe) -> dict[str, Tensor]:
    """Those of a run's last checkpoint."""
    return load_file(RunFolder(recipe.run.folder).checkpoint("last") / "model.safetensors")
