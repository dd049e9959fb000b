"""What a device does with equilibria, unattended and within minutes: is it right there, how fast, in how much memory.

The self-checks of `equilibria doctor` come first. Then models of equal width take training steps and read segments in
turn, in float32 and bfloat16, eager, with the cell compiled, and on CUDA in graphs: the laboratory's model solved in
every step, its explicit twin, the same cell in the solver of TorchDEQ where that is installed, and an 18-layer
Transformer-XL of the same width. With each come the waits of the host for the device (on CUDA, as PyTorch counts
them), the bytes saved for the backward pass and the peak. Last, tokens are written one by one from a cache. What no
time is left for is listed as left out.

    equilibria bench accelerator [--device auto] [--widths N ...] [--seconds N] [--rounds N] [--json] [--out FILE]
"""

from __future__ import annotations

import importlib
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import product
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks._harness import options_of, prepare, publish, spread
from equilibria.configuration import read_recipe
from equilibria.configuration.building import build_model
from equilibria.data.batches import Segment, ZipfBatches
from equilibria.depths import Depth, Reached
from equilibria.distributed import training_device
from equilibria.errors import in_a_line
from equilibria.inference.contraction import spectral_radii_of
from equilibria.inference.evaluation import evaluate_segments
from equilibria.machine.checks import examine
from equilibria.machine.description import describe
from equilibria.measuring.spread import ratios
from equilibria.measuring.steps import Contender, alternate, peak_of_step, saved_by_step, synchronize
from equilibria.models import LanguageModel
from equilibria.training.loop import TrainingLoop

VOCABULARY, ROWS, LENGTH = 4096, 16, 64
EVALUATED = 4
WAYS = ("eager", "compiled", "graphs")
PRECISIONS = ("float32", "bfloat16")
RECIPES = {
    "equilibrium": "laboratory/throughout",
    "twin": "laboratory/twin-throughout",
    "torchdeq": "laboratory/twin-throughout",
    "transformer-xl": "laboratory/transformer-xl",
}


class Waits(TorchDispatchMode):
    """Counts how often the host has to wait for a device: it reads a number, or copies a tensor to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.name() in ("aten::_local_scalar_dense", "aten::equal", "aten::nonzero")
        return func(*args, **(kwargs or {}))


class TheirDepth(Depth):
    """TorchDEQ's solver and implicit gradient around our cell, with the tolerance and budget of our recipe."""

    def __init__(self, torchdeq: Any) -> None:
        settings = {"f_tol": 1e-2, "b_tol": 1e-1, "f_max_iter": 8, "b_max_iter": 10}
        modes = {
            "f_stop_mode": "rel",
            "b_stop_mode": "rel",
            "f_solver": "fixed_point_iter",
            "b_solver": "fixed_point_iter",
        }
        self._deq = torchdeq.get_deq(ift=True, **settings, **modes)

    def reach(self, f: Callable[[Tensor], Tensor], z0: Tensor, training: bool) -> Reached:
        self._deq.train(training)
        return Reached(self._deq(f, z0)[0][-1], None)


class Placed:
    """Random tokens that follow Zipf's law, on a device."""

    def __init__(self, device: torch.device) -> None:
        self._batches, self._device = ZipfBatches(VOCABULARY, ROWS, LENGTH), device

    def at(self, index: int, rows: Sequence[int] | None = None) -> Segment:
        segment = self._batches.at(index, rows)
        inputs, targets = segment.inputs.to(self._device), segment.targets.to(self._device)
        return replace(segment, inputs=inputs, targets=targets)


def contender(name: str, width: int, precision: str, way: str, device: torch.device) -> Contender | None:
    """A model with what it is timed on; None where its software is not installed."""
    flags = [f"--model.cell.d_model={width}", f"--model.cell.heads={max(1, width // 32)}", "--training.steps=1000000"]
    flags += [f"--model.cell.inner={2 * width}", f"--training.precision={precision}", "--data.source=embedded"]
    flags += ["--unset=data.path"]
    if name == "transformer-xl":
        flags += [f"--model.embedding.d_embed={width}"]
    recipe = read_recipe(RECIPES[name], flags)
    torch.manual_seed(0)
    model = build_model(recipe, VOCABULARY).to(device)
    assert isinstance(model, LanguageModel)
    if name == "torchdeq":
        try:
            model.depth = TheirDepth(importlib.import_module("torchdeq"))
        except ModuleNotFoundError:
            return None
    if way != "eager":
        model.cell.compile(mode="reduce-overhead" if way == "graphs" else None)
    batches = Placed(device)
    return Contender(TrainingLoop(model, recipe.training, batches), [batches.at(n) for n in range(EVALUATED)])


@contextmanager
def counted(device: torch.device) -> Iterator[list[int]]:
    """The number of waits of what runs in it, in a list."""
    found: list[int] = []
    if device.type != "cuda":
        with Waits() as waits:
            yield found
        found.append(waits.count)
        return
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found.append(sum("synchroniz" in str(one.message) for one in told))


def setting(width: int, precision: str, way: str, device: torch.device, rounds: int) -> dict[str, Any]:
    """All contenders at one width, precision and way; ratios are to the explicit twin."""
    made = {name: contender(name, width, precision, way, device) for name in RECIPES}
    present = {name: one for name, one in made.items() if one is not None}
    alternate(list(present.values()), rounds)
    twin, rows = present["twin"], {}
    for name, one in present.items():
        model = one.loop.model
        assert isinstance(model, LanguageModel)
        with counted(device) as waits:
            one.loop.step()
        read = evaluate_segments(model, one.evaluated)
        rows[name] = {
            "step_seconds": spread(one.training),
            "read_seconds": spread(one.inference),
            "step_over_twin": asdict(ratios(one.training, twin.training)),
            "read_over_twin": asdict(ratios(one.inference, twin.inference)),
            "waits_of_a_step": waits[0],
            # Of eager models alone: hooks and watches would be compiled too.
            "saved_bytes": saved_by_step(model, Placed(device)) if way == "eager" else None,
            "peak_bytes": peak_of_step(model, Placed(device)) if way == "eager" else None,
            "evaluations": asdict(read.evaluations),
            "residual": asdict(read.residual),
            "spectral_radius": radius_of(model, device) if name == "equilibrium" and way == "eager" else None,
        }
    return {"width": width, "precision": precision, "way": way, "rows": rows}


def radius_of(model: LanguageModel, device: torch.device) -> dict[str, float]:
    """Of the map at the solutions of some tokens."""
    radii = spectral_radii_of(model, Placed(device).at(0).inputs)
    assert radii is not None
    return spread(radii.tolist())


def decoded(width: int, device: torch.device, tokens: int, rows: int) -> dict[str, Any]:
    """Tokens a second, one after another from a cache, of the equilibrium and its twin."""
    found: dict[str, Any] = {"width": width, "rows": rows}
    for name in ("equilibrium", "twin"):
        one = contender(name, width, "float32", "eager", device)
        assert one is not None
        model = one.loop.model
        assert isinstance(model, LanguageModel)
        model.eval()
        text = Placed(device).at(0).inputs[:rows]
        step, seconds = model.prefill(text), []
        for _ in range(tokens):
            synchronize(device)
            start = time.perf_counter()
            step = model.decode(step.logits_BV.argmax(-1), step.cache)
            synchronize(device)
            seconds.append(time.perf_counter() - start)
        found[name] = spread([rows / second for second in seconds[1:]])
    return found


def settings_of(options: Namespace, device: torch.device) -> list[tuple[int, str, str]]:
    """The most telling first: eager at the first width, then the other ways and precisions, then other widths."""
    ways = [way for way in WAYS if way != "graphs" or device.type == "cuda"]
    return list(product(options.widths, options.precisions, ways))


def show(result: dict[str, Any], console: Console) -> None:
    for check in result["checks"]:
        console.print(f"{'ok' if check['ok'] else 'FAILED'}  {check['name']}: {check['detail']}", markup=False)
    table = Table(title="A training step and a read segment, over the explicit twin", box=None, pad_edge=False)
    for name in ("model", "step ms", "/ twin", "read / twin", "waits", "saved MB", "peak MB"):
        table.add_column(name, justify="left" if name == "model" else "right")
    failures: list[str] = []
    for one in result["settings"]:
        table.add_row(f"{one['width']}, {one['precision']}, {one['way']}", style="bold")
        if "failed" in one:
            table.add_row("  failed")
            failures.append(one["failed"])
            continue
        for name, row in one["rows"].items():
            memory = (row[key] for key in ("saved_bytes", "peak_bytes"))
            table.add_row(
                f"  {name}",
                f"{1e3 * row['step_seconds']['median']:.1f}",
                *(f"{row[key]['median']:.2f}" for key in ("step_over_twin", "read_over_twin")),
                str(row["waits_of_a_step"]),
                *("" if size is None else f"{size / 1e6:.0f}" for size in memory),
            )
    console.print(table)
    for failed in dict.fromkeys(failures):
        console.print(f"failed: {failed}", markup=False)
    for one in result["decoding"]:
        ours, theirs = (one[name]["median"] for name in ("equilibrium", "twin"))
        console.print(
            f"decoding, width {one['width']}, {one['rows']} rows: {ours:,.0f} tokens a second; the twin {theirs:,.0f}"
        )
    if result["left_out"]:
        console.print(f"left out, as the time was up: {'; '.join(result['left_out'])}")


def main(arguments: list[str]) -> int:
    parser = options_of("accelerator", __doc__)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 128, 1024, 256])
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--seconds", type=float, default=420.0, help="after which nothing new begins")
    parser.add_argument("--rounds", type=int, default=5, help="in which all take turns")
    parser.add_argument("--tokens", type=int, default=64, help="written one by one")
    options = parser.parse_args(arguments)
    console, device = prepare(options), torch.device(training_device(options.device))
    until = time.monotonic() + options.seconds
    checks = [asdict(finding) for finding in examine(device, lambda finding: console.print(finding.name))]
    settings, decoding, left_out = [], [], []
    for rows in (1, ROWS):
        decoding.append(decoded(options.widths[0], device, options.tokens, rows))
    for width, precision, way in settings_of(options, device):
        name = f"width {width}, {precision}, {way}"
        if time.monotonic() > until:
            left_out.append(name)
            continue
        console.print(name)
        try:
            settings.append(setting(width, precision, way, device, options.rounds))
        except Exception as problem:  # of a compiler or a driver: what else works is still to be known
            failed = in_a_line(problem)
            settings.append({"width": width, "precision": precision, "way": way, "failed": failed})
            console.print(failed, markup=False)
    result = {"machine": describe(device), "device": str(device), "checks": checks}
    result |= {"settings": settings, "decoding": decoding, "left_out": left_out}
    publish("accelerator", arguments, options, result, show)
    return 0 if all(check["ok"] for check in checks) else 1
