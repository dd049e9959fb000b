"""Where an equilibrium is worth having: tasks that it does beyond what it was trained on, beside networks that cannot.

A study has rows, each a recipe with some keys changed, and readings, on which each trained row is evaluated: at lengths
and budgets other than those of training. Every row is trained with every seed, as a run beside the results file, which
grows by rows and seeds; a run that was interrupted is resumed. A seed that did not learn counts as it is.

    equilibria bench worth STUDY [--rows NAME ...] [--seeds S ...] [--steps N] [--set KEY=VALUE ...] [--threads N]
                                 [--json] [--out FILE] [--picture FILE]
"""

from __future__ import annotations

import warnings
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks._harness import given_keys, options_of, prepare, publish
from benchmarks._race import Results
from benchmarks._worth_studies import STUDIES, Reading, Study
from benchmarks._worth_table import draw, sheet_of
from equilibria.configuration import Recipe, RunRecipe, checked, read_recipe
from equilibria.configuration.comparing import run_difference
from equilibria.errors import UserError
from equilibria.inference.loading import load_run
from equilibria.inference.run_evaluation import Passes, evaluate
from equilibria.measuring.size import size_of
from equilibria.runs.folder import RunFolder
from equilibria.runs.status import RunStatus
from equilibria.training import train

_FIGURES = (
    *("accuracy", "last_accuracy", "sequence_accuracy", "loss", "perplexity", "unconverged"),
    *("evaluations", "residual", "spectral_radius", "evaluations_per_solve", "tokens", "seconds"),
)


def recipes_of(options: Namespace) -> dict[str, Recipe]:
    """The rows that are asked for, by name; a UserError if there is no such row."""
    study = STUDIES[options.study]
    names = options.rows or list(study.rows)
    for name in names:
        if name not in study.rows:
            raise UserError(f"--rows {name}: {options.study} has no such row; it has {', '.join(study.rows)}")
    given: dict[str, object] = dict(given_keys(options.set))
    if options.steps is not None:
        given |= {"training.steps": options.steps, "training.evaluate_every": options.steps}
    found = {}
    for name in names:
        row = study.rows[name]
        changes = {**study.common, **row.changes, **given}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about keys of the depth that a row's own replaces
            found[name] = read_recipe(row.recipe, [f"--{key}={value}" for key, value in changes.items()])
    return found


def trained(recipe: Recipe, console: Console) -> Path:
    """The folder of a recipe's run, trained to the end, from where it was; a UserError if another recipe made it, or a
    signal interrupts it."""
    status = RunStatus(RunFolder(recipe.run.folder))
    if status.started and (difference := run_difference(read_recipe(status.folder.config), recipe)):
        raise UserError(f"{recipe.run.folder} was run with {difference}; remove it, or name another file with --out")
    if status.step < recipe.training.steps:
        result = train(recipe, resume=status.step > 0, console=Console(quiet=True))
        if result.interrupted is not None:
            raise UserError(f"{recipe.run.folder} was interrupted after step {result.step}; the same command goes on")
        console.print(f"{recipe.run.name}: trained")
    return recipe.run.folder


def figures_of(recipe: Recipe, readings: Mapping[str, Reading], console: Console) -> dict[str, Any]:
    """Trains a row and reads all that a study reads."""
    loaded = load_run(trained(recipe, console), "last")
    seconds = [line["seconds"] for line in RunStatus(loaded.folder).evaluations if "seconds" in line]
    found: dict[str, Any] = {"size": asdict(size_of(loaded.model)), "readings": {}}
    found["training_seconds"] = seconds[-1] if seconds else None
    for name, reading in readings.items():
        if not reading.suits(loaded.model):
            continue
        flags = [f"--data.{key}={value}" for key, value in reading.data.items()]
        effort = reading.effort_of(loaded.model)
        passes = Passes(batch_size=reading.batch_size, chunk_length=reading.chunk_length, effort=effort)
        result = evaluate(loaded, passes, checked(loaded.recipe, flags).data).to_json()
        found["readings"][name] = {key: result[key] for key in _FIGURES}
        last, accuracy = result["last_accuracy"], result["accuracy"]
        console.print(f"{recipe.run.name}, {name}: accuracy {accuracy}, at the end {last}")
    return found


def run(options: Namespace, console: Console) -> dict[str, Any]:
    """Trains and reads what the results file lacks; returns everything in it."""
    study: Study = STUDIES[options.study]
    recipes = recipes_of(options)
    readings = {name: repr(reading) for name, reading in study.readings.items()}
    results = Results(options.out, recipes, {"study": options.study, "readings": readings})
    folder = options.out.with_name(f"{options.out.stem}-runs")
    for seed in options.seeds:
        for name in results.missing(recipes, seed):
            named = RunRecipe(name=f"{name}-{seed}", directory=folder)
            seeded = replace(recipes[name], run=named, training=replace(recipes[name].training, seed=seed))
            results.add(name, seed, figures_of(seeded, study.readings, console))
    return {"study": options.study, "about": study.about, "settings": results.settings, "rows": results.rows}


def show(result: dict[str, Any], console: Console) -> None:
    """The table, and what its columns are."""
    sheet_of(result).show(console)


def parse(arguments: list[str]) -> Namespace:
    """The options."""
    parser = options_of("worth", __doc__)
    parser.add_argument("study", choices=sorted(STUDIES), help="what is studied")
    parser.add_argument("--rows", nargs="+", default=[], help="rows of the study; all when left out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="seeds")
    parser.add_argument("--steps", type=int, help="training steps; the recipes' own when left out")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="keys that all rows get")
    parser.add_argument("--picture", type=Path, help="where to draw the result, .svg or .png")
    options = parser.parse_args(arguments)
    options.out = options.out or Path(f"runs/bench/worth-{options.study}.json")
    return options


def main(arguments: list[str]) -> int:
    """Run the benchmark; 0 when it ran."""
    options = parse(arguments)
    result = run(options, prepare(options))
    if options.picture is not None:
        draw(result, options.picture)
    publish("worth", arguments, options, result, show)
    return 0
