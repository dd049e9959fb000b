"""Muon for CPUs beside PyTorch's, on the matrices of a recipe's model: time of a step, and how far the steps differ.

Both take the same gradients, step by step in turn. With ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
ATEN_CPU_CAPABILITY=avx2 before the command a larger processor does what those of most laptops do.

    equilibria bench muon RECIPE [--set KEY=VALUE ...] [--steps N] [--threads N] [--json] [--out FILE]
"""

from __future__ import annotations

import os
import time
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.optim import Muon, Optimizer

from benchmarks._harness import options_of, prepare, publish, spread
from equilibria.configuration import read_recipe
from equilibria.configuration.building import build_model
from equilibria.errors import UserError
from equilibria.measuring.spread import ratios
from equilibria.optimization.muon import GramMuon
from equilibria.optimization.optimizers import parameter_groups, taken_by_muon

VOCABULARY = 256  # its rows are nothing to Muon
RATE = 0.02
INSTRUCTIONS = "ONEDNN_MAX_CPU_ISA"


def matrices_of(options: Namespace) -> list[Tensor]:
    """What Muon takes of the recipe's model.

    Raises:
        UserError: there is none.
    """
    recipe = read_recipe(options.recipe, [f"--{change}" for change in options.set])
    torch.manual_seed(0)
    taken, _ = taken_by_muon(parameter_groups(build_model(recipe, VOCABULARY)))
    if not taken:
        raise UserError(f"{options.recipe}: its cell has no matrix of two dimensions for Muon to take")
    return [matrix.detach() for matrix in taken.values()]


def race(matrices: list[Tensor], steps: int) -> dict[str, Any]:
    """Seconds of each one's steps, after one that is not counted, and how far apart they end."""
    starts = [matrix.clone() for matrix in matrices]
    ours, theirs = ([nn.Parameter(matrix.clone()) for matrix in matrices] for _ in range(2))
    optimizers: dict[str, Optimizer] = {
        "equilibria": GramMuon([{"params": ours}], lr=RATE, weight_decay=0.0),
        "pytorch": Muon(theirs, lr=RATE, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(steps + 1):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for name, optimizer in optimizers.items():
            start = time.perf_counter()
            optimizer.step()
            seconds[name].append(time.perf_counter() - start)
    apart, way = (
        torch.stack([(one - other).norm() for one, other in zip(first, second, strict=True)]).norm()
        for first, second in ((ours, theirs), (theirs, starts))
    )
    counted = {name: values[1:] for name, values in seconds.items()}
    return {
        "shapes": [list(matrix.shape) for matrix in matrices],
        "instructions": os.environ.get(INSTRUCTIONS, "all"),
        "seconds": {name: spread(values) for name, values in counted.items()},
        "ratio": asdict(ratios(counted["equilibria"], counted["pytorch"])),
        "distance": float(apart.detach() / way.detach()),
    }


def show(result: dict[str, Any], console: Console) -> None:
    """The table."""
    table = Table("Muon", "ms per step", "quartiles")
    for name, seconds in result["seconds"].items():
        low, high = (f"{seconds[quartile] * 1e3:.1f}" for quartile in ("lower_quartile", "upper_quartile"))
        table.add_row(name, f"{seconds['median'] * 1e3:.1f}", f"{low} to {high}")
    console.print(table)
    ratio = result["ratio"]
    console.print(
        f"{len(result['shapes'])} matrices, instructions: {result['instructions']}; ratio {ratio['median']:.3f}, "
        f"{ratio['lower_quartile']:.3f} to {ratio['upper_quartile']:.3f}; apart by {result['distance']:.1e} of the way",
        highlight=False,
    )


def parse(arguments: list[str]) -> Namespace:
    """The options."""
    parser = options_of("muon", __doc__)
    parser.add_argument("recipe", type=Path, help="whose model's matrices are taken")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes of the recipe")
    parser.add_argument("--steps", type=int, default=20, help="of each, in turn")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the benchmark; 0 when it ran."""
    options = parse(arguments)
    prepare(options)
    publish("muon", arguments, options, race(matrices_of(options), options.steps), show)
    return 0
