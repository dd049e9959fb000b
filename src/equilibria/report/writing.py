"""Writing a run's report."""

from contextlib import nullcontext
from pathlib import Path

from equilibria.data.progress import UNWATCHED, Progress
from equilibria.errors import UserError
from equilibria.files.durable import reported, write_durably
from equilibria.inference.loading import LoadedRun, load_run
from equilibria.report.gather import gather
from equilibria.report.headline import cards
from equilibria.report.measurement import measure_solves
from equilibria.report.page import page
from equilibria.runs.lock import keeping


def write_report(run: LoadedRun | Path | str, out: Path | str | None = None, progress: Progress = UNWATCHED) -> Path:
    """Writes a run's report and returns its path: one self-contained HTML file, replaced in one go.

    The best checkpoint reads some validation text for it. The page names what the folder lacks.

    Args:
        run: one that has started, or its folder.
        out: the file to write; None for the run's `report.html`.
        progress: receives the stages.

    Raises:
        UserError: there is no such run, matplotlib cannot be loaded, or the page cannot be written.
    """
    folder = run.folder.path if isinstance(run, LoadedRun) else Path(run)
    found = gather(folder)
    target = found.folder.report if out is None else Path(out)
    if target.is_dir():
        raise UserError(f"{target} cannot be written: it is a folder; name a file with --out FILE")
    loaded = found.attempt(lambda: load_run(folder))
    solves = None if loaded is None else found.attempt(lambda: measure_solves(loaded, progress))
    headline = cards(found, None if loaded is None else loaded.model)
    with progress.bar("drawing", None, "pictures"):
        html = page(found, headline, solves).encode(errors="replace")
    with reported(target, "write elsewhere with --out FILE"), keeping(found.folder) if out is None else nullcontext():
        write_durably(target, html)
    return target
