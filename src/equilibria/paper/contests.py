"""The measured tables: what training costs the models of a contest, each in terms of the explicit one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from equilibria.configuration import Recipe
from equilibria.configuration.building import build_model
from equilibria.data.batches import ZipfBatches
from equilibria.inference.loading import load_run
from equilibria.measuring.size import Size, size_of
from equilibria.measuring.spread import Quartiles, ratios
from equilibria.measuring.steps import Contender, alternate, saved_by_step
from equilibria.models import LanguageModel, TokenModel
from equilibria.paper.runs import row_status
from equilibria.paper.tables import Contest, Row, Setting
from equilibria.training.loop import TrainingLoop

_EVALUATED = 4  # segments of an evaluation pass

Say = Callable[[str], None]


@dataclass(frozen=True)
class Entrant:
    """A row of a contest, with its recipe at the contest's scale."""

    row: Row
    recipe: Recipe
    vocabulary_size: int

    def model(self) -> tuple[TokenModel, bool]:
        """The model, and whether it is trained: it is if the row has been run at this scale and seed."""
        if row_status(self.recipe).figures is not None:
            return load_run(self.recipe.run.folder).model, True
        torch.manual_seed(self.recipe.training.seed)
        return build_model(self.recipe, self.vocabulary_size), False


@dataclass(frozen=True)
class Memory:
    """What a training step of a row keeps: bytes for the backward pass, and their ratio to the contest's first row."""

    row: Row
    size: Size
    saved: int
    ratio: float


def memory_of(entrants: list[Entrant], setting: Setting, say: Say) -> Iterator[Memory]:
    """The memory of each, one model at a time."""
    first = None
    for entrant in entrants:
        say(f"memory of {entrant.recipe.run.name}")
        model, _ = entrant.model()
        saved = saved_by_step(model, _batches(model, setting, entrant.recipe.training.seed))
        first = first or saved
        yield Memory(entrant.row, size_of(model), saved, saved / first)


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


def runtime_of(entrants: list[Entrant], setting: Setting, say: Say) -> Iterator[Runtime]:
    """The times of all, taken in turn."""
    models = [entrant.model() for entrant in entrants]
    contenders = [_contender(entrant, model, setting) for entrant, (model, _) in zip(entrants, models, strict=True)]
    say(f"timing {' and '.join(entrant.recipe.run.name for entrant in entrants)}, {setting.rounds} rounds")
    alternate(contenders, setting.rounds)
    first = contenders[0]
    for entrant, (model, trained), contender in zip(entrants, models, contenders, strict=True):
        yield Runtime(
            row=entrant.row,
            size=size_of(model),
            trained=trained,
            training=Quartiles.of(contender.training),
            inference=Quartiles.of(contender.inference),
            training_ratio=ratios(contender.training, first.training),
            inference_ratio=ratios(contender.inference, first.inference),
        )


def _contender(entrant: Entrant, model: TokenModel, setting: Setting) -> Contender:
    """Trains at the model's own depth, not at that of its warm-up; the weights hardly move."""
    training = replace(entrant.recipe.training, accumulation=1, learning_rate=1e-9)
    batches = _batches(model, setting, training.seed)
    depth = model.depth.steady() if isinstance(model, LanguageModel) else None
    evaluated = [batches.at(index) for index in range(_EVALUATED)]
    return Contender(TrainingLoop(model, training, batches, depth), evaluated)


def _batches(model: TokenModel, setting: Setting, seed: int) -> ZipfBatches:
    return ZipfBatches(model.embedding.vocabulary_size, setting.batch_size, setting.segment_length, seed)


def entrants_of(contest: Contest, recipe: Callable[[Row], Recipe]) -> list[Entrant]:
    """The rows of a contest, each with its recipe."""
    recipes = [(row, recipe(row)) for row in contest.rows]
    return [Entrant(row, found, contest.table.vocabulary_of(found)) for row, found in recipes]
