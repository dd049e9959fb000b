"""Trains a run in spite of SIGKILL: `recovery.py RECIPE KILLS SEED` forks a process that runs the command, kills it
with SIGKILL some steps later, and starts the next; prints how many there were and how many had a save under way.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from equilibria.cli.app import main as equilibria
from equilibria.configuration import read_recipe
from equilibria.files.durable import leftovers
from equilibria.runs.folder import RunFolder


def lines(folder: RunFolder) -> int:
    """Complete lines in the metrics."""
    return folder.metrics.read_bytes().count(b"\n") if folder.metrics.exists() else 0


def start(path: Path, folder: RunFolder) -> int:
    """A process that runs the command."""
    child = os.fork()
    if not child:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        flags = ["--resume"] if folder.config.is_file() else []
        os._exit(equilibria(["train", str(path), *flags]))
    return child


def ended(child: int) -> bool:
    """Whether the process has ended by itself; it must have succeeded."""
    found, status = os.waitpid(child, os.WNOHANG)
    if found and os.waitstatus_to_exitcode(status):
        raise SystemExit(f"the run failed with {os.waitstatus_to_exitcode(status)}")
    return bool(found)


def killed(child: int, folder: RunFolder, more: int, delay: float) -> bool:
    """Kills the process a moment after it has written so many lines; whether it was still there."""
    while not folder.metrics.exists():
        if ended(child):
            return False
        time.sleep(0.001)
    before = lines(folder)
    while lines(folder) < before + more:
        if ended(child):
            return False
        time.sleep(0.001)
    time.sleep(delay)
    if ended(child):
        return False
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def main(path: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    folder, draw = RunFolder(read_recipe(path).run.folder), random.Random(seed)
    count = saving = 0
    child = start(path, folder)
    while count < kills and killed(child, folder, draw.randint(1, 9), draw.uniform(0.0, 0.02)):
        count += 1
        saving += bool(leftovers(folder.checkpoints))
        child = start(path, folder)
    _, status = os.waitpid(child, 0)
    print(json.dumps({"kills": count, "saving": saving, "code": os.waitstatus_to_exitcode(status)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
