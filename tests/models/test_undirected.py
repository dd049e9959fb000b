"""Models of grids and sets, whose tokens all see each other: the same at every depth, and no language models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import equilibria as eq
from equilibria.cells import Cell, ContractiveCell, Memory, StackedCell
from equilibria.depths import Adaptive, Depth, Equilibrium, Stack, UnrolledDepth
from equilibria.errors import UserError
from equilibria.models import LanguageModel
from equilibria.nn import TiedEmbedding
from plain_loops import randomised

V, D, COLUMNS = 7, 16, 4
POSITIONS: dict[str, dict[str, Any]] = {
    "set": {"positions": "none"},
    "grid": {"positions": "grid", "columns": COLUMNS},
    "sequence": {"positions": "rotary"},
}
TIGHT = {"tol": 1e-10, "max_evaluations": 300}


def at_scope(scope: eq.Scope, solver: type[eq.Solver] = eq.Anderson, **options: Any) -> Equilibrium:
    return Equilibrium(
        solver=solver(scope=scope, **options), eval_solver=solver(scope=scope, **options), gradient=eq.Implicit()
    )


DEPTHS: dict[str, Depth] = {
    "sample": at_scope("sample", max_evaluations=4),
    "token": at_scope("token", max_evaluations=4),
    "broyden": at_scope("sample", eq.Broyden, max_evaluations=6),
    "unrolled": UnrolledDepth(3),
    "stack": Stack(2),
    "tied": Stack(2, tied=True),
}


def cell(injection: bool = True, **options: Any) -> ContractiveCell:
    return ContractiveCell(D, 2, 24, causal=False, injection=injection, **(POSITIONS["set"] | options))


def model(depth: Depth, around: int = 0, **options: Any) -> LanguageModel:
    torch.manual_seed(0)
    layers = [StackedCell([cell(False, **options) for _ in range(around)]) for _ in range(2 if around else 0)]
    prelude, coda = layers or (None, None)
    arranged = depth.arrange(lambda injection: cell(injection, **options))
    built = LanguageModel(TiedEmbedding(V, D), arranged, depth, prelude=prelude, coda=coda)
    return built.eval()


def tokens(rows: int = 3, length: int = 12) -> Tensor:
    return torch.randint(V, (rows, length), generator=torch.Generator().manual_seed(rows))


@torch.no_grad()
@pytest.mark.parametrize("options", POSITIONS.values(), ids=POSITIONS.keys())
@pytest.mark.parametrize("depth", DEPTHS.values(), ids=DEPTHS.keys())
def test_every_token_sees_all_others_and_no_other_row(depth, options):
    audited = model(depth, **options)
    assert not audited.causal
    audit = eq.audit_causality(audited, tokens())
    assert not audit.holds
    assert audit.by_design
    assert eq.audit_batch_invariance(audited, tokens()).holds
    reference = audited(tokens()).logits
    for place in range(12):
        changed = tokens()
        changed[:, place] = (changed[:, place] + 1) % V
        assert bool(((audited(changed).logits - reference).abs() > 0).any(-1).all())


def test_the_scope_of_all_rows_is_not_invariant_to_the_batch_as_ever():
    audit = eq.audit_batch_invariance(model(at_scope("all", max_evaluations=4)), tokens())
    assert not audit.holds
    assert not audit.by_design


@torch.no_grad()
@pytest.mark.parametrize("around", [0, 1])
@pytest.mark.parametrize("depth", DEPTHS.values(), ids=DEPTHS.keys())
def test_a_set_has_no_order(depth, around):
    read = model(depth, around).double()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(read(tokens()[:, order]).logits, read(tokens()).logits[:, order], rtol=0, atol=1e-9)


@torch.no_grad()
def test_a_prefix_would_give_a_set_an_order():
    """Why that scope is refused: stopped or converged, what a token is would depend on where it stands."""
    torch.manual_seed(0)
    one = randomised(cell())
    inputs = torch.randn(2, 12, D, dtype=torch.float64) * torch.logspace(-1, 1, 12).unsqueeze(1)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    moved = {}
    for scope in ("sample", "all", "token", "prefix"):
        solver = eq.Anderson(scope=scope, tol=1e-2, max_evaluations=6)
        found = [solver.solve(one.bind(x), torch.zeros_like(x)).value.view_as(x) for x in (inputs, inputs[:, order])]
        moved[scope] = float((found[0][:, order] - found[1]).abs().max())
    assert moved.pop("prefix") > 1e-3
    assert max(moved.values()) < 1e-10


@torch.no_grad()
@settings(max_examples=10, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.sampled_from(["sample", "all"]))
def test_grids_of_any_shape_are_solved(rows, columns, scope):
    torch.manual_seed(0)
    one = cell(positions="grid", columns=columns)
    read = LanguageModel(TiedEmbedding(V, D), one, at_scope(scope, tol=1e-5, max_evaluations=100)).eval()
    solution = read(tokens(2, rows * columns)).solution
    assert solution is not None
    assert solution.status is eq.Status.CONVERGED
    z = solution.value
    inputs = read.embedding(tokens(2, rows * columns)) * D**0.5
    assert float((one.bind(inputs)(z) - z).norm() / z.norm()) < 2e-5


@pytest.mark.parametrize("options", POSITIONS.values(), ids=POSITIONS.keys())
@pytest.mark.parametrize("scope", ["sample", "all", "token"])
def test_the_gradient_of_a_solution_is_that_of_many_applications(scope, options):
    solver = eq.Anderson if scope != "token" else eq.Picard
    read = model(at_scope(scope, solver, **TIGHT), **options).double().train()
    assert isinstance(read.depth, Equilibrium)
    read.depth = replace(read.depth, gradient=eq.Implicit(eq.GMRES(tol=1e-11)), residual_penalty=0.0)
    targets = tokens().roll(1, 1)

    def gradients(depth: Depth | None) -> list[Tensor]:
        loss = read(tokens(), targets, depth=depth).loss
        assert loss is not None
        return list(torch.autograd.grad(loss, list(read.parameters())))

    for found, expected in zip(gradients(None), gradients(UnrolledDepth(200)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


def test_the_gradient_of_a_solution_is_that_of_differences():
    torch.manual_seed(0)
    one = ContractiveCell(4, 1, 4, causal=False, positions="grid", columns=2).double()
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.mul_(0.5)

    def solved(inputs: Tensor) -> Tensor:
        solver, gradient = eq.Anderson(tol=1e-12, max_evaluations=300), eq.Implicit(eq.GMRES(tol=1e-12))
        return eq.fixed_point(one.bind(inputs), torch.zeros_like(inputs), solver, gradient, on_failure="ignore").value

    assert torch.autograd.gradcheck(solved, torch.randn(1, 6, 4, dtype=torch.float64, requires_grad=True), atol=1e-6)


@pytest.mark.parametrize(
    ("depth", "keys"),
    [
        (Equilibrium(), "depth.solver.scope and depth.eval_solver.scope"),
        (replace(at_scope("all"), eval_solver=eq.Picard(scope="prefix")), "depth.eval_solver.scope"),
        (replace(at_scope("sample"), solver=eq.Picard(scope="prefix")), "depth.solver.scope"),
    ],
)
def test_a_solver_that_goes_from_left_to_right_is_refused(depth, keys):
    with pytest.raises(ValueError, match=f'^{keys} = "prefix": .* give "sample"$'):
        model(depth)
    with pytest.raises(ValueError, match=f'^{keys} = "prefix"'):
        model(UnrolledDepth(1))(tokens(), depth=depth)


def test_a_causal_cell_between_layers_that_are_not_may_be_solved_from_left_to_right():
    torch.manual_seed(0)
    read = LanguageModel(TiedEmbedding(V, D), ContractiveCell(D, 2, 24), coda=StackedCell([cell(False)])).eval()
    assert not read.causal
    assert eq.audit_causality(read, tokens()).by_design
    assert eq.audit_batch_invariance(read, tokens()).holds


def test_all_parts_of_a_model_read_one_grid():
    def grid(columns: int) -> Cell:
        return ContractiveCell(D, 2, 24, causal=False, positions="grid", columns=columns)

    embedding, unordered = TiedEmbedding(V, D), ContractiveCell(D, 2, 24, causal=False, positions="none")
    assert LanguageModel(embedding, unordered, UnrolledDepth(1), coda=grid(3)).columns == 3
    with pytest.raises(ValueError, match=r"one grid; found columns \[3, 4\]"):
        LanguageModel(embedding, grid(4), UnrolledDepth(1), prelude=grid(3))


def test_tokens_do_not_leave_one_by_one():
    with pytest.raises(ValueError, match="Adaptive evaluates tokens apart"):
        model(DEPTHS["sample"])(tokens(), depth=Adaptive())
    assert not cell().separable


@pytest.mark.parametrize(
    "options", [{"memory_length": 3}, {"memory_length": 3, "chunk_length": 4}, {"coda": StackedCell([cell(False)])}]
)
def test_there_is_no_memory_and_there_are_no_chunks(options):
    one: Cell = ContractiveCell(D, 2, 24) if "coda" in options else cell()
    with pytest.raises(ValueError, match=r"memory_length = 3: .* give 0, and no chunk_length"):
        LanguageModel(TiedEmbedding(V, D), one, UnrolledDepth(2), **({"memory_length": 3} | options))
    with pytest.raises(ValueError, match="memory_length = 2: "):
        model(UnrolledDepth(2))(tokens(), memory_length=2)
    with pytest.raises(ValueError, match="no memory"):
        model(UnrolledDepth(2))(tokens(), memory=Memory((torch.zeros(3, 2, D),)))
    assert model(UnrolledDepth(2))(tokens()).memory is None


@pytest.mark.parametrize("depth", DEPTHS.values(), ids=DEPTHS.keys())
def test_no_text_is_continued(depth):
    read = model(depth)
    assert not read.decodes()
    message = "every token of this model sees those after it"
    for use in (
        lambda: read.generate(tokens(), 2),
        lambda: read.begin(tokens()),
        lambda: read.prefill(tokens()),
        lambda: read.decode(tokens(), Memory(())),
    ):
        with pytest.raises(UserError, match=message):
            use()
    for use in (lambda: read.new_cache(), lambda: read.cell.cached):
        with pytest.raises(ValueError, match="no cache"):
            use()
