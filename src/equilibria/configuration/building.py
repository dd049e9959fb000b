"""From a recipe to the objects it names: the one place that maps names to classes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any, assert_never

from equilibria.cells import Cell, ContractiveCell, PostNormCell, StackedCell, ThreeBlockCell, TrellisCell
from equilibria.configuration.baseline import BASELINE_OPTIONS, REGULARISATION, BaselineRecipe
from equilibria.configuration.data import TASK_OPTIONS, DataRecipe
from equilibria.configuration.depth import (
    ADJOINT_OPTIONS,
    GRADIENT_OPTIONS,
    SOLVER_OPTIONS,
    DepthRecipe,
    GradientRecipe,
    ScheduleRecipe,
    SolverRecipe,
)
from equilibria.configuration.model import (
    CELL_OPTIONS,
    EMBEDDING_OPTIONS,
    EXPLICIT_CELLS,
    CellRecipe,
    EmbeddingRecipe,
    ModelRecipe,
)
from equilibria.configuration.options import given_options
from equilibria.configuration.recipe import Recipe
from equilibria.data import Corpus, EmbeddedText, Source, TextFiles, TextFolder, TokenizerSpec, prepare
from equilibria.data.progress import UNWATCHED, Progress
from equilibria.data.synthetic import CopyMemory
from equilibria.data.task import Task
from equilibria.depths import (
    Depth,
    DepthSchedule,
    Equilibrium,
    GrowingLimits,
    Halting,
    JacobianPenalty,
    Limits,
    RandomLimits,
    ResidualPenalty,
    UnrolledDepth,
)
from equilibria.errors import UserError
from equilibria.gradients import (
    Gradient,
    Implicit,
    JacobianFree,
    Neumann,
    Phantom,
    ReuseInverse,
    Unrolled,
)
from equilibria.models import LanguageModel, TokenModel
from equilibria.models.baselines import (
    DARTS_FIRST_ORDER,
    DARTS_SECOND_ORDER,
    DARTSLayer,
    GRULayer,
    Layer,
    LSTMLayer,
    NASLayer,
    QRNNLayer,
    Regularisation,
    RelationalMemoryLayer,
    SequenceModel,
    gated_blocks,
    temporal_blocks,
)
from equilibria.nn import AdaptiveEmbedding, TiedEmbedding, TokenEmbedding, UntiedEmbedding
from equilibria.solvers import GMRES, Anderson, Broyden, Draft, NewtonKrylov, Picard, Solver

_SOLVERS = {"picard": Picard, "anderson": Anderson, "broyden": Broyden, "newton_krylov": NewtonKrylov}
_ADJOINTS = {"gmres": GMRES, "picard": Picard, "anderson": Anderson, "broyden": Broyden}
_GRADIENTS = {"phantom": Phantom, "unrolled": Unrolled, "jacobian_free": JacobianFree, "neumann": Neumann}
_CELLS = {
    "contractive": ContractiveCell,
    "post_norm": PostNormCell,
    "three_block": ThreeBlockCell,
    "trellis": TrellisCell,
}
_GRAPHS = {"first_order": DARTS_FIRST_ORDER, "second_order": DARTS_SECOND_ORDER}
_DARTS_DROPOUTS = {"cell_dropout": "input_dropout", "node_dropout": "hidden_dropout"}


def build_corpus(recipe: Recipe, progress: Progress = UNWATCHED) -> Corpus:
    """The recipe's text, encoded; read from the cache where it has been encoded before.

    Args:
        recipe: what text, and which tokens.
        progress: told of each thing that takes a while.

    Raises:
        UserError: a file is missing, or there is no text in it, or the recipe is about no text.
    """
    data = recipe.data
    spec = TokenizerSpec(data.tokenizer, data.vocabulary_size, data.minimum_count)
    return prepare(_source(data), spec, data.cache, progress)


def build_task(recipe: Recipe, progress: Progress = UNWATCHED) -> Task:
    """What the recipe's model learns: its text, as `build_corpus`, or a task whose sequences are made.

    Raises:
        UserError: the text is missing, or the task has sizes that it cannot have.
    """
    if recipe.data.source not in TASK_OPTIONS:
        return build_corpus(recipe, progress)
    with _blamed_on("data"):
        return CopyMemory(**given_options(recipe.data, TASK_OPTIONS[recipe.data.source]))


def build_model(recipe: Recipe, vocabulary_size: int) -> TokenModel:
    """The recipe's model, freshly initialised.

    Args:
        recipe: its embedding, its cell, its depth and its memory, or its baseline.
        vocabulary_size: tokens in the vocabulary.

    Raises:
        UserError: numbers that do not go together; the line names their section.
    """
    model = recipe.model
    if model.baseline.kind is not None:
        return _baseline(model, vocabulary_size)
    with _blamed_on("model.cell"):
        cell = _cell_at(model.cell, model.depth)
        prelude, coda = _explicit(model.cell, model.prelude_layers), _explicit(model.cell, model.coda_layers)
    with _blamed_on("model.depth"):
        depth = _depth(model.depth, model.cell.d_model)
    output = model.cell.output_size
    embedding = _embedding(model.embedding, vocabulary_size, cell.d_model, cell.d_model if output is None else output)
    with _blamed_on("model"):
        return LanguageModel(
            embedding,
            cell,
            depth,
            memory_length=model.memory_length,
            dropout=model.cell.dropout if model.dropout is None else model.dropout,
            prelude=prelude,
            coda=coda,
            **given_options(model, ("chunk_length", "auxiliary_weight")),
        )


def build_depth_schedule(recipe: Recipe) -> DepthSchedule | None:
    """How the depth changes over training; None where it does not."""
    schedule, depth = recipe.model.depth.schedule, recipe.model.depth
    if recipe.model.baseline.kind is not None or depth.kind != "equilibrium" or schedule == ScheduleRecipe():
        return None
    with _blamed_on("model.depth.schedule"):
        return DepthSchedule(
            _equilibrium(depth),
            warmup_steps=schedule.warmup_steps or 0,
            warmup=UnrolledDepth(schedule.warmup_applications or 2),
            limits=_limits(schedule, recipe.training.seed),
            jacobian=_jacobian(schedule, recipe.training.seed),
            residual=_residual(schedule),
        )


def build_solver(recipe: SolverRecipe) -> Solver:
    """The solver that a section of a recipe describes."""
    options = given_options(recipe, ("criterion", "check_every", *SOLVER_OPTIONS[recipe.method]))
    draft = Draft() if recipe.draft else None
    return _SOLVERS[recipe.method](
        tol=recipe.tol, max_evaluations=recipe.max_evaluations, scope=recipe.scope, draft=draft, **options
    )


def build_gradient(recipe: GradientRecipe) -> Gradient:
    """The gradient that a section of a recipe describes."""
    if recipe.method == "implicit":
        return Implicit(solver=_adjoint(recipe))
    if recipe.method == "reuse_inverse":
        refined = given_options(recipe, GRADIENT_OPTIONS["reuse_inverse"])
        return ReuseInverse(refine=_adjoint(recipe) if refined else None)
    return _GRADIENTS[recipe.method](**given_options(recipe, GRADIENT_OPTIONS[recipe.method]))


def _adjoint(recipe: GradientRecipe) -> Solver | GMRES:
    method = recipe.adjoint or "gmres"
    options = given_options(recipe, ADJOINT_OPTIONS[method])
    return replace(Implicit().solver, **options) if method == "gmres" else _ADJOINTS[method](**options)


@contextmanager
def _blamed_on(section: str) -> Iterator[None]:
    """What a class says of its arguments becomes what is wrong with a section."""
    try:
        yield
    except ValueError as problem:
        raise UserError(f"{section}: {problem}") from problem


def _source(data: DataRecipe) -> Source:
    match data.source:
        case "embedded":
            return EmbeddedText()
        case "folder" if data.path is not None:
            return TextFolder(data.path, as_bytes=data.tokenizer == "bytes")
        case "files" if data.files:
            return TextFiles(data.files)
        case "copy_memory":
            raise UserError('data.source = "copy_memory" is a task and no text')
    raise UserError(f'data.source = "{data.source}" needs data.{"path" if data.source == "folder" else "files"}')


def _embedding(embedding: EmbeddingRecipe, vocabulary_size: int, d_model: int, d_output: int) -> TokenEmbedding:
    with _blamed_on("model.embedding"):
        match embedding.kind:
            case "tied":
                return TiedEmbedding(vocabulary_size, d_model)
            case "adaptive":
                options = given_options(embedding, EMBEDDING_OPTIONS["adaptive"])
                return AdaptiveEmbedding(vocabulary_size, d_model, **options)
            case "untied":
                return UntiedEmbedding(vocabulary_size, d_model, d_output)


def _cell(cell: CellRecipe, injection: bool = True) -> Cell[Any]:
    options = given_options(cell, CELL_OPTIONS[cell.kind])
    if cell.kind in EXPLICIT_CELLS:
        options["injection"] = injection
    return _CELLS[cell.kind](cell.d_model, dropout=cell.dropout, **options)


def _explicit(cell: CellRecipe, layers: int | None) -> StackedCell | None:
    """Layers around the depth; None for none."""
    return StackedCell([_cell(cell, injection=False) for _ in range(layers)]) if layers else None


def _cell_at(cell: CellRecipe, depth: DepthRecipe) -> Cell[Any]:
    """The cell that a depth is of: with its input injected, or as the layers of an ordinary network."""
    match depth.kind:
        case "equilibrium" | "unrolled":
            return _cell(cell)
        case "halting":
            return _cell(cell, injection=False)
        case "stack" if depth.tied:
            return StackedCell([_cell(cell, injection=False)] * depth.applications)
        case "stack":
            return StackedCell([_cell(cell, injection=False) for _ in range(depth.applications)])
        case _:
            assert_never(depth.kind)


def _depth(depth: DepthRecipe, d_model: int) -> Depth:
    match depth.kind:
        case "equilibrium":
            return _equilibrium(depth)
        case "unrolled":
            return UnrolledDepth(depth.applications, **given_options(depth, ("checkpoint", "states_every")))
        case "stack":
            return UnrolledDepth(1)
        case "halting":
            return Halting(d_model, **given_options(depth, ("max_steps", "threshold", "ponder_weight")))


def _equilibrium(depth: DepthRecipe) -> Equilibrium:
    return Equilibrium(
        solver=build_solver(depth.solver),
        eval_solver=build_solver(depth.eval_solver),
        gradient=build_gradient(depth.gradient),
        **given_options(depth, ("residual_penalty", "jacobian_penalty", "states_every")),
    )


def _limits(schedule: ScheduleRecipe, seed: int) -> Limits | None:
    match schedule.limits:
        case None:
            return None
        case "random":
            assert schedule.least_evaluations is not None
            assert schedule.most_evaluations is not None
            return RandomLimits(schedule.least_evaluations, schedule.most_evaluations, seed)
        case "growing":
            assert schedule.first_evaluations is not None
            assert schedule.last_evaluations is not None
            return GrowingLimits(schedule.first_evaluations, schedule.last_evaluations)


def _jacobian(schedule: ScheduleRecipe, seed: int) -> JacobianPenalty | None:
    if schedule.jacobian_weight is None:
        return None
    probability = 1.0 if schedule.jacobian_probability is None else schedule.jacobian_probability
    return JacobianPenalty(schedule.jacobian_weight, schedule.jacobian_last_weight, probability, seed)


def _residual(schedule: ScheduleRecipe) -> ResidualPenalty | None:
    if schedule.residual_weight is None:
        return None
    return ResidualPenalty(schedule.residual_weight, schedule.residual_last_weight)


def _baseline(model: ModelRecipe, vocabulary_size: int) -> SequenceModel:
    baseline = model.baseline
    assert baseline.d_model is not None  # checked
    with _blamed_on("model.baseline"):
        layers = _layers(baseline, tied=model.embedding.kind != "untied")
        options = given_options(baseline, tuple(REGULARISATION))
        regularisation = Regularisation(**{REGULARISATION[name]: value for name, value in options.items()})
    embedding = _embedding(model.embedding, vocabulary_size, baseline.d_model, layers[-1].d_out)
    return SequenceModel(embedding, layers, regularisation, model.memory_length)


def _layers(baseline: BaselineRecipe, tied: bool) -> list[Layer]:
    """The layers of a baseline: as many units in the last as the embedding has features, where the two are tied."""
    d_model, hidden, layers = baseline.d_model, baseline.hidden, baseline.layers or 1
    assert d_model is not None
    assert baseline.kind is not None
    options = given_options(baseline, set(BASELINE_OPTIONS[baseline.kind]) - {"hidden", "layers"})
    if baseline.kind == "gated_convolution":
        pairs = tuple(zip(options.pop("kernel_sizes"), options.pop("channels"), strict=True))
        return [*gated_blocks(d_model, pairs, **options)]
    assert hidden is not None  # checked
    last = d_model if tied else hidden
    if baseline.kind == "tcn":
        return [*temporal_blocks(d_model, hidden, last, layers, **options)]
    widths = pairwise([d_model, *[hidden] * (layers - 1), last])
    match baseline.kind:
        case "lstm":
            return [LSTMLayer(*width, **options) for width in widths]
        case "gru":
            return [GRULayer(*width, **options) for width in widths]
        case "qrnn":
            first = options.pop("window", 2)
            return [QRNNLayer(*width, 1 if number else first, **options) for number, width in enumerate(widths)]
        case "relational_memory":
            return [RelationalMemoryLayer(*width, **options) for width in widths]
        case "darts":
            graph = _GRAPHS[options.pop("search", "second_order")]
            dropouts = {_DARTS_DROPOUTS[name]: value for name, value in options.items()}
            return [DARTSLayer(*width, graph, **dropouts) for width in widths]
        case "nas":
            return [NASLayer(*width) for width in widths]
        case _:
            assert_never(baseline.kind)
