"""Twenty real steps of every full-size recipe of Penn Treebank and WikiText-103, by the commands a person would type.

The text of --data-path is mapped into as many words as the task has: its rarest words become <unk>, or made words
join it. Each recipe at its full size is planned, trained for the steps with one interruption by Ctrl-C, resumed, and
evaluated with 150 and 480 positions of memory, each in a process of its own. Learning rates rise within two steps and
equilibria are solved from the first one on, since twenty steps of the published schedules are a warm-up.

    equilibria bench full_size --data-path FOLDER [--tables NAME ...] [--rows NAME ...] [--steps N] [--batch-size N]
        [--threads N] [--json] [--out FILE]
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks._harness import options_of, prepare, publish
from equilibria.configuration import Recipe, read_recipe
from equilibria.data import Split
from equilibria.data.sources.folder import FolderText
from equilibria.depths import Equilibrium
from equilibria.errors import UserError
from equilibria.files.durable import write_durably
from equilibria.paper.published import TRAINED
from equilibria.paper.tables import Row, TrainedTable

TABLES = ("ptb", "wikitext-103")
MEMORIES = (150, 480)
WORDS = 200_000  # of the given text that are read for training
HELD_OUT = 700  # more than one segment with the longest memory
_OF_THEMSELVES = ("<unk>", "<eos>")
_LINE = 40


@dataclass(frozen=True)
class Ended:
    """A process that has ended: its exit code, standard output and error, seconds and largest resident bytes."""

    code: int
    out: str
    err: str
    seconds: float
    resident: int


def beginning(text: FolderText, split: Split, words: int) -> list[list[str]]:
    """The first lines of a text, until they have so many words."""
    found: list[list[str]] = []
    count = 0
    for line in "".join(text.pieces(split)).splitlines():
        if count >= words:
            break
        found.append(line.split())
        count += len(found[-1])
    return found


def mapped_text(source: Path, folder: Path, vocabulary: int) -> None:
    """Write train.txt and valid.txt of exactly `vocabulary` words, with the unknown word and the end of a line."""
    text = FolderText(source)
    kept = beginning(text, "train", WORDS)
    words = Counter(word for line in kept for word in line)
    for own in _OF_THEMSELVES:
        words.pop(own, None)
    known = {word for word, _ in words.most_common(vocabulary - len(_OF_THEMSELVES))}
    made = [f"made-{number}" for number in range(vocabulary - len(_OF_THEMSELVES) - len(known))]
    more = [made[start : start + _LINE] for start in range(0, len(made), _LINE)]
    train = [[word if word in known else "<unk>" for word in line] for line in kept]
    train.append(["<unk>"])
    train += more
    random.Random(0).shuffle(train)
    held_out = [[word if word in known else "<unk>" for word in line] for line in beginning(text, "valid", HELD_OUT)]
    for name, some in (("train.txt", train), ("valid.txt", held_out)):
        (folder / name).write_text("".join(" ".join(line) + "\n" for line in some), encoding="utf-8")


def flags_of(recipe: Recipe, row: Row, text: Path, out: Path, options: Namespace) -> list[str]:
    """Of the full-size recipe: the text, few rows and steps, and no warm-up."""
    half = options.steps // 2
    values: dict[str, object] = {
        "data.path": text,
        "run.directory": out,
        "run.name": row.name,
        "training.steps": options.steps,
        "training.batch_size": options.batch_size,
        "training.evaluate_every": options.steps,
        "training.checkpoint_every": half,
        "training.log_every": 1,
        "training.schedule.warmup_steps": 2,
    }
    if isinstance(getattr(recipe.model, "depth", None), Equilibrium):
        values["model.depth.schedule.warmup_steps"] = 0
    if options.threads is not None:
        values["training.threads"] = options.threads
    return [*row.flags, *(f"--{key}={value}" for key, value in values.items())]


def ran(arguments: list[str], stop: Path | None = None) -> Ended:
    """`equilibria` with these arguments; Ctrl-C once the path `stop` exists."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = subprocess.Popen([sys.executable, "-m", "equilibria", *arguments], stdout=out, stderr=err)
        while True:
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            if stop is not None and stop.exists():
                child.send_signal(signal.SIGINT)
                stop = None
            time.sleep(0.05)
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        seconds = time.perf_counter() - start
        return Ended(child.returncode, out.read(), err.read(), seconds, usage.ru_maxrss * 1024)


def of(ended: Ended, what: str, *codes: int) -> dict[str, Any]:
    """The JSON that a command printed last; a UserError where it failed."""
    if ended.code not in codes:
        raise UserError(f"{what} ended with {ended.code}: {' '.join((ended.out + ended.err).split())[-400:]}")
    last = next((line for line in reversed(ended.out.splitlines()) if line.startswith("{")), "{}")
    return json.loads(last)


def logged(run: Path, kind: str) -> Iterator[dict[str, Any]]:
    for line in (run / "metrics.jsonl").read_text().splitlines():
        found = json.loads(line)
        if found["kind"] == kind:
            yield found


def twenty_steps(table: TrainedTable, row: Row, text: Path, out: Path, options: Namespace, bare: int) -> dict[str, Any]:
    """One recipe: what was predicted, what happened."""
    name = f"{table.name}/{row.recipe}"
    recipe = read_recipe(name, row.flags)
    flags, run = flags_of(recipe, row, text, out, options), out / row.name
    planned = of(ran(["plan", name, *flags, "--json", "--seconds", "20"]), "plan", 0)
    half = f"step-{options.steps // 2}"
    first = ran(["train", name, *flags], run / "checkpoints" / half / "manifest.json")
    of(first, "train", 130)
    second = ran(["train", str(run), "--resume"])
    of(second, "resume", 0)
    steps = [*logged(run, "train")]
    seconds = [after["seconds"] - before["seconds"] for before, after in pairwise(steps)]
    losses = [line["loss"] for line in steps]
    evaluations = [line["evaluations"] for line in steps if line.get("evaluations") is not None]
    evaluated = {}
    if getattr(recipe.model, "memory_length", 0):
        for length in MEMORIES:
            found = of(ran(["eval", str(run), "--memory-length", str(length), "--json"]), "eval", 0)
            evaluated[str(length)] = {key: found.get(key) for key in _FIGURES}
    resident = max(first.resident, second.resident) - bare
    return {
        "recipe": name,
        "parameters": planned["parameters"]["total"],
        "losses": [statistics.fmean(losses[:3]), statistics.fmean(losses[-3:])],
        "steps": [line["step"] for line in steps],
        "evaluations": statistics.fmean(evaluations) if evaluations else None,
        "unconverged": steps[-1].get("unconverged"),
        "seconds": statistics.median(seconds),
        "seconds_planned": planned["step_seconds"],
        "resident": resident,
        "memory_planned": planned["memory"]["total"],
        "evaluated": evaluated,
    }


_FIGURES = ("perplexity", "evaluations", "unconverged", "residual", "spectral_radius")


def show(result: dict[str, Any], console: Console) -> None:
    table = Table(title="Full size, twenty steps", box=None, pad_edge=False)
    for name in ("recipe", "weights", "loss", "s a step", "planned", "GB", "planned", "evals"):
        table.add_column(name, justify="left" if name == "recipe" else "right")
    for row in result["rows"]:
        if "failed" in row:
            table.add_row(row["recipe"], row["failed"])
            continue
        table.add_row(
            row["recipe"].partition("/")[2],
            f"{row['parameters'] / 1e6:.1f}M",
            f"{row['losses'][0]:.2f}→{row['losses'][1]:.2f}",
            *(f"{row[key]:.2f}" for key in ("seconds", "seconds_planned")),
            *(f"{row[key] / 1e9:.2f}" for key in ("resident", "memory_planned")),
            "–" if row["evaluations"] is None else f"{row['evaluations']:.1f}",
        )
    console.print(table)
    console.print(
        "loss: means of the first and the last three steps; GB: resident, without those of one step of a tiny model"
    )


def main(arguments: list[str]) -> int:
    parser = options_of("full_size", __doc__)
    parser.add_argument("--data-path", type=Path, required=True, help="a folder with train.txt and valid.txt")
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=TABLES)
    parser.add_argument("--rows", nargs="+", default=[], help="names of rows; default: all")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=1, help="rows of a batch")
    options = parser.parse_args(arguments)
    console = prepare(options)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        little = [f"--run.directory={place}", "--run.name=little", "--training.steps=1", "--training.batch_size=1"]
        bare = ran(["train", "copy-memory/tcn", *little]).resident
        for table in (TRAINED[name] for name in options.tables):
            text = Path(place, f"{table.name}-text")
            text.mkdir()
            mapped_text(options.data_path, text, table.vocabulary_size)
            for row in (row for row in table.rows if not options.rows or row.name in options.rows):
                console.print(f"{table.name}/{row.name}")
                try:
                    rows.append(twenty_steps(table, row, text, Path(place, table.name), options, bare))
                except UserError as problem:
                    rows.append({"recipe": f"{table.name}/{row.recipe}", "failed": str(problem)})
                    console.print(str(problem))
                if options.out is not None:  # as far as it has come
                    write_durably(options.out, json.dumps({"rows": rows}, indent=1) + "\n")
    publish(
        "full_size", arguments, options, {"steps": options.steps, "batch_size": options.batch_size, "rows": rows}, show
    )
    return 0
