"""What a published table is: rows of figures, and for each row the recipe that trains its model at any of three scales.

A scale is a list of flags that override the recipe, so what it changes can be read in one place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from equilibria.configuration import Recipe
from equilibria.data import Source
from equilibria.errors import UserError

Scale = Literal["tiny", "small", "full"]
Flags = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A model of a table.

    Args:
        name: short; for flags and folders.
        model: as the paper calls it.
        recipe: name of its file in the folder of its table.
        flags: what makes this model of the recipe, where another row has the same recipe.
        scales: the sizes of this model at a scale.
        parameters, inner: published numbers, in all and outside the embedding.
        figure: published loss or perplexity.
        gigabytes: published memory of training.
    """

    name: str
    model: str
    recipe: str
    flags: Flags = ()
    scales: Mapping[Scale, Flags] = field(default_factory=dict)
    parameters: float | None = None
    inner: float | None = None
    figure: float | None = None
    gigabytes: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrainedTable:
    """A published table of models trained on one task.

    Args:
        name: short; for the command line and folders.
        figure: what is compared.
        vocabulary_size: tokens of the task.
        rows: its models, in the paper's order.
        scales: flags of a scale, for every row; a row's own come after them.
        test_tokens: how much of the test text a scale reads; default: all.
        data: how to get the text; "" for none.
    """

    name: str
    title: str
    figure: Literal["loss", "perplexity"]
    vocabulary_size: int
    rows: tuple[Row, ...]
    scales: Mapping[Scale, Flags] = field(default_factory=dict)
    test_tokens: Mapping[Scale, int] = field(default_factory=dict)
    data: str = ""

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def flags(self, row: Row, scale: Scale) -> list[str]:
        """The flags that make a row's model of its recipe at a scale."""
        return [*row.flags, *self.scales.get(scale, ()), *row.scales.get(scale, ())]

    def vocabulary_of(self, recipe: Recipe) -> int:
        """Tokens in a recipe's vocabulary of the whole text of the task."""
        wanted = recipe.data.tokenizer.vocabulary_size if isinstance(recipe.data, Source) else None
        return min(wanted or self.vocabulary_size, self.vocabulary_size)


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Models that are measured side by side, each in terms of the first.

    Args:
        rows: the explicit model that is the measure, then its rivals.
        training, inference: published times of the last in terms of the first.
    """

    table: TrainedTable
    rows: tuple[Row, ...]
    training: float | None = None
    inference: float | None = None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The batch that every model of a comparison is given, and how often it is timed."""

    batch_size: int
    segment_length: int
    rounds: int


@dataclass(frozen=True, kw_only=True)
class MeasuredTable:
    """A published table of costs, which need no training to be measured."""

    name: str
    title: str
    contests: tuple[Contest, ...]
    settings: Mapping[Scale, Setting]

    def with_rows(self, scale: Scale, batch_size: int) -> "MeasuredTable":
        """The same with batches of so many rows at a scale."""
        settings = {**self.settings, scale: replace(self.settings[scale], batch_size=batch_size)}
        return replace(self, settings=settings)


def chosen(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """The rows of these names in the table's order, all of them by default; a UserError where there is no such row."""
    known = [row.name for row in rows]
    for name in names:
        if name not in known:
            raise UserError(f"--rows {name}: no such row; expected one of {', '.join(dict.fromkeys(known))}")
    return [row for row in rows if not names or row.name in names]
