"""Steps of the same batch on one and on two processes: their time, what communication takes of it, and the memory.

The contenders take turns: each round starts each of them anew under torchrun. One process has the whole batch; two
share it, by DDP and by FSDP2. On a machine whose cores one process can fill, two processes share what one had.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks._harness import options_of, prepare, publish, spread

CONTENDERS = {"1 process": (1, "ddp"), "2 processes, DDP": (2, "ddp"), "2 processes, FSDP2": (2, "fsdp2")}
_SIZES = {"width": 512, "vocabulary": 16384, "batch-size": 8, "length": 64, "steps": 5, "warm-up": 2, "profiled": 3}
_MEGABYTE = 2**20
_LONGEST_SECONDS = 1800


def main(arguments: list[str]) -> int:
    """Runs the rounds and prints the figures."""
    parser = options_of("scaling", __doc__)
    for name, default in _SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=3, help="how often each contender is started")
    options = parser.parse_args(arguments)
    console = prepare(options)
    load = os.getloadavg()[0]  # processes that would run: what others take of the machine shows in all times
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for number in range(options.rounds):
        for name, (processes, strategy) in CONTENDERS.items():
            console.print(f"round {number + 1} of {options.rounds}: {name}")
            found[name].append(measured(options, processes, strategy))
    result = {
        "load_average": {"before": load, "after": os.getloadavg()[0]},
        "sizes": {name: getattr(options, name.replace("-", "_")) for name in (*_SIZES, "rounds")},
        "contenders": {name: summary(rounds) for name, rounds in found.items()},
    }
    publish("scaling", arguments, options, result, show)
    return 0


def measured(options: Namespace, processes: int, strategy: str) -> dict[str, Any]:
    """The figures of one start."""
    with TemporaryDirectory() as temporary:
        out = Path(temporary, "figures.json")
        flags = [text for name in _SIZES for text in (f"--{name}", str(getattr(options, name.replace("-", "_"))))]
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
        worker = [str(Path(__file__).with_name("_scaling_worker.py")), "--strategy", strategy, "--out", str(out)]
        threads = ["--threads", str(options.threads or 1)]
        run_to_end([*command, *worker, *flags, *threads], _LONGEST_SECONDS)
        return json.loads(out.read_text(encoding="utf-8"))


def run_to_end(command: list[str], seconds: float) -> None:
    """Runs torchrun to its end; where it fails or takes longer than so many seconds, it and its workers are ended.

    Raises:
        SystemExit: it failed or took longer, with what it said.
    """
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as launcher:
        try:
            _, errors = launcher.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as stopped:
            raise SystemExit(f"{' '.join(command)} did not end within {seconds:g} seconds") from stopped
        finally:
            launcher.terminate()  # workers have sessions of their own: torchrun ends them when it is told to end
    if launcher.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors}")


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Spreads over all steps of all rounds; a step takes as long as the process that needs longest for it."""
    seconds = [
        max(steps)
        for figures in rounds
        for steps in zip(*(own["seconds"] for own in figures["processes"]), strict=True)
    ]
    processes = [own for figures in rounds for own in figures["processes"]]
    memory = {
        f"{name}_megabytes": max(own["memory"][name] for own in processes) / _MEGABYTE
        for name in ("weights", "optimizer", "peak")
    }
    shares = [own["communicating"] for own in processes]
    return {"device": rounds[0]["device"], "step_seconds": spread(seconds), "communicating": spread(shares), **memory}


def show(result: dict[str, Any], console: Console) -> None:
    """The figures as a table."""
    table = Table(title="The same batch, per step")
    for heading in ("", "seconds", "communicating", "weights, MB", "optimizer, MB", "peak, MB"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, figures in result["contenders"].items():
        memory = (f"{figures[f'{part}_megabytes']:.0f}" for part in ("weights", "optimizer", "peak"))
        seconds, share = figures["step_seconds"]["median"], figures["communicating"]["median"]
        table.add_row(name, f"{seconds:.3f}", f"{share:.0%}", *memory)
    console.print(table)
