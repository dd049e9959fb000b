"""The bank of maps: every solver, gradient and dtype on every problem, and what came of it.

A solve that is called converged is right where the residual of the whole state, measured once more on what is returned,
is within the tolerance, and false elsewhere. A gradient is compared with the implicit function theorem by a
dense Jacobian, at the solution; where it is not within the tolerance, it may be right at the value that was returned,
which the tolerance allows to stand beside the solution, or else was heard if the adjoint says that it failed.

    equilibria bench bank [--json] [--threads N] [--out FILE]
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor

import equilibria as eq
from benchmarks._harness import options_of, prepare, publish
from equilibria.gradients import Gradient
from equilibria.solvers import Scope, Solver, Status

# The bank belongs to the tests.
sys.path.append(str(Path(__file__).parents[1] / "tests"))
from problem_sets import BANK, Problem

BUDGET = 80
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-2}
# Of a gradient, relative to the sizes of what it is a sum of, up to a condition of 10 and beyond it in proportion. In
# bfloat16 the value itself may be a tenth of its size from the solution. Defaults solve their adjoint to 1e-5 in any
# dtype.
GRADIENT_TOLERANCES = {torch.float64: 1e-7, torch.float32: 1e-2, torch.bfloat16: 0.2}
DEFAULTS_TOLERANCE = 1e-4
WELL_CONDITIONED = 100.0
SOLVERS: dict[str, Solver] = {
    "picard": eq.Picard(),
    "anderson": eq.Anderson(),
    "broyden": eq.Broyden(),
    "newton": eq.NewtonKrylov(),
}


def gradients(tol: float) -> dict[str, Gradient]:
    """Those that aim at the gradient of the solution; approximations are judged by the same measure."""
    return {
        "implicit": eq.Implicit(eq.GMRES(tol=tol, max_evaluations=150, restart=50)),
        "implicit, defaults": eq.Implicit(),
        "neumann": eq.Neumann(),
        "phantom": eq.Phantom(),
        "jacobian-free": eq.JacobianFree(),
        "unrolled": eq.Unrolled(),
        "reversible": eq.Reversible(),
    }


def norm(x: Tensor) -> float:
    """Of the whole state."""
    return float(torch.linalg.vector_norm(x))


def outcome(problem: Problem, solver: Solver, gradient: Gradient, dtype: torch.dtype) -> dict[str, str]:
    """What came of one solve and its gradient, in a word each."""
    close = max(GRADIENT_TOLERANCES[dtype], DEFAULTS_TOLERANCE if gradient == eq.Implicit() else 0.0)
    shape = problem.start.shape
    parameters = problem.parameters.to(dtype, copy=True).requires_grad_()

    def f(z: Tensor) -> Tensor:
        return problem.map(z, parameters)

    solution = eq.fixed_point(f, problem.start.to(dtype), solver, gradient, on_failure="ignore")
    if solution.status is not Status.CONVERGED:
        return {"solve": "honest failure"}
    with torch.no_grad():
        image, first = f(solution.value.detach()).double(), f(problem.start.to(dtype)).double()
    value = solution.value.detach().double()
    # What is below the rounding of where the solve began counts as zero.
    nothing = torch.finfo(torch.promote_types(dtype, torch.float32)).eps * max(map(norm, (problem.start, first)))
    if norm(image - value) > 1.01 * solver.tol * norm(image) + nothing:
        return {"solve": "false"}
    # The problem that was solved has the parameters that the dtype can hold.
    held = replace(problem, parameters=parameters.detach().double(), answer=None)
    found = {"solve": "right"}
    root = held.polished(value) if not problem.singular else None
    if root is None or held.condition(root) > WELL_CONDITIONED:
        return found
    incoming = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (got,) = torch.autograd.grad(solution.value, parameters, incoming.to(dtype))

    def right(at: Tensor) -> bool:
        wanted, size = held.implicit_gradient(at, incoming)
        return norm(got.double() - wanted) <= close * max(1.0, held.condition(at) / 10) * size

    if right(root):
        return found | {"gradient": "right"}
    if right(value):
        return found | {"gradient": "right at the value"}
    return found | {"gradient": "off" if solution.adjoint.status in (None, Status.CONVERGED) else "heard"}


def kinds(problems: tuple[Problem, ...]) -> dict[str, tuple[Scope, list[Problem]]]:
    """Coupled maps are solved as they should be, as a whole, and as those do who do not know: row by row."""
    coupled = [problem for problem in problems if problem.coupled]
    return {
        "rows apart": ("sample", [problem for problem in problems if not problem.coupled]),
        "coupled, scope all": ("all", coupled),
        "coupled, scope sample": ("sample", coupled),
    }


def count(problems: tuple[Problem, ...]) -> dict[str, Any]:
    """Counts of each dtype, kind of map, solver and gradient; and by name what was false, off or raised."""
    counts: list[dict[str, Any]] = []
    named: list[str] = []
    for (dtype, tol), (kind, (scope, chosen)), (method, solver) in product(
        TOLERANCES.items(), kinds(problems).items(), SOLVERS.items()
    ):
        solver = replace(solver, tol=tol, max_evaluations=BUDGET, scope=scope)
        for way, gradient in gradients(tol).items():
            keys = {"dtype": str(dtype).removeprefix("torch."), "maps": kind, "solver": method, "gradient": way}
            counter: Counter[str] = Counter()
            for problem in chosen:
                result, reason = tried(problem, solver, gradient, dtype)
                counter.update(f"{part}: {word}" for part, word in result.items())
                exact = way.startswith("implicit")
                if result["solve"] in ("false", "error") or (result.get("gradient") == "off" and exact):
                    named.append(", ".join([*keys.values(), problem.name, *result.values(), reason]).rstrip(", "))
            counts.append(keys | {"counts": dict(counter)})
    return {"counts": counts, "named": named}


def tried(problem: Problem, solver: Solver, gradient: Gradient, dtype: torch.dtype) -> tuple[dict[str, str], str]:
    """The outcome; of one that raised, the reason too. A benchmark of failures goes on after one."""
    try:
        return outcome(problem, solver, gradient, dtype), ""
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        return {"solve": "error"}, f"{type(error).__name__}: {error}"


HEADS = {
    "solve: right": "right",
    "solve: honest failure": "failed",
    "solve: false": "false",
    "solve: error": "error",
    "gradient: right": "right",
    "gradient: right at the value": "value",
    "gradient: heard": "heard",
    "gradient: off": "off",
}
"""Columns of the table: four for solves, four for the gradients of those that are right and well conditioned."""


def show(result: dict[str, Any], console: Console) -> None:
    """A table for each dtype and kind of map, and what was not right by name."""
    tables: dict[str, Table] = {}
    for line in result["counts"]:
        title = f"{line['maps']}, {line['dtype']}"
        if title not in tables:
            tables[title] = Table(title=title, box=SIMPLE, padding=0)
            for head in ("solver", "gradient", *HEADS.values()):
                tables[title].add_column(
                    head, justify="left" if head in ("solver", "gradient") else "right", no_wrap=True
                )
        counts = (str(line["counts"].get(head, 0)) for head in HEADS)
        tables[title].add_row(line["solver"], line["gradient"], *counts)
    for table in tables.values():
        console.print(table)
    for line in result["named"]:
        console.print(line)


def parse(arguments: list[str]) -> Namespace:
    """The options."""
    parser = options_of("bank", __doc__)
    parser.add_argument("--maps", type=int, default=len(BANK), help="only so many, evenly spread over the bank")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the benchmark; 0 where nothing was called converged that is not, 1 otherwise."""
    options = parse(arguments)
    prepare(options)
    chosen = {round(i * (len(BANK) - 1) / max(1, options.maps - 1)) for i in range(options.maps)}
    problems = tuple(problem for number, problem in enumerate(BANK) if number in chosen)
    result = {"maps": len(problems), "budget": BUDGET, **count(problems)}
    publish("bank", arguments, options, result, show)
    return int(any("solve: false" in line["counts"] for line in result["counts"]))
