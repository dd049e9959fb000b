"""Evaluating a run: its model, as its recipe or the caller says, on its own text or another one."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from equilibria.data import Source, Split, Task
from equilibria.data.progress import UNWATCHED, Progress
from equilibria.inference.effort import Effort, depth_at
from equilibria.inference.evaluation import Evaluation, evaluate
from equilibria.inference.loading import LoadedRun, load_run
from equilibria.inference.subject import Subject, subject
from equilibria.runs.folder import RunFolder
from equilibria.runs.lock import save_beside


@dataclass(frozen=True, kw_only=True)
class Passes:
    """How a text is read when a run is evaluated.

    Attributes:
        split: which part of the text; None for valid, or all of other files.
        segment_length: tokens of each row per solve; None for as in training.
        batch_size: rows of text read side by side; None for as in training.
        memory_length: equilibria of the segment before that a segment sees; None for as in training.
        effort: how much is computed per token.
    """

    split: Split | None = None
    segment_length: int | None = None
    batch_size: int | None = None
    memory_length: int | None = None
    effort: Effort = field(default_factory=Effort)


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


def evaluate_run(
    run: LoadedRun | Path | str,
    passes: Passes | None = None,
    data: Source | Task | None = None,
    progress: Progress = UNWATCHED,
) -> RunEvaluation:
    """Evaluates a run's model on what it was trained on, or on another text; writes nothing.

    Args:
        run: the run, or its folder.
        passes: how its text is read; of a task, whose sequences are whole, the segment length has no part in it.
        data: another text or task than the run's; it is encoded with the run's own tokenizer.
        progress: receives what takes a while.

    Raises:
        UserError: there is no such run, text or split, or the model has no solver to limit.
    """
    loaded = run if isinstance(run, LoadedRun) else load_run(run)
    passes = passes or Passes()
    training = loaded.recipe.training
    model, depth = loaded.model, depth_at(loaded.model, passes.effort)
    segment_length = passes.segment_length or training.segment_length
    memory_length = model.memory_length if passes.memory_length is None else passes.memory_length
    batch_size = passes.batch_size or training.batch_size
    with subject(loaded, passes.split, data, progress) as found:
        return RunEvaluation(
            settings={
                "checkpoint": loaded.checkpoint.name,
                "step": loaded.step,
                "device": next(model.parameters()).device.type,
                "segment_length": segment_length,
                "memory_length": memory_length,
                **asdict(passes.effort),
            },
            model=evaluate(model, found.content, batch_size, segment_length, memory_length, depth=depth),
            subject=found,
        )


def keep_evaluation(folder: RunFolder, result: RunEvaluation) -> None:
    """Writes a run's evaluation.json in one go, or warns: figures that took hours are worth having without it."""
    save_beside(folder, folder.evaluation, json.dumps(result.to_json()) + "\n")
