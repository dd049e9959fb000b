"""`equilibria report`."""

import json as json_format
from pathlib import Path

from equilibria.cli.progress import ConsoleProgress, side_console
from equilibria.report import write_report


def report(run: Path, /, *, out: Path | None = None, json: bool = False) -> int:
    """Write a run's report, one HTML page with all it needs inside.

    Args:
        run: the run folder.
        out: the file to write; default: report.html in the run folder.
        json: print the page's path as a JSON object.
    """
    page = write_report(run, out, ConsoleProgress(side_console(json)))
    print(json_format.dumps({"report": str(page)}) if json else page)
    return 0
