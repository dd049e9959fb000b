"""From a recipe to the objects it names: the one place, with `baseline_building`, that maps names to classes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from equilibria.cells import Cell, ContractiveCell, PostNormCell, StackedCell, ThreeBlockCell, TrellisCell
from equilibria.configuration.baseline import ENCODER_DECODER, BaselineRecipe
from equilibria.configuration.baseline_building import build_layers
from equilibria.configuration.data import TASK_OPTIONS, TEXT_OPTIONS, DataRecipe
from equilibria.configuration.depth import (
    ADJOINT_OPTIONS,
    GRADIENT_OPTIONS,
    SOLVER_OPTIONS,
    DepthRecipe,
    GradientRecipe,
    ScheduleRecipe,
    SolverRecipe,
    default_adjoint,
)
from equilibria.configuration.model import (
    CELL_OPTIONS,
    EMBEDDING_OPTIONS,
    EXPLICIT_CELLS,
    REGULARISATION,
    CellRecipe,
    EmbeddingRecipe,
    ModelRecipe,
    RegularisationRecipe,
)
from equilibria.configuration.options import given_options
from equilibria.configuration.recipe import Recipe
from equilibria.data import Corpus, EmbeddedText, Source, TextFiles, TextFolder, TokenizerFile, TokenizerSpec, prepare
from equilibria.data.progress import UNWATCHED, Progress
from equilibria.data.synthetic import CopyMemory, Reversal, SymbolTask
from equilibria.data.task import Task
from equilibria.data.tokenizers import ByteTokenizer, load_tokenizer
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
    Stack,
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
    Reversible,
    Switching,
    Unrolled,
)
from equilibria.models import LanguageModel, TokenModel
from equilibria.models.baselines import SequenceModel
from equilibria.models.encoder_decoder import UniversalTransformer
from equilibria.models.regularisation import Regularisation
from equilibria.nn import AdaptiveEmbedding, TiedEmbedding, TokenEmbedding, UntiedEmbedding
from equilibria.solvers import GMRES, Anderson, Broyden, Draft, NewtonKrylov, Picard, Solver

_SOLVERS = {"picard": Picard, "anderson": Anderson, "broyden": Broyden, "newton_krylov": NewtonKrylov}
_ADJOINTS = {"gmres": GMRES, "picard": Picard, "anderson": Anderson, "broyden": Broyden}
_GRADIENTS = {
    "phantom": Phantom,
    "unrolled": Unrolled,
    "jacobian_free": JacobianFree,
    "neumann": Neumann,
    "reversible": Reversible,
}
_CELLS = {
    "contractive": ContractiveCell,
    "post_norm": PostNormCell,
    "three_block": ThreeBlockCell,
    "trellis": TrellisCell,
}
_TASKS = {"copy_memory": CopyMemory, "reversal": Reversal}


def build_corpus(recipe: Recipe, progress: Progress = UNWATCHED) -> Corpus:
    """The recipe's text, encoded; read from the cache where it has been encoded before.

    Args:
        recipe: what text, and which tokens.
        progress: told of each thing that takes a while.

    Raises:
        UserError: a file is missing, or there is no text in it, or the recipe is about no text.
    """
    data = recipe.data
    return prepare(build_source(data), _tokenizer(data), data.cache, progress)


def build_source(data: DataRecipe) -> Source:
    """The recipe's text, as it is.

    Raises:
        UserError: the recipe is about no text, or its tokenizer cannot be read.
    """
    match data.source:
        case "embedded":
            return EmbeddedText()
        case "folder" if data.path is not None:
            return TextFolder(data.path, as_bytes=_has_bytes(data))
        case "files" if data.files:
            return TextFiles(data.files, **given_options(data, TEXT_OPTIONS["files"]))
        case "copy_memory" | "reversal":
            raise UserError(f'data.source = "{data.source}" is a task and no text')
    raise UserError(f'data.source = "{data.source}" needs data.{"path" if data.source == "folder" else "files"}')


def _has_bytes(data: DataRecipe) -> bool:
    """Whether tokens are bytes."""
    if data.tokenizer == "file" and data.tokenizer_file is not None:
        return isinstance(load_tokenizer(data.tokenizer_file), ByteTokenizer)
    return data.tokenizer == "bytes"


def build_task(recipe: Recipe, progress: Progress = UNWATCHED) -> Task:
    """What the recipe's model learns: its text, as `build_corpus`, or a task whose sequences are made.

    Raises:
        UserError: the text is missing, or the task has sizes that it cannot have.
    """
    if recipe.data.source not in TASK_OPTIONS:
        return build_corpus(recipe, progress)
    return _task(recipe.data)


def _task(data: DataRecipe) -> SymbolTask:
    with _blamed_on("data"):
        return _TASKS[data.source](**given_options(data, TASK_OPTIONS[data.source]))


def seen_together(recipe: Recipe) -> int:
    """Tokens of a row that the recipe's model sees at once: a segment of a text, or a task's whole sequence."""
    if recipe.data.source not in TASK_OPTIONS:
        return recipe.training.segment_length
    return _task(recipe.data).length


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
    with _blamed_on("model.depth"):
        depth = _depth(model.depth)
    with _blamed_on("model.cell"):
        cell = depth.arrange(lambda injection: _cell(model.cell, injection))
        prelude, coda = _explicit(model.cell, model.prelude_layers), _explicit(_coda_cell(model), model.coda_layers)
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
            regularisation=_regularisation(model.regularisation),
            **given_options(model, ("chunk_length", "auxiliary_weight")),
        )


def build_solver(recipe: SolverRecipe) -> Solver:
    """The solver that a section of a recipe describes."""
    options = given_options(recipe, ("criterion", "check_every", *SOLVER_OPTIONS[recipe.method]))
    draft, fallback = Draft() if recipe.draft else None, None
    if recipe.fallback_damping is not None:
        damping, limit = recipe.fallback_damping, 2 * recipe.max_evaluations
        fallback = Picard(damping=damping, tol=recipe.tol, max_evaluations=limit, scope=recipe.scope)
    return _SOLVERS[recipe.method](
        tol=recipe.tol,
        max_evaluations=recipe.max_evaluations,
        scope=recipe.scope,
        draft=draft,
        fallback=fallback,
        **options,
    )


def build_gradient(recipe: GradientRecipe) -> Gradient:
    """The gradient that a section of a recipe describes."""
    if recipe.method == "implicit":
        return Implicit(solver=_adjoint(recipe))
    if recipe.method == "switching":
        default = Switching()
        phantom = replace(default.otherwise, **given_options(recipe, ("steps", "checkpoint")))
        return replace(
            default, converged=Implicit(_adjoint(recipe)), otherwise=phantom, **given_options(recipe, ("share",))
        )
    if recipe.method == "reuse_inverse":
        refined = given_options(recipe, GRADIENT_OPTIONS["reuse_inverse"])
        return ReuseInverse(refine=_adjoint(recipe) if refined else None)
    return _GRADIENTS[recipe.method](**given_options(recipe, GRADIENT_OPTIONS[recipe.method]))


def _adjoint(recipe: GradientRecipe) -> Solver | GMRES:
    method = recipe.adjoint or default_adjoint(recipe)
    options = given_options(recipe, ADJOINT_OPTIONS[method])
    default = Switching().converged.solver if recipe.method == "switching" else Implicit().solver
    return replace(default, **options) if isinstance(default, _ADJOINTS[method]) else _ADJOINTS[method](**options)


@contextmanager
def _blamed_on(section: str) -> Iterator[None]:
    """What a class says of its arguments becomes what is wrong with a section."""
    try:
        yield
    except ValueError as problem:
        raise UserError(f"{section}: {problem}") from problem


def _tokenizer(data: DataRecipe) -> TokenizerSpec | TokenizerFile:
    if data.tokenizer == "file":
        assert data.tokenizer_file is not None  # checked
        return TokenizerFile(data.tokenizer_file)
    return TokenizerSpec(data.tokenizer, data.vocabulary_size, data.minimum_count)


def _embedding(embedding: EmbeddingRecipe, vocabulary_size: int, d_model: int, d_output: int) -> TokenEmbedding:
    with _blamed_on("model.embedding"):
        match embedding.kind:
            case "tied":
                return TiedEmbedding(vocabulary_size, d_model)
            case "adaptive":
                options = given_options(embedding, EMBEDDING_OPTIONS["adaptive"])
                return AdaptiveEmbedding(vocabulary_size, d_model, **options)
            case "untied":
                options = given_options(embedding, EMBEDDING_OPTIONS["untied"])
                return UntiedEmbedding(vocabulary_size, d_model, d_output, **options)


def _cell(cell: CellRecipe, injection: bool) -> Cell:
    options = given_options(cell, CELL_OPTIONS[cell.kind])
    if cell.kind in EXPLICIT_CELLS:
        options["injection"] = injection
    return _CELLS[cell.kind](cell.d_model, dropout=cell.dropout, **options)


def _coda_cell(model: ModelRecipe) -> CellRecipe:
    """What the coda's layers are like."""
    return model.cell if model.coda_inner is None else replace(model.cell, inner=model.coda_inner)


def _explicit(cell: CellRecipe, layers: int | None) -> StackedCell | None:
    """Layers around the depth; None for none."""
    return StackedCell([_cell(cell, injection=False) for _ in range(layers)]) if layers else None


def _depth(depth: DepthRecipe) -> Depth:
    match depth.kind:
        case "equilibrium":
            return _equilibrium(depth)
        case "unrolled":
            return UnrolledDepth(depth.applications, **given_options(depth, ("checkpoint", "states_every")))
        case "stack":
            return Stack(depth.applications, **given_options(depth, ("tied", "shared_biases")))
        case "halting":
            return Halting(**given_options(depth, ("max_steps", "threshold", "ponder_weight")))


def _equilibrium(depth: DepthRecipe) -> Equilibrium:
    return Equilibrium(
        solver=build_solver(depth.solver),
        eval_solver=build_solver(depth.eval_solver),
        gradient=build_gradient(depth.gradient),
        schedule=_schedule(depth.schedule),
        **given_options(depth, ("residual_penalty", "penalty_above", "jacobian_penalty", "states_every")),
    )


def _schedule(schedule: ScheduleRecipe) -> DepthSchedule | None:
    if schedule == ScheduleRecipe():
        return None
    return DepthSchedule(
        limits=_limits(schedule),
        jacobian=_jacobian(schedule),
        residual=_residual(schedule),
        **given_options(schedule, ("warmup_steps", "warmup_share", "warmup_applications")),
    )


def _limits(schedule: ScheduleRecipe) -> Limits | None:
    match schedule.limits:
        case None:
            return None
        case "random":
            assert schedule.least_evaluations is not None
            assert schedule.most_evaluations is not None
            return RandomLimits(schedule.least_evaluations, schedule.most_evaluations)
        case "growing":
            assert schedule.first_evaluations is not None
            assert schedule.last_evaluations is not None
            return GrowingLimits(schedule.first_evaluations, schedule.last_evaluations)


def _jacobian(schedule: ScheduleRecipe) -> JacobianPenalty | None:
    if schedule.jacobian_weight is None:
        return None
    probability = 1.0 if schedule.jacobian_probability is None else schedule.jacobian_probability
    return JacobianPenalty(schedule.jacobian_weight, schedule.jacobian_last_weight, probability)


def _residual(schedule: ScheduleRecipe) -> ResidualPenalty | None:
    if schedule.residual_weight is None:
        return None
    return ResidualPenalty(schedule.residual_weight, schedule.residual_last_weight)


def _regularisation(regularisation: RegularisationRecipe) -> Regularisation:
    options = given_options(regularisation, tuple(REGULARISATION))
    return Regularisation(**{REGULARISATION[name]: value for name, value in options.items()})


def _baseline(model: ModelRecipe, vocabulary_size: int) -> TokenModel:
    baseline = model.baseline
    assert baseline.d_model is not None  # checked
    if baseline.kind == ENCODER_DECODER:
        return _encoder_decoder(baseline, _embedding(model.embedding, vocabulary_size, *[baseline.d_model] * 2))
    with _blamed_on("model.baseline"):
        layers = build_layers(baseline, tied=model.embedding.kind != "untied")
    embedding = _embedding(model.embedding, vocabulary_size, baseline.d_model, layers[-1].d_out)
    options = given_options(baseline, ("hidden_dropout",))
    return SequenceModel(embedding, layers, _regularisation(model.regularisation), model.memory_length, **options)


def _encoder_decoder(baseline: BaselineRecipe, embedding: TokenEmbedding) -> UniversalTransformer:
    halting = given_options(baseline, ("max_steps", "threshold", "ponder_weight"))
    options = given_options(baseline, ("heads", "inner", "dropout"))
    with _blamed_on("model.baseline"):
        encoder, decoder = (Halting(embedding.d_model, **halting) for _ in range(2))
        return UniversalTransformer(embedding, encoder=encoder, decoder=decoder, **options)
