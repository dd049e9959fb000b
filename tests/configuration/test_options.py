"""Every option of every kind: it reaches its class, and the other kinds name it as theirs not to be."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from equilibria.cells import ContractiveCell, PostNormCell, ThreeBlockCell, TrellisCell
from equilibria.configuration import (
    CellRecipe,
    DepthRecipe,
    EmbeddingRecipe,
    GradientRecipe,
    ModelRecipe,
    ScheduleRecipe,
    SolverRecipe,
    build_gradient,
    build_solver,
    building,
)
from equilibria.configuration.baseline import BASELINE_OPTIONS
from equilibria.configuration.depth import ADJOINT_OPTIONS, DEPTH_OPTIONS, GRADIENT_OPTIONS, SOLVER_OPTIONS
from equilibria.configuration.model import CELL_OPTIONS, EMBEDDING_OPTIONS
from equilibria.configuration.recipe import problems
from equilibria.depths import (
    DepthSchedule,
    Equilibrium,
    GrowingLimits,
    Halting,
    JacobianPenalty,
    RandomLimits,
    ResidualPenalty,
    Stack,
    UnrolledDepth,
)
from equilibria.gradients import (
    Implicit,
    JacobianFree,
    Neumann,
    Phantom,
    ReuseInverse,
    Reversible,
    Switching,
    Unrolled,
)
from equilibria.nn import AdaptiveEmbedding, TiedEmbedding, UntiedEmbedding
from equilibria.nn.feed_forward import FeedForward
from equilibria.solvers import GMRES, Anderson, Broyden, Draft, NewtonKrylov, Picard
from options import VALUES, baseline_recipe, cases, language_model, parameters, recipe

CELLS = {
    "contractive": ContractiveCell,
    "post_norm": PostNormCell,
    "three_block": ThreeBlockCell,
    "trellis": TrellisCell,
}
SOLVERS = {"picard": Picard, "anderson": Anderson, "broyden": Broyden, "newton_krylov": NewtonKrylov}
GRADIENTS = {
    "phantom": Phantom,
    "unrolled": Unrolled,
    "jacobian_free": JacobianFree,
    "neumann": Neumann,
    "reversible": Reversible,
}


@pytest.mark.parametrize("kind", CELLS)
def test_every_option_of_a_cell_is_in_the_recipe(kind: str) -> None:
    assert parameters(CELLS[kind], "d_model", "dropout", "injection") == set(CELL_OPTIONS[kind])


@pytest.mark.parametrize(("kind", "option"), cases(CELL_OPTIONS))
def test_an_option_reaches_the_cell(kind: Any, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Mock(wraps=CELLS[kind])
    monkeypatch.setitem(building._CELLS, kind, spy)
    cell = CellRecipe(kind=kind, d_model=16, dropout=0.125, **{option: VALUES[option]})
    built = language_model(ModelRecipe(cell=cell)).cell
    assert isinstance(built, CELLS[kind])
    expected = {"dropout": 0.125, option: VALUES[option]}
    assert spy.call_args.args == (16,)
    assert {name: value for name, value in spy.call_args.kwargs.items() if name != "injection"} == expected
    if hasattr(built, option) and option not in ("blocks", "norm"):
        assert getattr(built, option) == VALUES[option]


def test_without_options_a_cell_is_the_class_as_it_is() -> None:
    for kind, cell in CELLS.items():
        found = language_model(ModelRecipe(cell=CellRecipe(kind=kind))).cell  # pyright: ignore[reportArgumentType]
        shapes = {name: tensor.shape for name, tensor in cell().state_dict().items()}
        assert {name: tensor.shape for name, tensor in found.state_dict().items()} == shapes


@pytest.mark.parametrize(("method", "option"), cases(SOLVER_OPTIONS))
def test_an_option_reaches_the_solver(method: Any, option: str) -> None:
    value = VALUES["inner_products" if option == "inner" else option]
    section = SolverRecipe(method=method, tol=0.5, max_evaluations=7, scope="sample", **{option: value})
    expected = SOLVERS[method](tol=0.5, max_evaluations=7, scope="sample", **{option: value})
    assert build_solver(section) == expected
    assert getattr(expected, option) == value != getattr(SOLVERS[method](scope="sample"), option)


@pytest.mark.parametrize("method", SOLVERS)
def test_every_option_of_a_solver_is_in_the_recipe(method: Any) -> None:
    common = {"tol", "max_evaluations", "scope", "criterion", "draft", "fallback", "check_every"}
    measurement, for_code = {"trace_groups"}, {"preconditioner"}  # neither can be written down or matters to a run
    assert parameters(SOLVERS[method]) - measurement - for_code == common | set(SOLVER_OPTIONS[method])
    section = SolverRecipe(method=method, tol=0.5, max_evaluations=7, scope="sample")
    solver = build_solver(replace(section, criterion="absolute", check_every=4, draft=True))
    assert (solver.criterion, solver.check_every, solver.draft) == ("absolute", 4, Draft())
    assert build_solver(replace(section, draft=False)).draft is None
    fallback = Picard(damping=0.25, tol=0.5, max_evaluations=14, scope="sample")
    assert build_solver(replace(section, fallback_damping=0.25)).fallback == fallback
    assert solver.fallback is None


@pytest.mark.parametrize(("method", "option"), [case for case in cases(GRADIENT_OPTIONS) if case[0] in GRADIENTS])
def test_an_option_reaches_the_gradient(method: Any, option: str) -> None:
    expected = GRADIENTS[method](**{option: VALUES[option]})
    assert build_gradient(GradientRecipe(method=method, **{option: VALUES[option]})) == expected
    assert expected != GRADIENTS[method]()


@pytest.mark.parametrize("method", GRADIENTS)
def test_every_option_of_a_gradient_is_in_the_recipe(method: Any) -> None:
    assert parameters(GRADIENTS[method]) == set(GRADIENT_OPTIONS[method])
    assert build_gradient(GradientRecipe(method=method)) == GRADIENTS[method]()


@pytest.mark.parametrize(("adjoint", "option"), cases(ADJOINT_OPTIONS))
@pytest.mark.parametrize("method", ["implicit", "reuse_inverse", "switching"])
def test_an_option_reaches_the_adjoint_solver(method: Any, adjoint: Any, option: str) -> None:
    section = GradientRecipe(method=method, adjoint=adjoint, **{option: VALUES[option]})
    solver = SolverRecipe(method="broyden", tol=0.1, max_evaluations=5)
    assert list(problems(recipe(ModelRecipe(depth=DepthRecipe(gradient=section, solver=solver))))) == []
    built = build_gradient(section)
    if isinstance(built, Switching):
        built = built.converged
    assert isinstance(built, Implicit | ReuseInverse)
    found = built.solver if isinstance(built, Implicit) else built.refine
    usual = (Switching().converged if method == "switching" else Implicit()).solver
    kind = {**SOLVERS, "gmres": GMRES}[adjoint]
    default = usual if isinstance(usual, kind) else kind()
    assert found == replace(default, **{option: VALUES[option]})
    assert found != default


def test_gradients_without_an_adjoint_solver() -> None:
    assert build_gradient(GradientRecipe(method="implicit")) == Implicit()
    assert build_gradient(GradientRecipe(method="reuse_inverse")) == ReuseInverse()
    assert build_gradient(GradientRecipe(method="switching")) == Switching()


def test_the_other_options_of_switching() -> None:
    usual = Switching()
    found = build_gradient(GradientRecipe(method="switching", steps=3, checkpoint=False, share=0.5))
    assert found == Switching(usual.converged, Phantom(steps=3, checkpoint=False), share=0.5)


@pytest.mark.parametrize("option", DEPTH_OPTIONS["equilibrium"])
def test_an_option_reaches_the_equilibrium(option: str) -> None:
    depth = language_model(ModelRecipe(depth=DepthRecipe(**{option: VALUES[option]}))).depth
    assert depth == Equilibrium(**{option: VALUES[option]})
    assert depth != Equilibrium()


@pytest.mark.parametrize("option", ["checkpoint", "states_every"])
def test_an_option_reaches_the_unrolled_depth(option: str) -> None:
    depth = DepthRecipe(kind="unrolled", applications=5, **{option: VALUES[option]})
    assert language_model(ModelRecipe(depth=depth)).depth == UnrolledDepth(5, **{option: VALUES[option]})


@pytest.mark.parametrize("option", DEPTH_OPTIONS["halting"])
def test_an_option_reaches_the_halting_depth(option: str) -> None:
    depth = DepthRecipe(kind="halting", **{option: VALUES[option]})
    model = language_model(ModelRecipe(cell=CellRecipe(d_model=16), depth=depth))
    assert isinstance(model.depth, Halting)
    assert getattr(model.depth, option) == VALUES[option] != getattr(Halting(16), option)
    assert not model.cell.injection
    assert model.depth.halt.in_features == 16
    assert parameters(Halting, "features") == set(DEPTH_OPTIONS["halting"])


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("tied", [False, True])
def test_a_stack_has_layers_with_or_without_weights_of_their_own(kind: Any, tied: bool) -> None:
    depth = DepthRecipe(kind="stack", applications=3, tied=tied)
    cell = CellRecipe(kind=kind, d_model=16)
    model = language_model(ModelRecipe(cell=cell, depth=depth, memory_length=4))
    one, three = language_model(ModelRecipe(cell=cell, depth=replace(depth, applications=1))), model
    counts = [sum(parameter.numel() for parameter in m.cell.parameters()) for m in (one, three)]
    assert counts[1] == counts[0] * (1 if tied else 3)
    assert model.depth == Stack(3, tied)
    tokens = torch.arange(10).reshape(2, 5)
    memory = model(tokens).memory
    assert len(memory.states) == 3 * one.cell.remembered
    assert torch.isfinite(model(tokens, tokens, memory).loss)


def test_layers_before_and_after_the_depth() -> None:
    model = language_model(ModelRecipe(cell=CellRecipe(d_model=16), prelude_layers=2, coda_layers=1))
    assert model.prelude is not None
    assert model.coda is not None
    assert (model.prelude.layers_per_application, model.coda.layers_per_application) == (2, 1)
    assert (model.prelude.injection, model.cell.injection, model.coda.injection) == (False, True, False)
    plain = language_model(ModelRecipe(prelude_layers=0))
    assert (plain.prelude, plain.coda) == (None, None)
    wider = language_model(ModelRecipe(cell=CellRecipe(d_model=16, inner=20), coda_layers=2, coda_inner=24))
    inner = [module.expand.out_features for module in wider.modules() if isinstance(module, FeedForward)]
    assert inner == [20, 24, 24]


def test_options_of_the_model() -> None:
    depth, cell = DepthRecipe(states_every=1), CellRecipe(dropout=0.25)
    given = ModelRecipe(cell=cell, depth=depth, memory_length=6, chunk_length=3, auxiliary_weight=0.5, dropout=0.125)
    model = language_model(given)
    assert (model.memory_length, model.chunk_length, model.auxiliary_weight, model.dropout) == (6, 3, 0.5, 0.125)
    assert language_model(ModelRecipe(cell=cell)).dropout == 0.25


@pytest.mark.parametrize("option", EMBEDDING_OPTIONS["adaptive"])
def test_an_option_reaches_the_adaptive_embedding(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Mock(wraps=AdaptiveEmbedding)
    monkeypatch.setattr(building, "AdaptiveEmbedding", spy)
    section = EmbeddingRecipe(kind="adaptive", **{option: VALUES[option]})
    built = language_model(ModelRecipe(cell=CellRecipe(d_model=16), embedding=section)).embedding
    assert isinstance(built, AdaptiveEmbedding)
    assert (spy.call_args.args, spy.call_args.kwargs) == ((11, 16), {option: VALUES[option]})
    assert parameters(AdaptiveEmbedding, "vocabulary_size", "d_model") == set(EMBEDDING_OPTIONS["adaptive"])


def test_the_other_embeddings() -> None:
    cell = CellRecipe(kind="trellis", d_model=16, output_size=12)
    untied = language_model(ModelRecipe(cell=cell, embedding=EmbeddingRecipe(kind="untied"))).embedding
    assert isinstance(untied, UntiedEmbedding)
    assert (untied.d_model, untied.output.in_features) == (16, 12)
    section = EmbeddingRecipe(kind="untied", d_embed=5, cutoffs=(3, 7))
    clustered = language_model(ModelRecipe(cell=CellRecipe(d_model=16), embedding=section)).embedding
    assert isinstance(clustered, UntiedEmbedding)
    assert (clustered.rows.embedding_dim, clustered.d_model, clustered.edges) == (5, 16, (0, 3, 7, 11))
    assert parameters(UntiedEmbedding, "vocabulary_size", "d_model", "d_output") == set(EMBEDDING_OPTIONS["untied"])
    assert isinstance(language_model(ModelRecipe()).embedding, TiedEmbedding)


def test_a_stack_may_share_the_biases_of_its_attention() -> None:
    cell, depth = CellRecipe(kind="post_norm", d_model=16, initial_std=0.5), DepthRecipe(kind="stack", applications=3)
    apart = language_model(ModelRecipe(cell=cell, depth=depth))
    shared = language_model(ModelRecipe(cell=cell, depth=replace(depth, shared_biases=True)))
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in (apart, shared)]
    assert sizes[0] - sizes[1] == 2 * 2 * 16
    for wrong in (
        ModelRecipe(depth=replace(depth, shared_biases=True)),
        ModelRecipe(cell=cell, depth=replace(depth, shared_biases=True, tied=True)),
    ):
        assert [problem for problem in problems(recipe(wrong)) if problem.startswith("model.depth.shared_biases: exp")]


def scheduled(**options: Any) -> DepthSchedule | None:
    model = ModelRecipe(depth=DepthRecipe(schedule=ScheduleRecipe(**options)))
    assert list(problems(recipe(model))) == []
    depth = language_model(model).depth
    assert isinstance(depth, Equilibrium)
    return depth.schedule


def test_schedules() -> None:
    assert scheduled() is None
    assert scheduled(warmup_steps=3) == DepthSchedule(warmup_steps=3)
    assert scheduled(warmup_steps=3, warmup_applications=4) == DepthSchedule(warmup_steps=3, warmup_applications=4)
    assert scheduled(warmup_share=0.75) == DepthSchedule(warmup_share=0.75)
    growing = scheduled(limits="growing", first_evaluations=2, last_evaluations=9)
    assert growing == DepthSchedule(limits=GrowingLimits(2, 9))
    random = scheduled(limits="random", least_evaluations=2, most_evaluations=9)
    assert random == DepthSchedule(limits=RandomLimits(2, 9))
    penalised = scheduled(jacobian_weight=0.5, jacobian_last_weight=2.0, jacobian_probability=0.25)
    assert penalised == DepthSchedule(jacobian=JacobianPenalty(0.5, 2.0, 0.25))
    falling = scheduled(residual_weight=0.5, residual_last_weight=0.125)
    assert falling == DepthSchedule(residual=ResidualPenalty(0.5, 0.125))
    assert scheduled(residual_weight=0.5) == DepthSchedule(residual=ResidualPenalty(0.5))
    assert scheduled(jacobian_weight=0.5) == DepthSchedule(jacobian=JacobianPenalty(0.5))


def with_cell(**options: Any) -> ModelRecipe:
    return ModelRecipe(cell=CellRecipe(**options))


def with_embedding(**options: Any) -> ModelRecipe:
    return ModelRecipe(embedding=EmbeddingRecipe(**options))


def with_depth(**options: Any) -> ModelRecipe:
    return ModelRecipe(depth=DepthRecipe(**options))


def with_solver(**options: Any) -> ModelRecipe:
    return with_depth(solver=SolverRecipe(tol=0.1, max_evaluations=2, **options))


def with_gradient(**options: Any) -> ModelRecipe:
    return with_depth(gradient=GradientRecipe(**options))


SECTIONS: Mapping[str, tuple[Any, str, Mapping[str, Any]]] = {
    "model.cell": (with_cell, "kind", CELL_OPTIONS),
    "model.embedding": (with_embedding, "kind", EMBEDDING_OPTIONS),
    "model.depth": (with_depth, "kind", DEPTH_OPTIONS),
    "model.baseline": (baseline_recipe, "kind", BASELINE_OPTIONS),
    "model.depth.solver": (with_solver, "method", SOLVER_OPTIONS),
    "model.depth.gradient": (with_gradient, "method", GRADIENT_OPTIONS),
}


FOREIGN = [(key, kind) for key, (_, _, options) in SECTIONS.items() for kind in options]


@pytest.mark.parametrize(("key", "kind"), FOREIGN)
def test_a_foreign_option_is_an_error_that_names_it(key: str, kind: str) -> None:
    section, selector, options = SECTIONS[key]
    every = {option for names in options.values() for option in names}
    for option in every - set(options[kind]):
        value = {**VALUES, "adjoint": "picard", "tied": True, "shared_biases": True}[option]
        found = list(problems(recipe(section(**{selector: kind, option: value}))))
        assert [problem for problem in found if problem.startswith((f"{key}.{option}:", f"{key}.{option} ="))]
