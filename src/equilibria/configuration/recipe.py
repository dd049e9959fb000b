"""The dataclasses of a recipe; the text below each field is what `equilibria train --help` shows.

A key and its flag have the same name: `tol` below `[model.depth.solver]` is `--model.depth.solver.tol`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from equilibria.configuration.training import TrainingRecipe, training_problems
from equilibria.configuration.values import Count, Fraction, Natural, NonNegative, Positive, Ratio

SOLVER_OPTIONS = {
    "picard": ("damping",),
    "anderson": ("history", "ridge", "damping"),
    "broyden": ("history",),
}
"""Options that each solver takes beyond `tol`, `max_evaluations` and `scope`."""

GRADIENT_OPTIONS = {
    "implicit": ("tol", "max_evaluations"),
    "phantom": ("steps", "damping", "checkpoint"),
    "unrolled": ("steps", "checkpoint"),
}
"""Options that each gradient takes."""


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """The text and how it becomes tokens."""

    source: Literal["embedded", "folder", "files"] = "embedded"
    """Python's own documentation, a folder with train/valid/test.txt[.gz], or a list of text files."""
    path: Path | None = None
    """The folder, for source "folder"."""
    files: Annotated[tuple[Path, ...], Parameter(json_list=False)] = ()
    """The text files, for source "files"; as a flag, once per file."""
    tokenizer: Literal["word", "bpe", "bytes"] = "bpe"
    """What a token is: a word, a byte-pair unit learned from the training text, or a byte."""
    vocabulary_size: Count | None = None
    """Tokens in the vocabulary, at most; left out: all frequent words, or the usual number of byte pairs."""
    minimum_count: Count = 1
    """How often a word must occur in the training text to have a token of its own."""
    cache: Path = Path(".cache/equilibria")
    """Folder for encoded text; relative paths are relative to the working directory."""


@dataclass(frozen=True, kw_only=True)
class CellRecipe:
    """The map that is iterated."""

    kind: Literal["contractive", "post_norm"] = "contractive"
    """The default cell, whose carry contracts, or the one of the 2019 paper."""
    d_model: Count = 128
    """Width; a multiple of twice the heads."""
    heads: Count = 4
    """Attention heads."""
    inner: Count = 512
    """Width of the feed-forward layer."""
    blocks: Count = 1
    """Transformer blocks in one application; more than one only with kind "contractive"."""
    dropout: Fraction = 0.0
    """Probability of dropping; a mask is drawn once per solve."""


@dataclass(frozen=True, kw_only=True)
class SolverRecipe:
    """How the fixed point is found."""

    method: Literal["picard", "anderson", "broyden"]
    """Plain iteration, or one of two accelerations of it."""
    tol: Positive
    """Residual at which a group has converged."""
    max_evaluations: Count
    """Evaluations of the cell, at most."""
    scope: Literal["sample", "token", "prefix"] = "prefix"
    """What is solved on its own: a sequence (not causal), a token, or a token with those before it."""
    damping: Ratio | None = None
    """Share of the new value in a step; for picard and anderson."""
    history: Count | None = None
    """Earlier iterates kept; for anderson and broyden."""
    ridge: NonNegative | None = None
    """Regularisation relative to the scale of the Gram matrix; for anderson."""


@dataclass(frozen=True, kw_only=True)
class GradientRecipe:
    """How the backward pass is taken."""

    method: Literal["implicit", "phantom", "unrolled"]
    """Solve the adjoint equation, or differentiate a few steps from the solution, or all of a few."""
    steps: Count | None = None
    """Differentiated steps; for phantom and unrolled."""
    damping: Ratio | None = None
    """Share of the new value in a step; for phantom."""
    checkpoint: bool | None = None
    """Recompute each step in the backward pass instead of storing it; for phantom and unrolled."""
    tol: Positive | None = None
    """Residual at which the adjoint solve has converged; for implicit."""
    max_evaluations: Count | None = None
    """Vector-Jacobian products in the adjoint solve, at most; for implicit."""


@dataclass(frozen=True, kw_only=True)
class DepthRecipe:
    """How often the cell is applied."""

    kind: Literal["equilibrium", "unrolled"] = "equilibrium"
    """Solve for the fixed point, or apply the cell a fixed number of times (the explicit twin)."""
    applications: Count = 18
    """Applications of the cell, for kind "unrolled"; the next three sections are for kind "equilibrium"."""
    solver: Annotated[SolverRecipe, Parameter(group="model.depth.solver")] = field(
        default_factory=lambda: SolverRecipe(method="picard", tol=1e-2, max_evaluations=4)
    )
    """The solver in training."""
    eval_solver: Annotated[SolverRecipe, Parameter(group="model.depth.eval_solver")] = field(
        default_factory=lambda: SolverRecipe(method="picard", tol=5e-3, max_evaluations=10)
    )
    """The solver in evaluation and generation."""
    gradient: Annotated[GradientRecipe, Parameter(group="model.depth.gradient")] = field(
        default_factory=lambda: GradientRecipe(method="phantom", steps=7)
    )
    """The gradient of the solution."""
    residual_penalty: NonNegative = 2.5
    """Weight, in the training loss, of the mean residual that the last differentiated step leaves."""


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """A cell and a depth."""

    cell: Annotated[CellRecipe, Parameter(group="model.cell")] = field(default_factory=CellRecipe)
    """The map that is iterated."""
    depth: Annotated[DepthRecipe, Parameter(group="model.depth")] = field(default_factory=DepthRecipe)
    """How often it is applied."""
    memory_length: Natural = 0
    """Equilibria of the segment before that a segment sees."""


@dataclass(frozen=True, kw_only=True)
class RunRecipe:
    """Where the results go."""

    name: str
    """Name of the run: of a folder that does not exist yet, unless with --resume."""
    directory: Path = Path("runs")
    """Folder of runs."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.directory / self.name


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run."""

    run: Annotated[RunRecipe, Parameter(group="run")]
    """Where the results go."""
    data: Annotated[DataRecipe, Parameter(group="data")] = field(default_factory=DataRecipe)
    """The text."""
    model: Annotated[ModelRecipe, Parameter(group="model")] = field(default_factory=ModelRecipe)
    """The model."""
    training: Annotated[TrainingRecipe, Parameter(group="training")] = field(default_factory=TrainingRecipe)
    """How it is trained."""


def problems(recipe: Recipe) -> Iterator[str]:
    """What is wrong with values taken together that are right one by one; each line begins with a key."""
    yield from _data_problems(recipe.data)
    cell, depth = recipe.model.cell, recipe.model.depth
    if cell.d_model % (2 * cell.heads):
        multiple = f"a multiple of twice model.cell.heads, {2 * cell.heads}"
        yield f"model.cell.d_model = {cell.d_model}: expected {multiple}"
    if cell.kind == "post_norm" and cell.blocks != 1:
        yield f'model.cell.blocks = {cell.blocks}: expected 1, the only number that kind "post_norm" has'
    yield from _foreign_options("model.depth.solver", depth.solver, SOLVER_OPTIONS)
    yield from _foreign_options("model.depth.eval_solver", depth.eval_solver, SOLVER_OPTIONS)
    yield from _foreign_options("model.depth.gradient", depth.gradient, GRADIENT_OPTIONS)
    yield from training_problems(recipe.training)
    name = recipe.run.name
    if name in ("", ".", "..") or Path(name).name != name:
        yield f'run.name = "{name}": expected a name without slashes; where the folder is says run.directory'


def _data_problems(data: DataRecipe) -> Iterator[str]:
    for key, source, given in (
        ("path", "folder", data.path is not None),
        ("files", "files", bool(data.files)),
    ):
        if data.source == source and not given:
            yield f'data.{key} is missing: data.source = "{source}" needs it'
        if data.source != source and given:
            yield f'data.{key} is for data.source = "{source}", which is "{data.source}" here'


def _foreign_options(
    key: str, section: SolverRecipe | GradientRecipe, options: dict[str, tuple[str, ...]]
) -> Iterator[str]:
    """Options that are set but belong to another method."""
    own = options[section.method]
    for name in sorted({name for names in options.values() for name in names}.difference(own)):
        if getattr(section, name) is not None:
            yield f'{key}.{name}: method "{section.method}" has no such option; it takes {", ".join(own)}'
