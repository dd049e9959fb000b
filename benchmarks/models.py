"""Language models of one size side by side: every recipe of a folder, on the same batches, step by step in turn.

What is measured goes into the file that --out names, after every seed, and checkpoints into a folder beside it, so that
a benchmark that was interrupted goes on where it was.

    equilibria bench models [--recipes FOLDER] [--data-path FOLDER] [--steps N] [--seeds S ...] [--rows NAME ...]
                            [--evaluate-tokens N] [--checkpoint-every N] [--threads N] [--json] [--out FILE]
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
from argparse import Namespace
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks._harness import options_of, prepare, publish
from equilibria.configuration import Recipe, build_depth_schedule, build_model, build_task, read_recipe
from equilibria.data.task import Task
from equilibria.errors import UserError
from equilibria.inference.evaluation import TextEvaluation, evaluate
from equilibria.inference.run_folder import RunFolder
from equilibria.reproduction.measuring import Contender, saved_by_step, size_of
from equilibria.reproduction.runs import write_text
from equilibria.reproduction.sheet import Sheet, count, form
from equilibria.training.checkpoint import read_checkpoint, save_checkpoint
from equilibria.training.loop import TrainingLoop
from equilibria.training.randomness import random_state, restore_random_state, seed_everything

RECIPES = Path(__file__).parents[1] / "recipes" / "english-4m"


def recipes_of(options: Namespace) -> dict[str, Recipe]:
    """The recipes of the rows that are asked for, with what the options change, by name.

    Raises:
        UserError: there is no such row, or the rows would not see the same batches.
    """
    files = {path.stem: path for path in sorted(options.recipes.glob("*.toml"))}
    for name in options.rows:
        if name not in files:
            raise UserError(f"--rows {name}: {options.recipes} has no such recipe; it has {', '.join(files) or 'none'}")
    flags = [] if options.data_path is None else ["--data.path", str(options.data_path)]
    flags += [] if options.steps is None else ["--training.steps", str(options.steps)]
    flags += [] if options.evaluate_tokens is None else ["--training.evaluate_tokens", str(options.evaluate_tokens)]
    recipes = {
        name: read_recipe(path, flags) for name, path in files.items() if not options.rows or name in options.rows
    }
    if not recipes:
        raise UserError(f"there is no recipe in {options.recipes}; name a folder of recipes with --recipes")
    first, *others = recipes
    for other in others:
        if settings_of(recipes[other]) != settings_of(recipes[first]):
            raise UserError(
                f"{first} and {other} differ in [data], steps, batches or evaluate_tokens; side by side they must not"
            )
    return recipes


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """What all rows of a result have in common."""
    training = recipe.training
    return {
        "data": _digest(recipe.data),
        "steps": training.steps,
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
            name: {"recipe": _digest(recipe), "seeds": {}} for name, recipe in recipes.items()
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
        write_text(self.file, json.dumps({"settings": self.settings, "rows": self.rows}, indent=1) + "\n")

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
    """

    def __init__(self, recipe: Recipe, task: Task, folder: Path) -> None:
        training = recipe.training
        self._recipe, self._task, self._folder = training, task, RunFolder(folder)
        seed_everything(training.seed)
        model = build_model(recipe, task.tokenizer.vocabulary_size)
        batches = task.training(training.batch_size * training.accumulation, training.segment_length)
        self.contender = Contender(TrainingLoop(model, recipe.training, batches, build_depth_schedule(recipe)), ())
        if self._folder.index() is not None:
            path = self._folder.checkpoint("last")
            checkpoint = read_checkpoint(path)
            self.contender.loop.restore(checkpoint, path)
            self.contender.training.extend(checkpoint.scalars["step_seconds"])  # pyright: ignore[reportArgumentType]
        self._random = random_state(self.contender.loop.device)

    @property
    def done(self) -> int:
        """Steps taken."""
        return self.contender.loop.done

    def step(self) -> None:
        """Takes a step."""
        restore_random_state(self._random, self.contender.loop.device)
        self.contender.step()
        self._random = random_state(self.contender.loop.device)

    def save(self) -> None:
        """Writes a checkpoint, with the times of the steps so far."""
        restore_random_state(self._random, self.contender.loop.device)
        self._folder.path.mkdir(parents=True, exist_ok=True)
        checkpoint = self.contender.loop.checkpoint()
        scalars = {**checkpoint.scalars, "step_seconds": self.contender.training}
        save_checkpoint(self._folder, self.done, replace(checkpoint, scalars=scalars), best=False)

    def figures(self) -> dict[str, Any]:
        """Everything that is measured of a trained row."""
        model = self.contender.loop.evaluated
        recipe, valid = self._recipe, self._task.split("valid")
        sizes = recipe.batch_size, recipe.segment_length
        result, batches = evaluate(model, valid, *sizes, max_tokens=recipe.evaluate_tokens), self._task.training(*sizes)
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
        }


def race(racers: dict[str, Racer], steps: int, checkpoint_every: int, console: Console) -> None:
    """Takes all steps, in turn, another first each time; one that is behind the others catches up first."""
    names = list(racers)
    while (done := min(racer.done for racer in racers.values())) < steps:
        first = done % len(names)
        behind = [name for name in (*names[first:], *names[:first]) if racers[name].done == done]
        for name in behind:
            racers[name].step()
        if (done + 1) % checkpoint_every == 0 or done + 1 == steps:
            for name in behind:
                racers[name].save()
            spent = (f"{name} {sum(racers[name].contender.training):,.0f} s" for name in names)
            console.print(f"step {done + 1} of {steps}: {', '.join(spent)}")


def measure(options: Namespace, console: Console) -> dict[str, Any]:
    """Trains and evaluates what the results file lacks; returns everything in it."""
    recipes = recipes_of(options)
    any_recipe = next(iter(recipes.values()))
    results = Results(options.out, recipes, settings_of(any_recipe))
    results.write()  # so that checkpoints are never gone on with by other recipes
    task = build_task(any_recipe, console.out)
    for seed in options.seeds:
        checkpoints = options.out.with_name(f"{options.out.name}.checkpoints-{seed}")
        names = results.missing(recipes, seed)
        racers = {name: Racer(seeded(recipes[name], seed), task, checkpoints / name) for name in names}
        if racers:
            console.print(f"seed {seed}: {', '.join(names)}")
            race(racers, any_recipe.training.steps, options.checkpoint_every, console)
        for name, racer in racers.items():
            figures = racer.figures()
            results.add(name, seed, figures)
            console.print(f"{name}, seed {seed}: perplexity {figures['perplexity']:.2f}")
        shutil.rmtree(checkpoints, ignore_errors=True)
    results.write()
    return {"data": task.name, "settings": results.settings, "rows": results.rows}


def seeded(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with that seed."""
    return replace(recipe, training=replace(recipe.training, seed=seed))


def sheet_of(result: dict[str, Any]) -> Sheet:
    """The table a person reads: means over seeds, best first."""
    rows = []
    for name, row in result["rows"].items():
        seeds = list(row["seeds"].values())

        def mean(figure: str, of: list[dict[str, Any]] = seeds) -> float | None:
            values = [seed[figure] for seed in of if seed[figure] is not None]
            return statistics.fmean(values) if values else None

        perplexities = [seed["perplexity"] for seed in seeds]
        spread = f" ± {statistics.stdev(perplexities):.2f} ({len(seeds)})" if len(seeds) > 1 else ""
        entries = [
            name,
            f"{form(mean('perplexity'), '.2f')}{spread}",
            form(mean("word_perplexity"), ".1f"),
            form(_scaled(mean("training_seconds_per_token"), 1e6), ".0f"),
            form(_scaled(mean("saved_bytes"), 1e-6), ".3g"),
            form(mean("residual"), ".0e"),
            form(mean("evaluations_per_solve"), ".1f"),
            count(seeds[0]["size"]["inner"] if seeds else None),
        ]
        rows.append((statistics.fmean(perplexities) if seeds else float("inf"), entries))
    steps, *shape = (result["settings"][name] for name in ("steps", "batch_size", "segment_length"))
    tokens = math.prod([steps, *shape])
    title = f"{result['data']}: {steps:,} steps, {tokens:,} tokens"
    notes = [
        "perplexity: of validation text by token: mean over seeds, their standard deviation and number; and by word.",
        "µs: per token of training, median step. MB: saved for a step's backward pass, without softmax and weights.",
        "residual: mean per token. eval.: evaluations of the cell per solve. inner: parameters outside the embedding.",
    ]
    headers = ["model", "perplexity", "word", "µs", "MB", "residual", "eval.", "inner"]
    return Sheet(title, headers, [entries for _, entries in sorted(rows, key=lambda row: row[0])], notes)


def _scaled(figure: float | None, factor: float) -> float | None:
    return None if figure is None else figure * factor


def show(result: dict[str, Any], console: Console) -> None:
    """The table, and what its columns are."""
    sheet = sheet_of(result)
    console.print(sheet.drawn())
    for note in sheet.notes:
        console.print(note, highlight=False)


def parse(arguments: list[str]) -> Namespace:
    """The options."""
    parser = options_of("models", __doc__)
    parser.add_argument("--recipes", type=Path, default=RECIPES, help="folder of recipes; every one is a row")
    parser.add_argument("--data-path", type=Path, help="folder of train/valid text instead of the recipes' own")
    parser.add_argument("--steps", type=int, help="training steps of each instead of the recipes' own")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds; several processes may share them"
    )
    parser.add_argument("--rows", nargs="+", default=[], help="names of recipes; all if left out")
    parser.add_argument("--evaluate-tokens", type=int, help="validation tokens at most")
    parser.add_argument("--checkpoint-every", type=int, default=250, help="steps between checkpoints")
    parser.set_defaults(out=Path("runs/bench/models.json"))
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the benchmark; 0 when it ran."""
    options = parse(arguments)
    result = measure(options, prepare(options))
    write_text(options.out.with_suffix(".md"), sheet_of(result).markdown())
    publish("models", arguments, options, result, show)
    return 0
