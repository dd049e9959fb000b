"""Perplexity against evaluations per token, by the rule that lets tokens go.

One trained model reads the same text once for every rule and setting: tokens leave once they have converged, once
their prediction does not change any more, or all after a fixed budget. `together` is the recipe's own solver for
evaluation at the tolerances of the first rule: what its slowest token needs, every token of the segment pays.

    equilibria bench tradeoff RUN [--json] [--tokens N] [--segment-length N] [--picture FILE] [--out FILE]
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks._harness import options_of, prepare, publish, save_picture
from equilibria.depths import Adaptive, Depth, Equilibrium, ExitAfter, ExitOnChange, ExitOnResidual
from equilibria.inference.evaluation import evaluate_model
from equilibria.inference.loading import load_run, load_task
from equilibria.models import LanguageModel

TOLERANCES = (3e-1, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3)
DIVERGENCES = (1e-1, 3e-2, 1e-2, 1e-3, 1e-4)
BUDGETS = (2, 3, 4, 5, 6, 8, 10)
MOST = 40
COLOURS = {"converged": "#2f6fd0", "unchanged": "#d2601a", "budget": "#7d8590", "together": "#2b9348"}


def depths(trained: Equilibrium) -> Iterator[tuple[str, float, Depth]]:
    """Each rule with its setting."""
    for tol in TOLERANCES:
        # Tokens may leave from the first evaluation on: that is what is measured.
        yield "converged", tol, Adaptive(ExitOnResidual(tol), MOST, together=1)
        yield "together", tol, replace(trained, eval_solver=replace(trained.eval_solver, tol=tol, max_evaluations=MOST))
    for divergence in DIVERGENCES:
        yield "unchanged", divergence, Adaptive(ExitOnChange(divergence), MOST, together=1)
    for budget in BUDGETS:
        yield "budget", budget, Adaptive(ExitAfter(budget), MOST)


def measure(model: LanguageModel, text: Any, options: Namespace, console: Console) -> list[dict[str, Any]]:
    """A point for each rule and setting."""
    trained, points = model.depth, []
    assert isinstance(trained, Equilibrium)
    for rule, setting, depth in depths(trained):
        start = time.process_time()
        result = evaluate_model(
            model, text, options.rows, options.segment_length, max_tokens=options.tokens, depth=depth
        )
        per_token = result.evaluations_per_solve if rule == "together" else result.evaluations.mean
        points.append(
            {
                "rule": rule,
                "setting": setting,
                "evaluations_per_token": per_token,
                "perplexity": result.perplexity,
                "mean_residual": result.residual.mean,
                "tokens": result.tokens,
                "cpu_seconds": time.process_time() - start,
            }
        )
        console.print(f"{rule} {setting:g}: perplexity {result.perplexity:.3f} at {per_token:.2f} evaluations")
    return points


def draw(points: list[dict[str, Any]], title: str, path: Path) -> None:
    """The picture: a curve for each rule."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for rule, colour in COLOURS.items():
        chosen = sorted((p["evaluations_per_token"], p["perplexity"]) for p in points if p["rule"] == rule)
        label = "together (recipe's solver)" if rule == "together" else rule
        axes.plot(*zip(*chosen, strict=True), marker="o", markersize=4, color=colour, label=label)
    axes.set_xlabel("evaluations per token")
    axes.set_ylabel("perplexity per token")
    best = min(point["perplexity"] for point in points)
    axes.set_ylim(0.995 * best, 1.12 * best)  # what is worse is in the table
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(title="tokens leave when")
    save_picture(figure, path)


def show(result: dict, console: Console) -> None:
    """The table a person reads."""
    table = Table("rule", "setting", "evaluations per token", "perplexity", "mean residual", "CPU s")
    for point in result["points"]:
        table.add_row(
            point["rule"],
            f"{point['setting']:g}",
            f"{point['evaluations_per_token']:.2f}",
            f"{point['perplexity']:.3f}",
            f"{point['mean_residual']:.1e}",
            f"{point['cpu_seconds']:.1f}",
        )
    console.print(table)


def parse(arguments: list[str]) -> Namespace:
    """The options."""
    parser = options_of("tradeoff", __doc__)
    parser.add_argument("run", type=Path, help="folder of a trained run at equilibrium")
    parser.add_argument("--tokens", type=int, default=8192, help="validation tokens that are read")
    parser.add_argument("--rows", type=int, default=4, help="read side by side")
    parser.add_argument("--segment-length", type=int, default=256, help="tokens per solve")
    parser.add_argument("--picture", type=Path, help="where to draw it, .svg or .png")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the benchmark; 0 when it ran."""
    options = parse(arguments)
    console = prepare(options)
    run = load_run(options.run)
    assert isinstance(run.model, LanguageModel)
    points = measure(run.model, load_task(run).split("valid"), options, console)
    title = (
        f"{run.recipe.run.name}, {run.checkpoint.name}: width {run.model.cell.d_model}, {points[0]['tokens']} tokens"
    )
    if options.picture is not None:
        draw(points, title, options.picture)
    publish("tradeoff", arguments, options, {"model": title, "points": points}, show)
    return 0
