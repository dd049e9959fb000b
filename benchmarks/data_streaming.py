"""Does preparing a text take memory that grows with it?

A text is generated whose words are about as unequally frequent as those of a natural one, with ever new ones among
them. Each tokenizer prepares a small one and a large one, each in a process of its own, whose largest resident size is
read before and after. The folder that is used is removed at the end.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks._harness import options_of, prepare, publish

MEGABYTE = 1 << 20
TAIL = 0.3  # P(rank >= k) = k^-TAIL
FREQUENT = 100_000
WORDS_AT_ONCE = 1 << 20
WORDS_OF_A_LINE = 100
LETTERS = "etaoinshrdlcumwfgypb"

CHILD = """
import json, resource, sys
from pathlib import Path
from equilibria.data import FolderText, TokenizerSpec, prepare
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
kind, size, folder, cache = sys.argv[1:]
before = peak()
source = FolderText(Path(folder))
corpus = prepare(source, TokenizerSpec(kind, int(size) or None), Path(cache))
print(json.dumps({"before": before, "peak": peak(), "tokens": len(corpus.split("train").tokens)}))
"""


def word(rank: int) -> str:
    """Another word for every rank, short for small ones."""
    letters, rank = "", rank + len(LETTERS) ** 3  # four letters or more
    while True:
        rank, digit = divmod(rank, len(LETTERS))
        letters += LETTERS[digit]
        if not rank:
            return letters


def generate(path: Path, size: int, seed: int) -> None:
    """Writes a text of at least `size` bytes."""
    frequent = np.array([word(rank) for rank in range(FREQUENT)], dtype=object)
    random = np.random.default_rng(seed)
    with path.open("w", encoding="ascii") as file:
        while file.tell() < size:
            ranks = np.minimum(random.random(WORDS_AT_ONCE) ** (-1 / TAIL), 1e15).astype(np.int64) - 1
            words = frequent[np.minimum(ranks, FREQUENT - 1)]
            for place in np.flatnonzero(ranks >= FREQUENT):
                words[place] = word(int(ranks[place]))
            lines = words[: len(words) // WORDS_OF_A_LINE * WORDS_OF_A_LINE].reshape(-1, WORDS_OF_A_LINE)
            file.writelines(" ".join(line) + "\n" for line in lines)


def measure(options: Namespace, console: Console) -> dict[str, Any]:
    results = []
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        for megabytes in options.megabytes:
            folder = Path(temporary, f"{megabytes}-MB")
            folder.mkdir()
            console.out(f"generating {megabytes} MB")
            generate(folder / "train.txt", megabytes * MEGABYTE, seed=0)
            generate(folder / "valid.txt", MEGABYTE, seed=1)
            size = (folder / "train.txt").stat().st_size
            for kind in options.tokenizers:
                console.out(f"{kind}, {megabytes} MB")
                begun = time.perf_counter()
                vocabulary = "0" if kind == "bytes" else str(options.vocabulary_size)
                command = [sys.executable, "-c", CHILD, kind, vocabulary, str(folder), str(Path(temporary, "cache"))]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                seconds = time.perf_counter() - begun
                results.append({"tokenizer": kind, "bytes": size, "seconds": seconds, **found})
            (folder / "train.txt").unlink()
    return {"vocabulary_size": options.vocabulary_size, "preparations": results}


def show(result: dict[str, Any], console: Console) -> None:
    table = Table(title="memory while a text is prepared")
    for heading in ("tokenizer", "text, MB", "tokens, M", "peak, MB", "of it before, MB", "seconds"):
        table.add_column(heading, justify="right")
    for row in result["preparations"]:
        figures = (row["bytes"] / MEGABYTE, row["tokens"] / 1e6, row["peak"] / MEGABYTE, row["before"] / MEGABYTE)
        table.add_row(row["tokenizer"], *(f"{figure:,.0f}" for figure in (*figures, row["seconds"])))
    console.print(table)


def main(arguments: list[str]) -> int:
    parser = options_of("data_streaming", __doc__)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[64, 2048], help="sizes of the training texts")
    parser.add_argument("--tokenizers", nargs="+", default=["word", "bytes"], choices=["word", "bpe", "bytes"])
    parser.add_argument("--vocabulary-size", type=int, default=50_000, help="of words and byte pairs")
    parser.add_argument("--folder", type=Path, help="where the texts go meanwhile; default: that of temporary files")
    options = parser.parse_args(arguments)
    publish("data_streaming", arguments, options, measure(options, prepare(options)), show)
    return 0
