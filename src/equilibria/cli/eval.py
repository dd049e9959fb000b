"""`equilibria eval`."""

import json as json_format
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.table import Table
from rich.text import Text

from equilibria.cli.progress import ConsoleProgress
from equilibria.configuration import OtherText
from equilibria.data.corpus import Split
from equilibria.data.progress import Progress
from equilibria.distributed import training_device
from equilibria.inference.effort import Effort, Leaving, with_effort
from equilibria.inference.evaluation import Evaluation, Spread, TextEvaluation, evaluate
from equilibria.inference.loading import LoadedRun, load_run
from equilibria.inference.subject import Subject, subject
from equilibria.runs.folder import RunFolder
from equilibria.runs.lock import save_beside

command = App(name="eval")

Count = Annotated[int | None, Parameter(validator=Number(gte=1))]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a text is read when a model is evaluated."""

    split: Split | None = None
    """Which part of the text; left out: valid, or all of --data.files."""
    segment_length: Count = None
    """Tokens of each row per solve; left out: as in training."""
    batch_size: Count = None
    """Rows of text read side by side; left out: as in training."""
    memory_length: Annotated[int | None, Parameter(validator=Number(gte=0))] = None
    """Equilibria of the segment before that a segment sees; left out: as in training."""
    max_evaluations: Count = None
    """Evaluations of the cell per solve, at most; left out: as the recipe's eval_solver says."""
    tolerance: Annotated[float | None, Parameter(validator=Number(gt=0))] = None
    """Residual at which a token has converged; left out: as the recipe's eval_solver says. With --leave unchanged, how
    many nats a prediction may change by; left out: 1e-3."""
    leave: Leaving | None = None
    """Tokens leave and cost no more once they have "converged", once their prediction is "unchanged", or all after the
    "budget" of evaluations; left out: all are solved together, by the recipe's eval_solver."""


@command.default
def evaluate_run(
    run: Path,
    /,
    *,
    reading: Annotated[Reading | None, Parameter(name="*")] = None,
    data: Annotated[OtherText | None, Parameter(name_transform=lambda name: name)] = None,
    checkpoint: str = "best",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    json: bool = False,
) -> int:
    """Evaluate a run on its text, each token predicted once, or its task; evaluation.json keeps the figures.

    With --data flags on another text, with the run's own tokenizer; the run's evaluation.json stays as it is.

    Args:
        run: the run folder.
        reading: how the text is read.
        data: another text than the run's.
        checkpoint: "best" by validation loss, "last" or "step-N".
        device: where to compute; "auto" takes CUDA if there is a device.
        json: print the figures as one JSON object and nothing else.
    """
    loaded, reading = load_run(run, checkpoint), reading or Reading()
    loaded.model.to(training_device(device))
    result = measure_reading(loaded, reading, ConsoleProgress(Console(stderr=True)), data)
    if result.subject.own:
        keep_evaluation(loaded.folder, result)  # before it is printed: nobody may be there to read it
    if json:
        print(json_format.dumps(result.to_json()))
    else:
        Console().print(_table(run, result))
    return 0


@dataclass(frozen=True)
class RunEvaluation:
    """An evaluation of a run's model, and what it is measured by.

    Attributes:
        settings: which weights read the text and how; of the effort what was asked for, None for what the recipe says.
        model: the model's figures.
        subject: what was read. Its yardsticks are the same text's n-gram models, counted on the training text
            (`unigram_perplexity`, `trigram_perplexity`, per token); of a task the least loss without memory
            (`chance_loss`).
    """

    settings: dict[str, str | int | float | None]
    model: Evaluation
    subject: Subject

    @property
    def yardsticks(self) -> Mapping[str, float]:
        """Those of the subject."""
        return self.subject.yardsticks

    def to_json(self) -> dict[str, object]:
        """All figures, in one object."""
        about = {"text": self.subject.text, "split": self.subject.part}
        unknown = {"unknown_tokens": self.subject.unknown}
        return {**about, **self.settings, **self.model.to_json(), **unknown, **self.yardsticks}


def evaluate_reading(loaded: LoadedRun, reading: Reading, progress: Progress) -> RunEvaluation:
    """Evaluates a run's model on what it was trained on, and keeps the figures in the folder; the arguments and errors
    are those of `measure_reading`."""
    result = measure_reading(loaded, reading, progress)
    keep_evaluation(loaded.folder, result)
    return result


def measure_reading(
    loaded: LoadedRun, reading: Reading, progress: Progress, other: OtherText | None = None
) -> RunEvaluation:
    """Evaluates a run's model on what it was trained on, or on another text.

    Args:
        loaded: the run.
        reading: how its text is read; of a task, whose sequences are whole, the segment length has no part in it.
        progress: told of each thing that takes a while.
        other: another text than the run's.

    Raises:
        UserError: there is no such text or split, or the model has no solver to limit.
    """
    training = loaded.recipe.training
    effort = Effort(tolerance=reading.tolerance, max_evaluations=reading.max_evaluations, leave=reading.leave)
    model = with_effort(loaded.model, effort)
    segment_length = reading.segment_length or training.segment_length
    memory_length = model.memory_length if reading.memory_length is None else reading.memory_length
    batch_size = reading.batch_size or training.batch_size
    with subject(loaded, reading.split, other, progress) as found:
        return RunEvaluation(
            settings={
                "checkpoint": loaded.checkpoint.name,
                "step": loaded.step,
                "device": next(model.parameters()).device.type,
                "segment_length": segment_length,
                "memory_length": memory_length,
                **asdict(effort),
            },
            model=evaluate(model, found.content, batch_size, segment_length, memory_length),
            subject=found,
        )


def keep_evaluation(folder: RunFolder, result: RunEvaluation) -> None:
    """Writes a run's evaluation.json in one go, or warns."""
    save_beside(folder, folder.evaluation, json_format.dumps(result.to_json()) + "\n")


def _table(run: Path, evaluation: RunEvaluation) -> Table:
    result, text = evaluation.model, evaluation.subject
    title = f"{run}, {evaluation.settings['checkpoint']}, {text.part}"
    unconverged = "-" if result.unconverged is None else f"{result.unconverged:.1%} of {result.solves:,}"
    rows = {
        **({} if text.own else {"text": f"{text.name}: not the run's own, so these figures are not kept in it"}),
        "loss": f"{result.loss:.4g} nats per token",
        **({} if result.accuracy is None else {"accuracy": f"{result.accuracy:.3%} of the answers"}),
        **_of_text(result),
        **{name.replace("_", " "): f"{value:,.4g}" for name, value in evaluation.yardsticks.items()},
        "tokens": f"{result.tokens:,}"
        + ("" if text.unknown is None else f", {text.unknown:,} unknown words among them"),
        "residual per token": _spread(result.residual),
        "evaluations per token": _spread(result.evaluations),
        "evaluations per solve": _number(result.evaluations_per_solve),
        "solves not converged": unconverged,
        "speed": f"{result.tokens_per_second:,.0f} tokens per second",
    }
    table = Table(title=Text(title), show_header=False)
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table


def _of_text(result: Evaluation) -> dict[str, str]:
    """What only a text has."""
    if not isinstance(result, TextEvaluation):
        return {}
    return {
        "perplexity": f"{result.perplexity:,.2f} per token, {result.word_perplexity:,.2f} per word",
        "bits per byte": f"{result.bits_per_byte:.4f}",
        "counted": f"{result.words:,} words, {result.bytes:,} bytes",
    }


def _spread(spread: Spread) -> str:
    return f"mean {_number(spread.mean)}, 95th percentile {_number(spread.p95)}, worst {_number(spread.worst)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
