"""Rows of a benchmark in training side by side: on the same batches, step by step in turn, in one process.

One may take more steps than another. What is measured goes into a file after every seed, and checkpoints into folders
beside it, so that a benchmark that was interrupted goes on where it was, and several processes can share the seeds.
"""

from __future__ import annotations

import json
import shutil
import statistics
from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from rich.console import Console

from equilibria.cli.progress import ConsoleProgress
from equilibria.configuration import Recipe
from equilibria.configuration.building import build_model
from equilibria.data.batches import Segment
from equilibria.data.prepared import opened
from equilibria.data.tasks.base import Task
from equilibria.errors import UserError
from equilibria.files.durable import save_text
from equilibria.inference.evaluation import Evaluation, TextEvaluation, evaluate_model
from equilibria.measuring.size import size_of
from equilibria.measuring.steps import Contender, saved_by_step
from equilibria.runs.checkpoints import read_checkpoint, save_checkpoint
from equilibria.runs.folder import RunFolder
from equilibria.training.loop import TrainingLoop
from equilibria.training.randomness import random_state, restore_random_state, seed_everything


def check_same_batches(recipes: dict[str, Recipe]) -> None:
    """Raises a UserError where the rows would not see the same batches, as far as each of them gets."""
    first, *others = recipes
    for other in others:
        if settings_of(recipes[other]) != settings_of(recipes[first]):
            raise UserError(
                f"{first} and {other} differ in [data], batches or evaluate_tokens; side by side they must not"
            )


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """What all rows of a result have in common."""
    training = recipe.training
    return {
        "data": _digest(recipe.data),
        "batch_size": training.batch_size * training.accumulation,
        "segment_length": training.segment_length,
        "evaluate_tokens": training.evaluate_tokens,
    }


def _digest(description: object) -> str:
    return sha256(repr(description).encode()).hexdigest()[:16]


class Results:
    """What has been measured so far, in a file.

    Args:
        file: read if it exists.
        recipes: of all rows; what the file has of them must have been measured with the same.
        settings: of all rows of the file.

    Raises:
        UserError: the file is damaged, or of other recipes.
    """

    def __init__(self, file: Path, recipes: dict[str, Recipe], settings: dict[str, Any]) -> None:
        self.file, self.settings = file, settings
        self.rows: dict[str, dict[str, Any]] = {
            name: {"recipe": _digest(recipe), "steps": recipe.training.steps, "seeds": {}}
            for name, recipe in recipes.items()
        }
        if not file.exists():
            return
        try:
            earlier = json.loads(file.read_text(encoding="utf-8"))
            others = [name for name, value in settings.items() if earlier["settings"][name] != value]
            others += [
                name
                for name, row in earlier["rows"].items()
                if name in self.rows and row["recipe"] != self.rows[name]["recipe"]
            ]
            self.rows |= earlier["rows"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
            raise UserError(f"{file} is damaged ({problem!r}); remove it, or name another file with --out") from problem
        if others:
            raise UserError(f"{file} was made with another {others[0]}; remove it, or name another file with --out")

    def write(self) -> None:
        """Writes the file, with the seeds that another process has added to it meanwhile."""
        if self.file.exists():
            for name, row in json.loads(self.file.read_text(encoding="utf-8"))["rows"].items():
                ours = self.rows.setdefault(name, row)
                ours["seeds"] = row["seeds"] | ours["seeds"]
        save_text(self.file, json.dumps({"settings": self.settings, "rows": self.rows}, indent=1) + "\n")

    def missing(self, recipes: dict[str, Recipe], seed: int) -> list[str]:
        """The rows that have not been measured with a seed."""
        return [name for name in recipes if str(seed) not in self.rows[name]["seeds"]]

    def add(self, name: str, seed: int, figures: dict[str, Any]) -> None:
        """Takes figures in and writes the file."""
        self.rows[name]["seeds"][str(seed)] = figures
        self.write()


class Racer:
    """A row in training with one seed; begun anew, or from its last checkpoint. It draws its own random numbers, as if
    it were alone.

    Args:
        recipe: with that seed.
        task: what all train on.
        folder: of its checkpoints.

    Attributes:
        contender: the model in training, and its times.
        curve: validation loss and residual, and the seconds of training they took, every `evaluate_every` steps.
    """

    def __init__(self, recipe: Recipe, task: Task, folder: Path) -> None:
        training = recipe.training
        self._recipe, self._task, self._folder = training, task, RunFolder(folder)
        self.curve: list[dict[str, float | None]] = []
        seed_everything(training.seed)
        model = build_model(recipe, task.tokenizer.vocabulary_size)
        batches = task.training(training.batch_size * training.accumulation, training.segment_length)
        self.contender = Contender(TrainingLoop(model, recipe.training, batches), ())
        if self._folder.index() is not None:
            path = self._folder.checkpoint("last")
            checkpoint = read_checkpoint(path, self.contender.loop.layout)
            self.contender.loop.restore(checkpoint, path)
            self.contender.training.extend(checkpoint.scalars["step_seconds"])  # pyright: ignore[reportArgumentType]
            self.curve.extend(checkpoint.scalars["curve"])  # pyright: ignore[reportArgumentType]
        self._random = random_state(self.contender.loop.device)

    @property
    def done(self) -> int:
        """Steps taken."""
        return self.contender.loop.done

    @property
    def finished(self) -> bool:
        """Whether all steps of the recipe are taken."""
        return self.done >= self._recipe.steps

    def step(self) -> None:
        """Takes a step; its time does not count the evaluation that may follow."""
        restore_random_state(self._random, self.contender.loop.device)
        self.contender.step()
        self._random = random_state(self.contender.loop.device)
        if self.done % self._recipe.evaluate_every == 0 or self.done == self._recipe.steps:
            result = self.evaluation()
            seconds = sum(self.contender.training)
            point = {"step": self.done, "seconds": seconds, "loss": result.loss, "residual": result.residual.mean}
            self.curve.append(point)

    def save(self) -> None:
        """Writes a checkpoint, with the times of the steps so far."""
        restore_random_state(self._random, self.contender.loop.device)
        self._folder.path.mkdir(parents=True, exist_ok=True)
        loop = self.contender.loop
        checkpoint = loop.checkpoint()
        scalars = {**checkpoint.scalars, "step_seconds": self.contender.training, "curve": self.curve}
        save_checkpoint(self._folder, self.done, loop.weights(), replace(checkpoint, scalars=scalars), best=False)

    def evaluation(self) -> Evaluation:
        """Of the model as it is, on the recipe's validation tokens."""
        recipe, valid = self._recipe, self._task.split("valid")
        sizes = recipe.batch_size, recipe.segment_length
        loop = self.contender.loop
        return evaluate_model(loop.evaluated, valid, *sizes, max_tokens=recipe.evaluate_tokens, depth=loop.depth)

    def validation(self) -> Iterable[Segment]:
        """The validation tokens of the recipe."""
        recipe, valid = self._recipe, self._task.split("valid")
        return valid.segments(recipe.batch_size, recipe.segment_length, recipe.evaluate_tokens)

    def figures(self) -> dict[str, Any]:
        """What is measured of every trained row."""
        model, recipe, result = self.contender.loop.evaluated, self._recipe, self.evaluation()
        batches = self._task.training(recipe.batch_size, recipe.segment_length)
        tokens = recipe.accumulation * batches.at(0).inputs.numel()
        return {
            "loss": result.loss,
            "perplexity": result.perplexity,
            "word_perplexity": result.word_perplexity if isinstance(result, TextEvaluation) else None,
            "residual": result.residual.mean,
            "evaluations_per_solve": result.evaluations_per_solve,
            "unconverged": result.unconverged,
            "training_seconds_per_token": statistics.median(self.contender.training) / tokens,
            "training_seconds": sum(self.contender.training),
            "evaluation_seconds_per_token": result.seconds / result.tokens,
            "saved_bytes": saved_by_step(self.contender.loop.model, batches),
            "size": asdict(size_of(model)),
            "curve": self.curve,
        }


def race(racers: dict[str, Racer], checkpoint_every: int, console: Console) -> None:
    """Takes all steps, in turn, another first each time; one that is behind the others catches up first."""
    names = list(racers)
    while unfinished := [name for name in names if not racers[name].finished]:
        done = min(racers[name].done for name in unfinished)
        first = done % len(names)
        behind = [name for name in (*names[first:], *names[:first]) if name in unfinished and racers[name].done == done]
        for name in behind:
            racers[name].step()
        due = (done + 1) % checkpoint_every == 0
        for name in behind:
            if due or racers[name].finished:
                racers[name].save()
        if due or all(racer.finished for racer in racers.values()):
            spent = (f"{name} {sum(racers[name].contender.training):,.0f} s" for name in names)
            console.print(f"step {done + 1}: {', '.join(spent)}")


def run(
    options: Namespace, recipes: dict[str, Recipe], console: Console, figures_of: Callable[[Racer], dict[str, Any]]
) -> dict[str, Any]:
    """Trains and measures what the results file lacks; returns everything in it.

    Args:
        options: `out`, `seeds` and `checkpoint_every`.
        recipes: of the rows, by name.
        console: where to say how far it is.
        figures_of: what is measured of a trained row.
    """
    check_same_batches(recipes)
    any_recipe = next(iter(recipes.values()))
    results = Results(options.out, recipes, settings_of(any_recipe))
    results.write()  # so that checkpoints are never gone on with by other recipes
    task = opened(any_recipe.data, ConsoleProgress(console))
    for seed in options.seeds:
        checkpoints = options.out.with_name(f"{options.out.name}.checkpoints-{seed}")
        names = results.missing(recipes, seed)
        racers = {name: Racer(_seeded(recipes[name], seed), task, checkpoints / name) for name in names}
        if racers:
            console.print(f"seed {seed}: {', '.join(names)}")
            race(racers, options.checkpoint_every, console)
        for name, racer in racers.items():
            figures = figures_of(racer)
            results.add(name, seed, figures)
            console.print(f"{name}, seed {seed}: loss {figures['loss']:.4f}")
        shutil.rmtree(checkpoints, ignore_errors=True)
    results.write()
    return {"data": task.name, "settings": results.settings, "rows": results.rows}


def _seeded(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with that seed."""
    return replace(recipe, training=replace(recipe.training, seed=seed))
