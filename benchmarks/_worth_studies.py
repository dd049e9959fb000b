"""The studies of `equilibria bench worth`: what is trained, beside what, and on what it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from equilibria.depths import Equilibrium
from equilibria.inference.effort import Effort
from equilibria.models import LanguageModel, TokenModel

_LONG = 1000  # of a word, beyond which reading takes minutes


@dataclass(frozen=True)
class Row:
    """A recipe of the package, and the keys that it gets."""

    recipe: str
    changes: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """What a trained row is evaluated on.

    Attributes:
        data: keys of [data] that differ from training.
        batch_size: sequences side by side.
        chunk_length: tokens that are solved together, from left to right over a cache; None for whole sequences.
        effort: of each solve; what solves nothing is read as it is.
        for_all: whether explicit networks, too, are read so; their cost may be many times that of an equilibrium.
    """

    data: Mapping[str, object] = field(default_factory=dict)
    batch_size: int = 32
    chunk_length: int | None = None
    effort: Effort = field(default_factory=Effort)
    for_all: bool = True

    def suits(self, model: TokenModel) -> bool:
        """Whether a model is read so."""
        return self.for_all or not isinstance(model, LanguageModel) or _solves(model)

    def effort_of(self, model: TokenModel) -> Effort:
        """The effort, where a model solves."""
        return self.effort if _solves(model) else Effort()


def _solves(model: TokenModel) -> bool:
    return isinstance(model, LanguageModel) and isinstance(model.depth, Equilibrium)


@dataclass(frozen=True)
class Goal:
    """The least value of a figure at a reading."""

    reading: str
    least: float
    figure: str = "last_accuracy"


@dataclass(frozen=True)
class Study:
    """Rows and readings.

    Attributes:
        about: what it asks, in a line.
        common: keys that all rows get.
        goals: what a seed has to reach to count as right.
        shown: the figure in the table and the picture.
    """

    about: str
    rows: Mapping[str, Row]
    readings: Mapping[str, Reading]
    goals: Sequence[Goal]
    common: Mapping[str, object] = field(default_factory=dict)
    shown: str = "last_accuracy"

    @property
    def less_is_better(self) -> bool:
        """Whether the figure shown is a cost."""
        return not self.shown.endswith("accuracy")


def _tracking(
    group: str,
    recipe: str,
    explicit: int,
    decoded: Sequence[int],
    *goals: Goal,
    lengths: Sequence[int] = (16, 32, 64, 128, 256),
    layers: Mapping[str, object] | None = None,
    recurrent: Mapping[str, object] | None = None,
    common: Mapping[str, object] | None = None,
) -> Study:
    """A word problem: the equilibrium, and beside it the same weights applied a fixed number of times; separate layers
    and the recurrent control may get keys of their own."""
    tied, within = {"model.depth.kind": "unrolled"}, Effort(max_evaluations=512)
    readings = {f"{length}": Reading({"valid_length": length, "held_out": 128}, effort=within) for length in lengths}
    for length in decoded:
        word = {"valid_length": length, "held_out": 64 if length <= _LONG else 16}
        readings[f"{length:,} decoded"] = Reading(word, batch_size=64, chunk_length=1, for_all=False)
    return Study(
        about=f"words of {group}, trained at length {lengths[0]}: right answers at the last position",
        rows={
            "equilibrium": Row(f"state-tracking/{recipe}"),
            f"{explicit} times": Row(f"state-tracking/{recipe}", {**tied, "model.depth.applications": explicit}),
            "once": Row(f"state-tracking/{recipe}", {**tied, "model.depth.applications": 1}),
            "8 layers": Row("state-tracking/stack", {"data.group": group, **(layers or {})}),
            "LSTM": Row("state-tracking/lstm", {"data.group": group, **(recurrent or {})}),
        },
        readings=readings,
        goals=goals,
        common=common or {},
    )


def _wide(group: str, *goals: Goal) -> Study:
    """A word problem of a group of 60 elements, A5 or the cyclic control."""
    words = {"data.group": group, "data.length": 32, "data.shortest": 2}
    words |= {"data.staying": 2000, "data.growing": 5500, "data.growth_power": 2.0}
    return _tracking(
        group,
        "a5-transformer",
        20,
        (1000,),
        *goals,
        lengths=(32, 64, 128, 256),
        layers={"model.cell.d_model": 96, "model.cell.inner": 512},
        recurrent={"model.d_model": 96, "model.hidden": 192},
        common={**words, "training.steps": 9500, "training.batch_size": 128, "training.segment_length": 32},
    )


def _chain() -> Study:
    """Ways to solve a word along which a state must travel, token after token."""
    word = {"valid_length": 1024, "held_out": 8}
    chunks = {f"chunks of {length}": Reading(word, 8, chunk_length=length) for length in (1, 4, 8, 16, 32, 64)}
    return Study(
        about="one word of 1,024 elements, solved in chunks from left to right or as a whole",
        rows={
            "parity": Row("state-tracking/parity-trellisnet"),
            "S3": Row("state-tracking/s3-trellisnet"),
        },
        readings=chunks | {"whole": Reading(word, 8, effort=Effort(max_evaluations=2048))},
        goals=[Goal("chunks of 8", 1.0)],
        shown="seconds",
    )


def _budgets() -> dict[str, Reading]:
    """Several budgets, and the recipe's own."""
    budgets = {
        f"{budget} evaluations": Reading({}, 100, effort=Effort(max_evaluations=budget), for_all=False)
        for budget in (2, 4, 8, 16, 32, 64, 128, 256)
    }
    return budgets | {"as trained": Reading({}, 100)}


def _automaton(width: int, least: float) -> Study:
    """A fixed point as the answer, from few examples; what was published of each width is in the lab notes."""
    recipe, stack = "fixed-points/rule-78", {"model.depth.kind": "stack", "model.depth.layers": 14}
    tied = {"model.depth.kind": "unrolled", "model.depth.applications": 14}
    return Study(
        about=f"the fixed point of rule 78 on a ring of {width} bits, 4,000 examples: whole rings right",
        rows={
            "equilibrium": Row(recipe),
            "14 times": Row(recipe, tied),
            "once": Row(recipe, {**tied, "model.depth.applications": 1}),
            "14 layers": Row(recipe, stack),
        },
        readings=_budgets(),
        goals=[Goal("as trained", least, "sequence_accuracy")],
        common={"data.width": width},
        shown="sequence_accuracy",
    )


def _sudoku() -> Study:
    """Constraints that all cells put on each other, from few puzzles; stacks of about the equilibrium's weights."""
    recipe, tied = "fixed-points/sudoku-6", {"model.depth.kind": "unrolled"}

    def layers(count: int, width: int) -> dict[str, object]:
        sizes = {"model.cell.d_model": width, "model.cell.inner": 4 * width}
        return {"model.depth.kind": "stack", "model.depth.layers": count, **sizes}

    return Study(
        about="sudokus of 6 × 6 cells with 14 givens, 10,000 examples: whole grids right",
        rows={
            "equilibrium": Row(recipe),
            "10 times": Row(recipe, {**tied, "model.depth.applications": 10}),
            "once": Row(recipe, {**tied, "model.depth.applications": 1}),
            "4 layers": Row(recipe, layers(4, 48)),
            "10 layers": Row(recipe, layers(10, 32)),
        },
        readings=_budgets(),
        goals=[Goal("as trained", 0.5, "sequence_accuracy")],
        shown="sequence_accuracy",
    )


_FAR = (Goal("256", 1.0), Goal("10,000 decoded", 1.0))
_FOLLOWED = (Goal("64", 0.99), Goal("1,000 decoded", 0.99))

STUDIES: Mapping[str, Study] = {
    "parity": _tracking("Z2", "parity-trellisnet", 24, (1000, 10_000), *_FAR),
    "s3": _tracking("S3", "s3-trellisnet", 24, (1000, 10_000), *_FAR),
    "parity-transformer": _tracking("Z2", "parity-transformer", 20, (1000,), *_FOLLOWED),
    "s3-transformer": _tracking("S3", "s3-transformer", 20, (1000,), *_FOLLOWED),
    "a5": _wide("A5", Goal("128", 0.98)),
    "z60": _wide("Z60", Goal("32", 0.98)),
    "chain": _chain(),
    "sudoku-6": _sudoku(),
    "rule-78-12": _automaton(12, 0.95),
    "rule-78-16": _automaton(16, 0.90),
    "rule-78-24": _automaton(24, 0.60),
}
