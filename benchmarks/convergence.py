"""Evaluations that each solver needs on a trained model, from zero, on its validation text.

The figure is the mean over tokens of the residual of the iterate that each evaluation was made at, whatever the
solver's own groups are, so that scopes can be compared.

    equilibria bench convergence --run RUN [--json] [--batches N] [--budget N] [--threads N] [--out FILE]
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import equilibria as eq
from benchmarks._harness import options_of, prepare, publish
from benchmarks._solved import injected
from equilibria.cli.progress import ConsoleProgress
from equilibria.errors import UserError
from equilibria.inference.loading import load_run, load_task
from equilibria.models import LanguageModel
from equilibria.solvers import Solver
from equilibria.solvers.residual import relative_residual

TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5)


def contenders(budget: int) -> dict[str, Solver]:
    """Every solver by name; none stops before its budget."""
    return {
        "picard": eq.Picard(tol=0.0, max_evaluations=budget, scope="prefix"),
        "anderson, prefix": eq.Anderson(tol=0.0, max_evaluations=budget, scope="prefix"),
        "anderson, sample": eq.Anderson(tol=0.0, max_evaluations=budget),
        "anderson, token": eq.Anderson(tol=0.0, max_evaluations=budget, scope="token"),
        "anderson 5, prefix": eq.Anderson(tol=0.0, max_evaluations=budget, history=5, scope="prefix"),
        "anderson 5, sample": eq.Anderson(tol=0.0, max_evaluations=budget, history=5),
        "broyden, prefix": eq.Broyden(tol=0.0, max_evaluations=budget, scope="prefix"),
        "broyden, sample": eq.Broyden(tol=0.0, max_evaluations=budget),
    }


@torch.no_grad()
def trace(model: LanguageModel, tokens: Tensor, solver: Solver) -> list[float]:
    """Mean residual over tokens at each evaluation of one batch."""
    inputs = injected(model, tokens)
    bound = model.cell.bind(inputs)
    found: list[float] = []

    def watched(z: Tensor) -> Tensor:
        value = bound(z)
        found.append(float(relative_residual(value, z).mean()))
        return value

    solver.solve(watched, model.cell.initial_state(inputs))
    return found


def measure(options: Namespace, console: Console) -> dict[str, Any]:
    """The mean trace of every solver, and when it passes each tolerance."""
    run = load_run(options.run)
    model = run.model
    if not isinstance(model, LanguageModel):
        raise UserError(f"{options.run} is a baseline's run, which solves nothing")
    recipe = run.recipe.training
    stream = load_task(run, ConsoleProgress(console)).split("valid").segments(recipe.batch_size, recipe.segment_length)
    batches = [segment.inputs for segment, _ in zip(stream, range(options.batches), strict=False)]
    found: dict[str, Any] = {}
    for name, solver in contenders(options.budget).items():
        traces = torch.tensor([trace(model, tokens, solver)[: options.budget] for tokens in batches])
        mean = traces.mean(dim=0).tolist()
        # The iterate measured by evaluation n has cost n − 1 of them; n are needed to know that it is good.
        reached = {f"{tol:g}": next((n for n, r in enumerate(mean, 1) if r <= tol), None) for tol in TOLERANCES}
        found[name] = {"evaluations": reached, "trace": mean}
        console.print(f"{name}: done")
    return {"run": run.folder.path.name, "step": run.step, "batches": len(batches), "solvers": found}


def show(result: dict[str, Any], console: Console) -> None:
    """The table a person reads."""
    title = f"{result['run']} after {result['step']} steps: evaluations to a mean residual"
    table = Table("solver", *(f"{tol:g}" for tol in TOLERANCES), "after 16", "after 32", title=title)
    for name, figures in result["solvers"].items():
        reached = (str(figures["evaluations"][f"{tol:g}"] or "–") for tol in TOLERANCES)
        late = (f"{figures['trace'][n - 1]:.1e}" if n <= len(figures["trace"]) else "" for n in (16, 32))
        table.add_row(name, *reached, *late)
    console.print(table)


def main(arguments: list[str]) -> int:
    """Run the benchmark; 0 when it ran."""
    parser = options_of("convergence", __doc__)
    parser.add_argument("--run", type=Path, required=True, help="the folder of a trained run")
    parser.add_argument("--batches", type=int, default=4, help="batches of validation text")
    parser.add_argument("--budget", type=int, default=48, help="evaluations of each solve")
    options = parser.parse_args(arguments)
    publish("convergence", arguments, options, measure(options, prepare(options)), show)
    return 0
