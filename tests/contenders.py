"""Commands that want one run at once: `contenders.py FOLDER CASE`, where FOLDER holds `recipe.toml`.

Each command is a process of its own, forked after one import; prints what came of them as JSON.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

import equilibria.cli.sweep
import equilibria.cli.train  # once, before the forks
from equilibria.cli.app import main as equilibria
from equilibria.configuration.reading import read_recipe
from equilibria.runs.folder import RunFolder
from equilibria.runs.metrics import MetricsWriter, read_metrics

Ended = dict[str, object]


def stop_after(last: int) -> None:
    """This process stops once it has logged that step, with all that it holds, until it is sent SIGCONT."""
    write = MetricsWriter.write

    def writing(self: MetricsWriter, kind: str, step: int, figures: Mapping[str, object]) -> None:
        write(self, kind, step, figures)
        if step == last:
            os.kill(os.getpid(), signal.SIGSTOP)

    MetricsWriter.write = writing


def start(folder: Path, name: str, *arguments: str, stopping: int | None = None) -> int:
    """A process that runs the command and stops after a step, if one is given; its output goes to a file of that
    name."""
    child = os.fork()
    if not child:
        if stopping is not None:
            stop_after(stopping)
        output = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os._exit(equilibria([*arguments[:1], str(folder / "recipe.toml"), *arguments[1:]]))
    return child


def ended(folder: Path, name: str, child: int) -> Ended:
    """How a process ended, and the last line of what it said."""
    _, status = os.waitpid(child, 0)
    said = (folder / name).read_text().splitlines()
    return {"code": os.waitstatus_to_exitcode(status), "said": said, "pid": child}


def steps(run: RunFolder) -> list[object]:
    """The steps in the log."""
    return [line["step"] for line in read_metrics(run.metrics) if line["kind"] == "train"]


def resumed_alive(folder: Path, run: RunFolder) -> object:
    """One is in the middle of its training while another one resumes the same run."""
    first = start(folder, "first", "train", stopping=7)
    _, status = os.waitpid(first, os.WUNTRACED)
    assert os.WIFSTOPPED(status), (folder / "first").read_text()
    second = ended(folder, "second", start(folder, "second", "train", "--resume"))
    os.kill(first, signal.SIGCONT)
    return {"first": ended(folder, "first", first), "second": second, "steps": steps(run)}


def started_twice(folder: Path, run: RunFolder) -> object:
    """Two start the same run, several times."""
    found = []
    for number in range(3):
        run = RunFolder(run.path.with_name(f"twice-{number}"))
        flags = ("--run.name", run.path.name, "--training.steps", "6")
        children = [(name, start(folder, name, "train", *flags)) for name in ("first", "second")]
        found.append({"ends": [ended(folder, *child) for child in children], "steps": steps(run)})
    return found


def swept_twice(folder: Path, run: RunFolder) -> object:
    """Two sweeps of the same runs."""
    flags = ("--training.seed", "0,1,2", "--training.steps", "40")
    children = [(name, start(folder, name, "sweep", *flags)) for name in ("first", "second")]
    ends = [ended(folder, *child) for child in children]
    runs = sorted(path for path in run.path.iterdir() if path.is_dir())
    return {
        "ends": ends,
        "steps": [steps(RunFolder(path)) for path in runs],
        "failed": len(list(run.path.glob("*.failed"))),
    }


CASES: dict[str, Callable[[Path, RunFolder], object]] = {
    case.__name__: case for case in (resumed_alive, started_twice, swept_twice)
}


def main(folder: Path, case: str) -> None:
    torch.set_num_threads(1)
    print(json.dumps(CASES[case](folder, RunFolder(read_recipe(folder / "recipe.toml").run.folder))))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
