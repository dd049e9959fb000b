"""`equilibria demo`."""

import json as json_format
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

from cyclopts import App
from rich.console import Console
from rich.table import Table
from rich.text import Text

from equilibria.cli.generate import Draw, write_texts
from equilibria.cli.output import go_on_unheard
from equilibria.cli.progress import ConsoleProgress, progress_console
from equilibria.cli.settings import Settings, check_flags
from equilibria.cli.train import exit_code
from equilibria.configuration import Recipe, read_recipe
from equilibria.data.progress import Progress
from equilibria.inference.effort import Effort
from equilibria.inference.evaluation import Evaluation, TextEvaluation
from equilibria.inference.loading import LoadedRun, load_run
from equilibria.inference.run_evaluation import Passes, evaluate, keep_evaluation
from equilibria.report import write_report
from equilibria.training import train

command = App(name="demo", usage="Usage: equilibria demo [RECIPE | state-tracking] [OPTIONS] [--KEY VALUE ...]")
command.command(
    "equilibria.cli.state_tracking:state_tracking",
    name="state-tracking",
    usage="Usage: equilibria demo state-tracking [OPTIONS] [--KEY VALUE ...]",
)

_DRAW = Draw(max_new_tokens=120, temperature=0.7, top_p=0.9, seed=1)


@command.default
def demo(*settings: Settings, json: bool = False) -> int:
    """Train a small model on the documentation inside Python, evaluate it, write text and a report.

    Args:
        settings: a TOML file or the name of a recipe of the package, demo where there is none; then flags of
            `equilibria train`. The name of the run gets a number.
        json: print the figures as one JSON object on stdout; progress goes to stderr.
    """
    go_on_unheard()
    console = progress_console(json)
    named = bool(settings) and not settings[0].startswith("-")
    recipe, *flags = settings if named else ("demo", *settings)
    check_flags(demo, flags)
    result = train(_numbered(read_recipe(recipe, flags)), console=console, progress=ConsoleProgress(console))
    if result.interrupted is not None:
        return exit_code(result)
    figures = _figures(result.folder, console) | {"training_tokens_per_second": result.tokens_per_second}
    if json:
        print(json_format.dumps(figures))
    else:
        console.print(_summary(figures))
    return 0


def _numbered(recipe: Recipe) -> Recipe:
    """The recipe with the first free number after the run's name."""
    runs = (replace(recipe.run, name=f"{recipe.run.name}-{number}") for number in count(1))
    return replace(recipe, run=next(run for run in runs if not run.folder.exists()))


def _figures(folder: Path, console: Console) -> dict[str, object]:
    """Evaluates the trained model and its yardsticks, writes a sample and the report."""
    loaded = load_run(folder)
    progress = ConsoleProgress(console)
    console.print("evaluating on all validation text")
    evaluation = evaluate(loaded, progress=progress)
    keep_evaluation(loaded, evaluation)
    model, radius = evaluation.model, evaluation.model.spectral_radius
    once = _applied_once(loaded, progress) if model.solves else None
    samples = write_texts(loaded, _DRAW, lambda *_: None, progress) if loaded.continues else []
    return {
        "run": str(folder),
        "report": str(write_report(folder, progress=progress)),
        "loss": model.loss,
        "perplexity": model.perplexity,
        "accuracy": model.accuracy,
        "last_accuracy": model.last_accuracy,
        "sequence_accuracy": model.sequence_accuracy,
        "perplexity_once": once.perplexity if isinstance(once, TextEvaluation) else None,
        "accuracy_once": None if once is None else once.accuracy,
        **evaluation.yardsticks,
        "evaluations_per_solve": model.evaluations_per_solve,
        "evaluations_median": model.evaluations.median,
        "evaluations_p90": model.evaluations.p90,
        "residual": model.residual.mean,
        "spectral_radius": None if radius is None else radius.mean,
        "sample": samples[0].text if samples else None,
    }


def _applied_once(loaded: LoadedRun, progress: Progress) -> Evaluation:
    """With the state after one application of the cell in place of the solution: what solving is for."""
    return evaluate(loaded, Passes(effort=Effort(applications=1)), progress=progress).model


def _summary(figures: dict[str, object]) -> Table:
    """A row for each known figure: a task has no n-gram models, an explicit depth no solves."""
    rows = {
        "validation perplexity": "{perplexity:.1f} "
        "(unigram model {unigram_perplexity:.1f}, trigram model {trigram_perplexity:.1f})",
        "validation loss": "{loss:.4g} nats per token (at least {chance_loss:.4g} without memory)",
        "answers": "{accuracy:.1%} of them right, {last_accuracy:.1%} at the last position",
        "after one application": "validation perplexity {perplexity_once:.1f}",
        "answers after one application": "{accuracy_once:.1%} of them right",
        "evaluations per token": "median {evaluations_median:.0f}; the slowest tenth at least {evaluations_p90:.0f}",
        "evaluations per solve": "{evaluations_per_solve:.1f}",
        "residual reached": "{residual:.1e} (mean over tokens)",
        "spectral radius": "{spectral_radius:.2f} (mean over some tokens)",
        "training speed": "{training_tokens_per_second:,.0f} tokens per second",
        "sample": "{sample}",
        "run folder": "{run}",
        "report": "{report}",
    }
    table = Table(title="demo", show_header=False, show_lines=True)
    known = {name: figure for name, figure in figures.items() if figure is not None}
    for name, template in rows.items():
        with suppress(KeyError):
            table.add_row(name, Text(template.format_map(known)))
    return table
