"""The run's log: one JSON object per line, written as it happens."""

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from equilibria.errors import UserError
from equilibria.files.durable import flush, reported, write_durably
from equilibria.files.formats import parse_json
from equilibria.runs.trackers import Tracker, survives


class MetricsWriter:
    """Appends lines to `metrics.jsonl`; `write` passes each to the system, `flush` waits until all are on the disk.

    Args:
        path: the file; its folder exists.
        step: the step to resume from. Removes lines of later steps, which a run left that was killed after its last
            checkpoint, and a last line that was cut short.
        trackers: receive each line once it is written, and are closed with the file.
    """

    def __init__(self, path: Path, step: int, trackers: Iterable[Tracker] = ()) -> None:
        self._path = path
        self._trackers = [*trackers]
        _cut(path, step)
        self._file: TextIO = path.open("a", encoding="utf-8")
        flush(path.parent)

    def write(self, kind: str, step: int, figures: Mapping[str, object]) -> None:
        """Appends one line.

        Args:
            kind: `"train"`, `"valid"` or `"event"`.
            step: optimizer steps finished.
            figures: the rest of the line; numbers are finite or None.

        Raises:
            UserError: the file cannot be written.
        """
        line = {"kind": kind, "step": step, **figures, "time": time.time()}
        with reported(self._path):
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
        for tracker in [*self._trackers]:
            if not survives(tracker, lambda: tracker.log(line)):  # noqa: B023 (called at once)
                self._trackers.remove(tracker)
                survives(tracker, tracker.close)

    def flush(self) -> None:
        """Waits until all lines are on the disk.

        Raises:
            UserError: they cannot be written.
        """
        with reported(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file and the trackers."""
        for tracker in self._trackers:
            survives(tracker, tracker.close)
        try:
            self._file.close()
        except OSError:  # the line that could not be written has been reported by `write`
            return


class NoMetrics(MetricsWriter):
    """No-op writer for other ranks."""

    def __init__(self) -> None: ...

    def write(self, kind: str, step: int, figures: Mapping[str, object]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a metrics file; a last line that was cut short is skipped.

    Raises:
        UserError: the file cannot be read, or a line is not a JSON object.
    """
    lines: list[dict[str, Any]] = []
    try:
        complete, _, _ = path.read_bytes().rpartition(b"\n")
    except OSError as problem:
        raise UserError(f"{path} cannot be read ({problem}); restore it") from problem
    for number, line in enumerate(complete.splitlines(), start=1):
        try:
            entry = parse_json(line, dict)  # line by line, so that the damaged one is named
            if not isinstance(entry.get("step"), int):
                raise ValueError("not an object with a step")
        except ValueError as problem:
            raise UserError(f"{path}, line {number} is damaged ({problem}); delete that line") from problem
        lines.append(entry)
    return lines


def _cut(path: Path, step: int) -> None:
    """Removes lines after `step`. The file is replaced in one go, so no older line can be lost."""
    if not path.exists():
        return
    kept = [json.dumps(line) + "\n" for line in read_metrics(path) if line["step"] <= step]
    write_durably(path, "".join(kept))
