"""From a recipe to the objects it names: the one place that maps names to classes."""

from collections.abc import Callable
from dataclasses import replace

from equilibria.cells import Cell, ContractiveCell, PostNormCell
from equilibria.configuration.recipe import (
    GRADIENT_OPTIONS,
    SOLVER_OPTIONS,
    CellRecipe,
    DataRecipe,
    DepthRecipe,
    GradientRecipe,
    Recipe,
    SolverRecipe,
)
from equilibria.data import Corpus, EmbeddedText, Source, TextFiles, TextFolder, TokenizerSpec, prepare
from equilibria.depths import Depth, Equilibrium, UnrolledDepth
from equilibria.errors import UserError
from equilibria.gradients import Gradient, Implicit, Phantom, Unrolled
from equilibria.models import LanguageModel
from equilibria.nn import TiedEmbedding
from equilibria.solvers import Anderson, Broyden, Picard, Solver

_SOLVERS = {"picard": Picard, "anderson": Anderson, "broyden": Broyden}
_GRADIENTS = {"phantom": Phantom, "unrolled": Unrolled}


def build_corpus(recipe: Recipe, on_progress: Callable[[str], None] | None = None) -> Corpus:
    """The recipe's text, encoded; read from the cache where it has been encoded before.

    Args:
        recipe: what text, and which tokens.
        on_progress: called with a line for each thing that takes a while.

    Raises:
        UserError: a file is missing, or there is no text in it.
    """
    data = recipe.data
    spec = TokenizerSpec(data.tokenizer, data.vocabulary_size, data.minimum_count)
    return prepare(_source(data), spec, data.cache, on_progress)


def build_model(recipe: Recipe, vocabulary_size: int) -> LanguageModel:
    """The recipe's model, freshly initialised.

    Args:
        recipe: its cell, its depth and its memory.
        vocabulary_size: tokens in the vocabulary.
    """
    model = recipe.model
    cell = _cell(model.cell)
    return LanguageModel(
        TiedEmbedding(vocabulary_size, cell.d_model),
        cell,
        depth=_depth(model.depth),
        memory_length=model.memory_length,
        dropout=model.cell.dropout,
    )


def build_solver(recipe: SolverRecipe) -> Solver:
    """The solver that a section of a recipe describes."""
    return replace(
        _SOLVERS[recipe.method](tol=recipe.tol, max_evaluations=recipe.max_evaluations, scope=recipe.scope),
        **_given(recipe, SOLVER_OPTIONS[recipe.method]),
    )


def build_gradient(recipe: GradientRecipe) -> Gradient:
    """The gradient that a section of a recipe describes."""
    options = _given(recipe, GRADIENT_OPTIONS[recipe.method])
    if recipe.method == "implicit":
        adjoint = Implicit().solver
        return Implicit(solver=replace(adjoint, **options))
    return _GRADIENTS[recipe.method](**options)


def _given(recipe: SolverRecipe | GradientRecipe, options: tuple[str, ...]) -> dict[str, float | int | bool]:
    """Those options that the recipe sets; the others keep the defaults of their class."""
    return {name: value for name in options if (value := getattr(recipe, name)) is not None}


def _source(data: DataRecipe) -> Source:
    match data.source:
        case "embedded":
            return EmbeddedText()
        case "folder" if data.path is not None:
            return TextFolder(data.path)
        case "files" if data.files:
            return TextFiles(data.files)
    raise UserError(f'data.source = "{data.source}" needs data.{"path" if data.source == "folder" else "files"}')


def _cell(cell: CellRecipe) -> Cell:
    match cell.kind:
        case "contractive":
            return ContractiveCell(cell.d_model, cell.heads, cell.inner, cell.blocks, cell.dropout)
        case "post_norm":
            return PostNormCell(cell.d_model, cell.heads, cell.inner, cell.dropout)


def _depth(depth: DepthRecipe) -> Depth:
    match depth.kind:
        case "equilibrium":
            return Equilibrium(
                solver=build_solver(depth.solver),
                eval_solver=build_solver(depth.eval_solver),
                gradient=build_gradient(depth.gradient),
                residual_penalty=depth.residual_penalty,
            )
        case "unrolled":
            return UnrolledDepth(depth.applications)
