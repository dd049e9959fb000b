"""The measured tables: what training costs the models of a contest, each in terms of the explicit one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from equilibria.configuration import Recipe
from equilibria.configuration.building import build_model
from equilibria.data.batches import ZipfBatches
from equilibria.inference.loading import load_run
from equilibria.measuring.size import Size, size_of
from equilibria.measuring.spread import Quartiles, ratios
from equilibria.measuring.steps import Contender, alternate, peak_of_step, saved_by_step
from equilibria.models import LanguageModel, TokenModel
from equilibria.paper.runs import row_status
from equilibria.paper.tables import Contest, Row, Setting
from equilibria.training.loop import TrainingLoop

_EVALUATED = 4  # segments of an evaluation pass

Say = Callable[[str], None]


@dataclass(frozen=True)
class MemoryCost:
    """Bytes of a training step of a row, and their ratios to those of the contest's first row.

    Attributes:
        saved: what it keeps for its backward pass.
        peak: new tensors at the peak of both passes, gradients among them.
    """

    row: Row
    size: Size
    saved: int
    peak: int
    ratio: float
    peak_ratio: float


def memory_of(contest: Contest, recipes: Sequence[Recipe], setting: Setting, say: Say) -> list[MemoryCost]:
    """The memory of each row, one model at a time; `recipes` are those of its rows."""
    costs: list[MemoryCost] = []
    for row, recipe in zip(contest.rows, recipes, strict=True):
        say(f"memory of {recipe.run.name}")
        model, _ = _model(contest, recipe)
        batches = _batches(model, setting, recipe.training.seed)
        saved, peak = saved_by_step(model, batches), peak_of_step(model, batches)
        first = costs[0] if costs else None
        ratios_ = (saved / first.saved, peak / first.peak) if first else (1.0, 1.0)
        costs.append(MemoryCost(row, size_of(model), saved, peak, *ratios_))
    return costs


@dataclass(frozen=True)
class Runtime:
    """How long a row takes.

    Attributes:
        trained: whether its weights were trained; a solve of untrained ones may end sooner.
        training, inference: seconds of a training step and of an evaluation pass.
        training_ratio, inference_ratio: in terms of the contest's first row.
    """

    row: Row
    size: Size
    trained: bool
    training: Quartiles
    inference: Quartiles
    training_ratio: Quartiles
    inference_ratio: Quartiles


def runtime_of(contest: Contest, recipes: Sequence[Recipe], setting: Setting, say: Say) -> list[Runtime]:
    """The times of all rows, taken in turn; `recipes` are those of its rows."""
    models = [_model(contest, recipe) for recipe in recipes]
    contenders = [_contender(recipe, model, setting) for recipe, (model, _) in zip(recipes, models, strict=True)]
    say(f"timing {' and '.join(recipe.run.name for recipe in recipes)}, {setting.rounds} rounds")
    alternate(contenders, setting.rounds)
    first = contenders[0]
    return [
        Runtime(
            row=row,
            size=size_of(model),
            trained=trained,
            training=Quartiles.of(contender.training),
            inference=Quartiles.of(contender.inference),
            training_ratio=ratios(contender.training, first.training),
            inference_ratio=ratios(contender.inference, first.inference),
        )
        for row, (model, trained), contender in zip(contest.rows, models, contenders, strict=True)
    ]


def _model(contest: Contest, recipe: Recipe) -> tuple[TokenModel, bool]:
    """The model, and whether it is trained: it is if the row has been run at this scale and seed."""
    if row_status(recipe).figures is not None:
        return load_run(recipe.run.folder).model, True
    torch.manual_seed(recipe.training.seed)
    return build_model(recipe, contest.table.vocabulary_of(recipe)), False


def _contender(recipe: Recipe, model: TokenModel, setting: Setting) -> Contender:
    """Trains at the model's own depth, not at that of its warm-up; the weights hardly move."""
    rows = {"batch_size": setting.batch_size, "segment_length": setting.segment_length, "accumulation": 1}
    training = replace(recipe.training, **rows, learning_rate=1e-9)
    batches = _batches(model, setting, training.seed)
    depth = model.depth.steady() if isinstance(model, LanguageModel) else None
    evaluated = [batches.at(index) for index in range(_EVALUATED)]
    return Contender(TrainingLoop(model, training, batches, depth), evaluated)


def _batches(model: TokenModel, setting: Setting, seed: int) -> ZipfBatches:
    return ZipfBatches(model.embedding.vocabulary_size, setting.batch_size, setting.segment_length, seed)
