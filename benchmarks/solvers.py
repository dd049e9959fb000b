"""The solvers beside those of TorchDEQ 0.1.0: evaluations, time, time outside the map, memory, training, future leak.

Same map, same start, same tolerance, in turn in one process, so that the noise of the machine meets both. The maps are
the 2019 post-norm cell and the default cell, as initialised, on random inputs.

    equilibria bench solvers [--json] [--repeats N] [--batch B] [--length L] [--d-model D] [--threads N] [--out FILE]
"""

from __future__ import annotations

import importlib
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import equilibria as eq
from benchmarks._harness import options_of, prepare, publish, spread
from equilibria.cells import Cell, ContractiveCell, TransformerXLCell
from equilibria.errors import UserError
from equilibria.measuring.memory import Watch
from equilibria.solvers import Solver

TOLERANCES = (1e-2, 1e-3, 1e-4)
BUDGET = 60
OURS: dict[str, Solver] = {
    "picard": eq.Picard(),
    "anderson": eq.Anderson(history=3),
    "broyden": eq.Broyden(history=16),
}
DRAFT = eq.Draft()
THEIRS = {"picard": "fixed_point_iter", "anderson": "anderson", "broyden": "broyden"}
Solve = Callable[[Callable[[Tensor], Tensor], Tensor, float, int], Tensor]


@dataclass
class Watched:
    """A map that notes how often it was applied and how long that took."""

    f: Callable[[Tensor], Tensor]
    calls: int = 0
    seconds: float = 0.0

    def __call__(self, z: Tensor) -> Tensor:
        start = time.perf_counter()
        value = self.f(z)
        self.seconds += time.perf_counter() - start
        self.calls += 1
        return value


def peer() -> Any:
    """TorchDEQ; a UserError where it is missing."""
    try:
        return importlib.import_module("torchdeq")
    except ImportError as error:
        raise UserError(
            "this benchmark compares with torchdeq, which is not installed: pip install --no-deps torchdeq==0.1.0"
        ) from error


def contestants(torchdeq: Any) -> dict[str, Solve]:
    """Every solver by name: ours in both scopes and from a draft; TorchDEQ's as they come, and its Anderson also with
    as many differences as ours."""

    def ours(solver: Solver) -> Solve:
        return lambda f, z0, tol, budget: (
            replace(solver, tol=tol, max_evaluations=budget).solve(f, z0).value.reshape(z0.shape)
        )

    def theirs(name: str, **options: int) -> Solve:
        method = torchdeq.get_solver(name)
        return lambda f, z0, tol, budget: method(f, z0, max_iter=budget, tol=tol, stop_mode="rel", **options)[0]

    found = {}
    for name, solver in OURS.items():
        found[f"{name}, sample"] = ours(solver)
        found[f"{name}, prefix"] = ours(replace(solver, scope="prefix"))
        found[f"{name}, sample, draft"] = ours(replace(solver, draft=DRAFT))
        found[f"{name}, prefix, draft"] = ours(replace(solver, scope="prefix", draft=DRAFT))
        found[f"{name}, torchdeq"] = theirs(THEIRS[name])
    found["anderson m 4, torchdeq"] = theirs("anderson", m=4)
    return found


def cells(options: Namespace) -> dict[str, Cell]:
    """The two maps, seeded."""
    width, heads = options.d_model, max(1, options.d_model // 32)
    torch.manual_seed(0)
    return {
        "post-norm": TransformerXLCell(width, heads, 4 * width),
        "default": ContractiveCell(width, heads, 4 * width),
    }


@torch.no_grad()
def race(f: Callable[[Tensor], Tensor], z0: Tensor, solvers: dict[str, Solve], repeats: int) -> dict[str, Any]:
    """Solve to each tolerance in turn; the order turns round from one repetition to the next."""
    found: dict[str, Any] = {}
    for tol in TOLERANCES:
        runs: dict[str, list[tuple[float, float, int]]] = {name: [] for name in solvers}
        reached = {}
        for repeat in range(repeats + 1):
            for name in list(solvers)[:: 1 if repeat % 2 else -1]:
                watched = Watched(f)
                start = time.perf_counter()
                value = solvers[name](watched, z0, tol, BUDGET)
                runs[name].append((time.perf_counter() - start, watched.seconds, watched.calls))
                if repeat == 0:  # the first run warms up
                    difference = (f(value) - value).flatten(1)
                    reached[name] = float((difference.norm(dim=1) / f(value).flatten(1).norm(dim=1)).max())
        found[f"{tol:g}"] = {
            name: {
                "evaluations": measured[-1][2],
                "residual": reached[name],
                "seconds": spread([total for total, _, _ in measured[1:]]),
                "overhead": spread([(total - inside) / inside for total, inside, _ in measured[1:]]),
            }
            for name, measured in runs.items()
        }
    return found


@torch.no_grad()
def overhead(f: Callable[[Tensor], Tensor], z0: Tensor, solvers: dict[str, Solve], repeats: int) -> dict[str, Any]:
    """Time outside the map over time inside, when 24 evaluations are made whatever the residual."""
    runs: dict[str, list[float]] = {name: [] for name in solvers}
    for repeat in range(repeats + 1):
        for name in list(solvers)[:: 1 if repeat % 2 else -1]:
            watched = Watched(f)
            start = time.perf_counter()
            solvers[name](watched, z0, 0.0, 24)
            runs[name].append((time.perf_counter() - start - watched.seconds) / watched.seconds)
    return {name: spread(ratios[1:]) for name, ratios in runs.items()}


@torch.no_grad()
def solver_bytes(f: Callable[[Tensor], Tensor], z0: Tensor, solvers: dict[str, Solve]) -> dict[str, Any]:
    """The most bytes a solver has alive at once, by its budget, without what the map allocates."""
    found: dict[str, Any] = {}
    for name, solve in solvers.items():
        for budget in (20, 40, 80):
            live = Watch()

            def counted(z: Tensor, live: Watch = live) -> Tensor:
                live.paused = True
                value = f(z)
                live.paused = False
                return value

            with live:
                solve(counted, z0, 0.0, budget)
            found.setdefault(name, {})[str(budget)] = live.peak
    return found


@torch.no_grad()
def leaks(cell: Cell, inputs: Tensor, solvers: dict[str, Solve]) -> dict[str, float]:
    """The largest change in the first half of a solution when the second half of the input is another."""
    half = inputs.shape[1] // 2
    other = inputs.clone()
    other[:, half:] = torch.randn(other[:, half:].shape, generator=torch.Generator().manual_seed(2))
    maps = [cell.bind(x) for x in (inputs, other)]
    found = {}
    for name, solve in solvers.items():
        changes = []
        for budget in (3, 6, 12):
            one, two = (solve(bound, cell.initial_state(inputs), 1e-3, budget) for bound in maps)
            changes.append(float((one - two)[:, :half].abs().max()))
        found[name] = max(changes)
    return found


def training(cell: Cell, inputs: Tensor, torchdeq: Any, repeats: int) -> dict[str, Any]:
    """Seconds of a forward and backward pass with the implicit gradient, both solves to 1e-3."""
    weights = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(3))

    def ours(solver: Solver) -> Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]:
        gradient = eq.Implicit(eq.GMRES(tol=1e-3, max_evaluations=BUDGET))
        solver = replace(solver, tol=1e-3, max_evaluations=BUDGET)
        return lambda f, z0: eq.fixed_point(f, z0, solver, gradient, on_failure="ignore").value

    def theirs(name: str) -> Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]:
        settings = {"f_tol": 1e-3, "b_tol": 1e-3, "f_max_iter": BUDGET, "b_max_iter": BUDGET}
        modes = {"f_stop_mode": "rel", "b_stop_mode": "rel", "f_solver": name, "b_solver": name}
        deq = torchdeq.get_deq(ift=True, **settings, **modes).train()
        return lambda f, z0: deq(f, z0)[0][-1]

    steps = {f"{name}, sample": ours(solver) for name, solver in OURS.items()}
    steps |= {f"{name}, prefix": ours(replace(solver, scope="prefix")) for name, solver in OURS.items()}
    steps |= {f"{name}, sample, draft": ours(replace(solver, draft=DRAFT)) for name, solver in OURS.items()}
    steps |= {f"{name}, torchdeq": theirs(THEIRS[name]) for name in OURS}
    runs: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name in list(steps)[:: 1 if repeat % 2 else -1]:
            cell.zero_grad()
            start = time.perf_counter()
            bound = cell.bind(inputs)
            value = steps[name](bound, cell.initial_state(inputs))
            (value * weights).sum().backward()
            runs[name].append(time.perf_counter() - start)
    return {name: spread(seconds[1:]) for name, seconds in runs.items()}


def show(result: dict[str, Any], console: Console) -> None:
    """The tables a person reads."""
    for cell, figures in result["cells"].items():
        heads = [f"to {tol}" for tol in figures["race"]]
        race_table = Table("solver", *heads, title=f"{cell}: evaluations and milliseconds")
        other = Table("solver", "outside / inside", "MB at 20, 80", "training ms", "leak", title=cell)
        for name, outside in figures["overhead"].items():
            runs = [figures["race"][tol][name] for tol in figures["race"]]
            cells = (f"{run['evaluations']:>3} {1e3 * run['seconds']['median']:>6.0f}" for run in runs)
            race_table.add_row(name, *cells)
            sizes, step = figures["solver_bytes"][name], figures["training"].get(name)
            other.add_row(
                name,
                f"{outside['median']:.3f}",
                f"{sizes['20'] / 2**20:.1f} {sizes['80'] / 2**20:.1f}",
                f"{1e3 * step['median']:.0f}" if step is not None else "",
                f"{figures['leak'][name]:.1e}",
            )
        console.print(race_table)
        console.print(other)


def parse(arguments: list[str]) -> Namespace:
    """The options."""
    parser = options_of("solvers", __doc__)
    parser.add_argument("--repeats", type=int, default=11, help="timed runs of each")
    parser.add_argument("--batch", type=int, default=8, help="sequences")
    parser.add_argument("--length", type=int, default=128, help="tokens of each")
    parser.add_argument("--d-model", type=int, default=256, help="width, a multiple of 32")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the benchmark; 0 when it ran."""
    options = parse(arguments)
    console = prepare(options)
    torchdeq = peer()
    solvers = contestants(torchdeq)
    shape = (options.batch, options.length, options.d_model)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = {}
    for name, cell in cells(options).items():
        with torch.no_grad():
            bound = cell.bind(inputs)

        def f(z: Tensor, bound: Any = bound) -> Tensor:
            return bound(z)

        z0 = cell.initial_state(inputs)
        console.print(f"{name}: solving")
        found[name] = {
            "race": race(f, z0, solvers, options.repeats),
            "overhead": overhead(f, z0, solvers, options.repeats),
            "solver_bytes": solver_bytes(f, z0, solvers),
            "leak": leaks(cell, inputs, solvers),
            "training": training(cell, inputs, torchdeq, options.repeats),
        }
    sizes = {"batch": options.batch, "length": options.length, "d_model": options.d_model}
    publish("solvers", arguments, options, {"sizes": sizes, "cells": found}, show)
    return 0
