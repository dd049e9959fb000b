"""Language models of one size side by side: every recipe of a folder, on the same batches, step by step in turn.

What is measured goes into the file that --out names, after every seed, and checkpoints into a folder beside it, so that
a benchmark that was interrupted goes on where it was.

    equilibria bench models [--recipes FOLDER] [--data-path FOLDER] [--steps N] [--seeds S ...] [--rows NAME ...]
                            [--evaluate-tokens N] [--checkpoint-every N] [--threads N] [--json] [--out FILE]
"""

from __future__ import annotations

import math
import statistics
from argparse import Namespace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks._harness import options_of, prepare, publish
from benchmarks._race import Racer, run
from equilibria.configuration import Recipe, read_recipe
from equilibria.configuration.shipped import FOLDER
from equilibria.errors import UserError
from equilibria.files.durable import save_text
from equilibria.paper.sheet import Sheet, count, form

RECIPES = FOLDER / "english-4m"


def recipes_of(options: Namespace) -> dict[str, Recipe]:
    """The recipes of the rows that are asked for, with what the options change, by name.

    Raises:
        UserError: there is no such row, or not all take as many steps.
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
    if len(steps := {recipe.training.steps for recipe in recipes.values()}) > 1:
        raise UserError(f"the recipes take different numbers of steps, {sorted(steps)}; give one with --steps")
    return recipes


def sheet_of(result: dict[str, Any]) -> Sheet:
    """The table a person reads: means over seeds, best first."""
    rows = []
    for name, row in result["rows"].items():
        seeds = list(row["seeds"].values())

        def mean(figure: str, of: list[dict[str, Any]] = seeds) -> float | None:
            values = [seed[figure] for seed in of if seed[figure] is not None]
            return statistics.fmean(values) if values else None

        perplexities = [seed["perplexity"] for seed in seeds]
        spread = f" ± {statistics.stdev(perplexities):.1f} ({len(seeds)})" if len(seeds) > 1 else ""
        entries = [
            name,
            f"{form(mean('perplexity'), '.1f')}{spread}",
            form(_scaled(mean("training_seconds_per_token"), 1e6), ".0f"),
            form(_scaled(mean("saved_bytes"), 1e-6), ".3g"),
            form(mean("residual"), ".0e"),
            form(mean("evaluations_per_solve"), ".1f"),
            count(seeds[0]["size"]["inner"] if seeds else None),
        ]
        rows.append((statistics.fmean(perplexities) if seeds else float("inf"), entries))
    steps = next(iter(result["rows"].values()))["steps"]
    tokens = math.prod([steps, *(result["settings"][name] for name in ("batch_size", "segment_length"))])
    title = f"{result['data']}: {steps:,} steps, {tokens:,} tokens"
    notes = [
        "perplexity: of validation text, per token; mean over seeds, their standard deviation and number.",
        "µs: per token of training, median step. MB: saved for a step's backward pass, without softmax and weights.",
        "resid.: mean per token. eval.: evaluations of the cell per solve. inner: parameters outside the embedding.",
    ]
    headers = ["model", "perplexity", "µs", "MB", "resid.", "eval.", "inner"]
    return Sheet(title, headers, [entries for _, entries in sorted(rows, key=lambda row: row[0])], notes)


def _scaled(figure: float | None, factor: float) -> float | None:
    return None if figure is None else figure * factor


def show(result: dict[str, Any], console: Console) -> None:
    """The table, and what its columns are."""
    sheet_of(result).show(console)


def parse(arguments: list[str]) -> Namespace:
    """The options."""
    parser = options_of("models", __doc__)
    parser.add_argument("--recipes", type=Path, default=RECIPES, help="folder of recipes; every one is a row")
    parser.add_argument("--data-path", type=Path, help="folder of train/valid text instead of the recipes' own")
    parser.add_argument("--steps", type=int, help="training steps of each instead of the recipes' own")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds; several processes may share them"
    )
    parser.add_argument("--rows", nargs="+", default=[], help="names of recipes; default: all")
    parser.add_argument("--evaluate-tokens", type=int, help="validation tokens at most")
    parser.add_argument("--checkpoint-every", type=int, default=250, help="steps between checkpoints")
    parser.set_defaults(out=Path("runs/bench/models.json"))
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the benchmark; 0 when it ran."""
    options = parse(arguments)
    result = run(options, recipes_of(options), prepare(options), Racer.figures)
    save_text(options.out.with_suffix(".md"), sheet_of(result).markdown())
    publish("models", arguments, options, result, show)
    return 0
