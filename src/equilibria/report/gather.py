"""Reads as much of a run folder as there is; missing or damaged parts are listed, never an error."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TypeVar

from equilibria.configuration import Recipe, read_recipe
from equilibria.data import Task
from equilibria.errors import UserError
from equilibria.files.formats import read_json
from equilibria.inference.effort import Effort
from equilibria.inference.trained import trained_models
from equilibria.runs.folder import RunFolder, no_run
from equilibria.runs.metrics import read_metrics

Figures = Mapping[str, object]
Part = TypeVar("Part")


@dataclass
class RunRecord:
    """What a run folder holds; None for what it lacks.

    Attributes:
        config: config.toml as text.
        metrics: the lines of metrics.jsonl.
        best_step: of the best checkpoint.
        evaluation, sample: of evaluation.json and sample.json.
        missing: a sentence for each missing part, and how to get it.
    """

    folder: RunFolder
    config: str | None = None
    recipe: Recipe | None = None
    metrics: Sequence[Figures] = ()
    best_step: int | None = None
    evaluation: Figures | None = None
    sample: Figures | None = None
    missing: list[str] = field(default_factory=list)

    @property
    def explicit(self) -> bool:
        """Whether the model solves nothing."""
        return self.recipe is not None and not getattr(depth_of(self.recipe), "solves", False)

    @property
    def made(self) -> bool:
        """Whether the run is of a task of generated sequences, not of text."""
        return self.recipe is not None and isinstance(self.recipe.data, Task)

    def lines(self, kind: str) -> list[Figures]:
        """The lines of metrics of one kind: `"train"`, `"valid"` or `"event"`."""
        return [line for line in self.metrics if line.get("kind") == kind]

    def best_validation(self) -> Figures | None:
        """The validation line of the best checkpoint; without checkpoints, that of the least loss, which may be of a
        warm-up at another depth."""
        measured = [line for line in self.lines("valid") if number(line, "loss") is not None]
        if self.best_step is None:
            return min(measured, key=lambda line: number(line, "loss") or 0.0, default=None)
        return next((line for line in reversed(measured) if line.get("step") == self.best_step), None)

    @property
    def evaluated_split(self) -> str:
        """Which part of the text evaluation.json is about; `"valid"` if there is none."""
        return str(self.evaluation.get("split", "valid")) if self.evaluation is not None else "valid"

    @property
    def on_validation(self) -> Figures | None:
        """evaluation.json if it is about the validation text, for any model."""
        return self.evaluation if self.evaluated_split == "valid" else None

    def departures(self) -> list[str]:
        """How evaluation.json differs from the best checkpoint at the recipe's effort."""
        evaluation = self.evaluation
        if evaluation is None:
            return []
        found = []
        if self.best_step is not None and number(evaluation, "step") != self.best_step:
            name = evaluation.get("checkpoint") or f"step-{evaluation.get('step')}"
            found.append(f"of {name}; the best checkpoint is step-{self.best_step}")
        effort = [option.name for option in fields(Effort)]
        found += [f"{name.replace('_', ' ')} {evaluation[name]}" for name in effort if evaluation.get(name) is not None]
        if not self.explicit and not evaluation.keys() >= set(effort):
            found.append(f"its effort is not recorded; `equilibria eval {self.folder.path}` measures anew")
        return found

    @property
    def final(self) -> Figures | None:
        """evaluation.json if it measures the run's model: on validation text, without departures."""
        return None if self.departures() else self.on_validation

    def attempt(self, read: Callable[[], Part]) -> Part | None:
        """What `read` returns, or None with its `UserError` noted as missing."""
        try:
            return read()
        except UserError as problem:
            if str(problem) not in self.missing:
                self.missing.append(str(problem))
            return None


def depth_of(recipe: Recipe) -> object:
    """The depth of a recipe's model, if it has one."""
    return getattr(recipe.model, "depth", None)


def gather(path: Path) -> RunRecord:
    """Reads a run folder; a UserError where there is none."""
    folder = RunFolder(path)
    if not folder.config.exists() and not folder.metrics.exists():
        if path.as_posix() in trained_models():
            raise UserError(
                f"{path} is a model of the package, without the course of a training that a report shows; "
                f"`equilibria models {path}` shows its card"
            )
        raise UserError(no_run(path))
    run = RunRecord(folder)
    run.config = run.attempt(lambda: _text(folder.config, "the recipe cannot be shown"))
    if run.config is not None:
        run.recipe = run.attempt(lambda: read_recipe(folder.config, []))
    run.metrics = run.attempt(lambda: _metrics(folder.metrics)) or ()
    for kind, means in (("train", "training curves"), ("valid", "validation figures")):
        if run.metrics and not run.lines(kind):
            run.missing.append(f"{folder.metrics} has no {kind!r} line yet, so there are no {means}")
    run.best_step = run.attempt(folder.best_step)
    run.evaluation = run.attempt(lambda: read_json(folder.evaluation, dict, f"`equilibria eval {path}` writes it"))
    if not run.made or folder.sample.exists():  # a page of a task needs no text
        run.sample = run.attempt(lambda: read_json(folder.sample, dict, f"`equilibria generate {path}` writes it"))
    return run


def number(figures: Figures | None, name: str) -> float | None:
    """A finite number of that name, or None."""
    value = figures.get(name) if figures is not None else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def nested(figures: Figures | None, name: str) -> Figures | None:
    """The object of that name inside another, or None."""
    value = figures.get(name) if figures is not None else None
    return value if isinstance(value, Mapping) else None


def baseline_perplexities(evaluation: Figures | None) -> dict[str, float]:
    """Perplexities per token of n-gram models on the text of an evaluation, by name; empty if unknown."""
    found = {name: number(evaluation, f"{name}_perplexity") for name in ("unigram", "trigram")}
    return {name: value for name, value in found.items() if value is not None and value > 0}


def reference_losses(evaluation: Figures | None) -> dict[str, float]:
    """Reference losses in nats, by name: n-gram models of a text, chance without memory."""
    references = {name: math.log(value) for name, value in baseline_perplexities(evaluation).items()}
    chance = number(evaluation, "chance_loss")
    return references if chance is None else references | {"chance": chance}


def _text(path: Path, otherwise: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as problem:
        raise UserError(f"{path} is missing: {otherwise}") from problem
    except (OSError, ValueError) as problem:
        raise UserError(f"{path} cannot be read ({problem})") from problem


def _metrics(path: Path) -> list[dict[str, object]]:
    if not path.is_file():
        raise UserError(f"{path} is missing: there are no curves")
    lines = read_metrics(path)
    if not lines:
        raise UserError(f"{path} is empty: there are no curves yet")
    return lines
