"""`equilibria eval`."""

import json as json_format
import warnings
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from equilibria.cli.progress import ConsoleProgress, side_console
from equilibria.cli.settings import Count, Natural, Positive, Settings, check_flags
from equilibria.configuration import Recipe, checked
from equilibria.data import Source, Split, Task
from equilibria.devices import Device
from equilibria.distributed import training_device
from equilibria.errors import UserError
from equilibria.inference.effort import Effort, Leaving
from equilibria.inference.evaluation import Evaluation, Spread, TextEvaluation
from equilibria.inference.loading import load_run
from equilibria.inference.run_evaluation import Passes, RunEvaluation, evaluate, keep_evaluation


def evaluate_run(
    run: Path,
    /,
    *data: Settings,
    split: Split | None = None,
    segment_length: Count | None = None,
    batch_size: Count | None = None,
    memory_length: Natural | None = None,
    chunk_length: Count | None = None,
    applications: Count | None = None,
    max_evaluations: Count | None = None,
    tolerance: Positive | None = None,
    leave: Leaving | None = None,
    checkpoint: str = "best",
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Evaluate a run on its text, each token predicted once, or its task; evaluation.json keeps the figures.

    --data.path FOLDER, --data.files FILE... and the other keys of a recipe's [data] name another text, or another size
    of the task; it is read with the run's own tokenizer, and the run's evaluation.json stays as it is.

    Args:
        run: the run folder.
        data: another text than the run's.
        split: which part of the text; default: valid, or all of --data.files.
        segment_length: tokens of each row per solve; default: as in training.
        batch_size: rows of text read side by side; default: as in training.
        memory_length: equilibria of the segment before that a segment sees; default: as in training. With
            --chunk-length the tokens before a chunk that it sees at most; default: as many as in "generate", of a task
            all.
        chunk_length: read from left to right over a cache, as text is written, so many tokens solved together; default:
            whole segments or sequences.
        applications: read the state after exactly so many applications of the cell, without solving; default: the
            solution.
        max_evaluations: evaluations of the cell per solve, at most; default: as the recipe's eval_solver says.
        tolerance: residual at which a token has converged; default: as the recipe's eval_solver says. With --leave
            unchanged, how many nats a prediction may change by; default: 1e-3.
        leave: tokens leave and cost no more once they have "converged", or once their prediction is "unchanged";
            default: all are solved together, by the recipe's eval_solver.
        checkpoint: "best" by validation loss, "last" or "step-N".
        device: where to compute; "auto" takes CUDA if there is a device.
        json: print the figures as one JSON object and nothing else.
    """
    where = training_device(device)
    loaded = load_run(run, checkpoint)
    other = _other(loaded.recipe, data)
    loaded.model.to(where)
    passes = Passes(
        split=split,
        segment_length=segment_length,
        batch_size=batch_size,
        memory_length=memory_length,
        chunk_length=chunk_length,
        effort=Effort(tolerance=tolerance, max_evaluations=max_evaluations, leave=leave, applications=applications),
    )
    result = evaluate(loaded, passes, other, ConsoleProgress(side_console(json)))
    if result.subject.own:
        keep_evaluation(loaded, result)  # before printing, which may fail
    if json:
        print(json_format.dumps(result.to_json()))
    else:
        Console().print(_table(run, result))
    return 0


_ANOTHER = "another text is given with --data.files FILE or --data.path FOLDER"


def _other(recipe: Recipe, flags: Sequence[str]) -> Source | Task | None:
    if flags and not flags[0].startswith("--"):
        raise UserError(f"{flags[0]}: unexpected argument; {_ANOTHER}")
    check_flags(evaluate_run, flags, keys=("data",))
    names = [flag.partition("=")[0] for flag in flags if flag.startswith("--")]
    for name in names:
        if not name.startswith("--data."):
            raise UserError(f"{name}: no such option; {_ANOTHER}, and equilibria eval --help lists the options")
        if name.startswith("--data.tokenizer"):
            raise UserError(f"{name}: a run reads every text with its own tokenizer; omit the flag")
    if not flags:
        return None
    implied = [kind for key, kind in (("--data.path", "folder"), ("--data.files", "files")) if key in names]
    of_task = isinstance(recipe.data, Task) and hasattr(recipe.data, "path") and implied == ["folder"]
    if implied and not of_task and "--data.source" not in names:
        flags = [*flags, "--data.source", implied[0]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about options of the run's own text that another text does not have
        return checked(recipe, flags).data


def _table(run: Path, evaluation: RunEvaluation) -> Table:
    result, text = evaluation.model, evaluation.subject
    title = f"{run}, {evaluation.settings['checkpoint']}, {text.part}"
    rows = {
        **({} if text.own else {"text": f"{text.name}: not the run's own, so the run does not keep these figures"}),
        "loss": f"{result.loss:.4g} nats per token",
        **_accuracies(result),
        **(_text_figures(result) if isinstance(result, TextEvaluation) else {}),
        **{name.replace("_", " "): f"{value:,.4g}" for name, value in evaluation.yardsticks.items()},
        "tokens": f"{result.tokens:,}"
        + ("" if text.unknown is None else f", {text.unknown:,} unknown words among them"),
        **_solves(result),
        "speed": f"{result.tokens_per_second:,.0f} tokens per second",
    }
    table = Table(title=Text(title), show_header=False)
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table


def _accuracies(result: Evaluation) -> dict[str, str]:
    if result.accuracy is None:
        return {}
    return {
        "accuracy": f"{result.accuracy:.3%} of the answers",
        "at the last position": f"{result.last_accuracy:.3%} of the sequences",
        "whole sequences": f"{result.sequence_accuracy:.3%} of the sequences",
    }


def _solves(result: Evaluation) -> dict[str, str]:
    if not result.solves:
        return {}
    radius = result.spectral_radius
    return {
        "residual per token": _spread(result.residual),
        "evaluations per token": _spread(result.evaluations),
        "evaluations per solve": _number(result.evaluations_per_solve),
        "not converged": f"{result.unconverged:.1%} of the tokens",
        **({} if radius is None else {"spectral radius": _spread(radius)}),
    }


def _text_figures(result: TextEvaluation) -> dict[str, str]:
    return {
        "perplexity": f"{result.perplexity:,.2f} per token, {result.word_perplexity:,.2f} per word",
        "bits per byte": f"{result.bits_per_byte:.4f}",
        "counted": f"{result.words:,} words, {result.bytes:,} bytes",
    }


def _spread(spread: Spread) -> str:
    """In two lines, which have room in 80 columns."""
    return (
        f"mean {_number(spread.mean)}, median {_number(spread.median)}, worst {_number(spread.worst)}\n"
        f"90th percentile {_number(spread.p90)}, 95th percentile {_number(spread.p95)}"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
