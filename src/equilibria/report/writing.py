"""Writing a run's report."""

from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

from equilibria.errors import UserError
from equilibria.files.durable import reported, write_durably
from equilibria.inference.loading import LoadedRun, load_run
from equilibria.report.gather import RunRecord, gather
from equilibria.report.headline import cards
from equilibria.report.measurement import SolveFigures, measure_solves
from equilibria.report.page import Contents, page
from equilibria.runs.lock import keeping


def write_report(run_folder: Path, out: Path | None = None) -> Path:
    """Writes a run's report: one HTML file that needs nothing beside it, replaced in one go.

    The best checkpoint reads some validation text for it. What the folder lacks is named on the page.

    Args:
        run_folder: of a run that has begun.
        out: the file to write; None is the run's `report.html`.

    Returns:
        The path of the page.

    Raises:
        UserError: there is no such run, matplotlib is not installed, or the page cannot be written.
    """
    run = gather(run_folder)
    loaded = run.attempt(lambda: load_run(run_folder))
    solves = None if loaded is None else _solves(run, loaded)
    contents = Contents(
        run=run,
        cards=cards(run, None if loaded is None else loaded.model),
        solves=solves,
        written=datetime.now(UTC),
    )
    target = out or run.folder.report
    if target.is_dir():
        raise UserError(f"{target} cannot be written: it is a folder; name a file with --out FILE")
    html = page(contents).encode(errors="replace")
    with reported(target, "write elsewhere with --out FILE"), keeping(run.folder) if out is None else nullcontext():
        write_durably(target, html)
    return target


def _solves(run: RunRecord, loaded: LoadedRun) -> SolveFigures | None:
    return run.attempt(lambda: measure_solves(loaded))
