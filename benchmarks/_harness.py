"""What all benchmarks share: their common options, the spread of a figure, and where the result goes."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from equilibria.errors import UserError
from equilibria.files.durable import write_durably
from equilibria.measuring.spread import Quartiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def options_of(name: str, description: str | None) -> ArgumentParser:
    """A parser with the options that every benchmark has.

    Args:
        name: of the benchmark, as in `equilibria bench NAME`.
        description: its module's docstring; the first line is shown.
    """
    parser = ArgumentParser(prog=f"equilibria bench {name}", description=(description or "").split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    parser.add_argument("--threads", type=int, help="CPU threads")
    return parser


def prepare(options: Namespace) -> Console:
    """Set the threads; returns where to say how far the benchmark is."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return Console(stderr=options.json)


def given_keys(changes: Sequence[str]) -> dict[str, str]:
    """The keys of a recipe and their values, each given as `KEY=VALUE`; a UserError for what is not."""
    for change in changes:
        if "=" not in change:
            raise UserError(f"--set {change}: give a key of the recipe and its value, KEY=VALUE")
    return dict(change.split("=", 1) for change in changes)


def publish(
    name: str,
    arguments: list[str],
    options: Namespace,
    result: dict[str, Any],
    show: Callable[[dict[str, Any], Console], None],
) -> None:
    """Write and print the result, with the command that made it."""
    command = " ".join([f"equilibria bench {name}", *arguments])
    result = {"command": command, "torch": torch.__version__, "threads": torch.get_num_threads(), **result}
    if options.out is not None:
        write_durably(options.out, json.dumps(result, indent=1) + "\n")
    if options.json:
        print(json.dumps(result))
    else:
        show(result, Console())


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    return asdict(Quartiles.of(values))


def save_picture(figure: Figure, path: Path) -> None:
    """Write a figure as its file name says; the same figure gives the same SVG whenever it is drawn under that name."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
