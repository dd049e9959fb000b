"""Programs give what the eager model gives, in PyTorch and in ONNX, for batches and lengths not traced with."""

import json
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from equilibria.cells import Cell, ContractiveCell, Memory, StackedCell, TransformerXLCell, TrellisCell
from equilibria.depths import Depth, Equilibrium, Restarts, Stack, UnrolledDepth
from equilibria.errors import UserError
from equilibria.interop.torch_export import (
    METADATA,
    FixedBudget,
    Part,
    SolvedLogits,
    export_program,
    fixed_depth,
    save_onnx,
    save_program,
)
from equilibria.models import LanguageModel
from equilibria.nn import AdaptiveEmbedding, TiedEmbedding
from equilibria.paper.halting import Halting
from equilibria.solvers import Anderson, Broyden, NewtonKrylov, Picard, Solver
from three_blocks import three_blocks

SHAPES = ((2, 3), (1, 1), (5, 1), (1, 9), (3, 33))


def model(cell: Cell, depth: Depth | None = None) -> LanguageModel:
    torch.manual_seed(0)
    embedding = AdaptiveEmbedding(31, 8, (10, 20), 2) if cell.layers_per_application == 3 else TiedEmbedding(31, 8)
    return LanguageModel(embedding, cell, depth, memory_length=4).eval()


def text(shape: tuple[int, int]) -> torch.Tensor:
    return torch.randint(31, shape, generator=torch.Generator().manual_seed(sum(shape)))


SOLVES: dict[str, Callable[[], LanguageModel]] = {
    "picard": lambda: model(
        ContractiveCell(8, 2, 16), Equilibrium(eval_solver=Picard(max_evaluations=6, scope="prefix"))
    ),
    "anderson": lambda: model(
        TransformerXLCell(8, 2, 16, normalisation="weight", window=5),
        Equilibrium(eval_solver=Anderson(tol=1e-4, max_evaluations=4, scope="prefix")),
    ),
    "sample": lambda: model(
        ContractiveCell(8, 2, 16), Equilibrium(eval_solver=Anderson(tol=1e-4, max_evaluations=4, scope="sample"))
    ),
    "trellis": lambda: model(
        TrellisCell(8, 10, dilation=4), Equilibrium(eval_solver=Picard(max_evaluations=4, scope="prefix"))
    ),
    "stack": lambda: model(StackedCell([ContractiveCell(8, 2, 16, injection=False) for _ in range(2)]), Stack(2)),
    "unrolled": lambda: model(three_blocks(8, 2, 16, normalisation="weight", window=1000), UnrolledDepth(2)),
}


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("kind", SOLVES)
def test_a_solve_comes_back(kind: str, gradients: bool, tmp_path: Path) -> None:
    with torch.set_grad_enabled(gradients):
        check_solve(kind, tmp_path)


def check_solve(kind: str, tmp_path: Path) -> None:
    one = SOLVES[kind]()
    eager = SolvedLogits(one, fixed_depth(one))
    save_program(export_program(one), tmp_path / "solve.pt2", {"kind": kind})
    extra = {METADATA: ""}
    loaded = torch.export.load(tmp_path / "solve.pt2", extra_files=extra).module()
    assert json.loads(extra[METADATA]) == {"kind": kind}
    assert [path.name for path in tmp_path.iterdir()] == ["solve.pt2"]
    for shape in SHAPES:
        found = loaded(text(shape))
        with torch.no_grad():
            torch.testing.assert_close(found, eager(text(shape)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_evaluations_of_a_program_make_a_solve() -> None:
    eager = SOLVES["picard"]()
    depth, program = fixed_depth(eager, 4), export_program(eager, "evaluation").module()
    for shape in SHAPES:
        state = torch.zeros(*shape, 8)
        for _ in range(4):
            state = program(state, text(shape))
        torch.testing.assert_close(state, eager(text(shape), depth=depth).hidden, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("solver", [Broyden(), NewtonKrylov()], ids=lambda solver: type(solver).__name__)
def test_one_evaluation_needs_no_solver(solver: Solver) -> None:
    one = model(ContractiveCell(8, 2, 16), Equilibrium(eval_solver=solver))
    found = export_program(one, "evaluation").module()(torch.zeros(2, 3, 8), text((2, 3)))
    expected = one(text((2, 3)), depth=UnrolledDepth(1)).hidden
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_budget_of_picard_is_that_many_applications() -> None:
    torch.manual_seed(0)
    cell = ContractiveCell(8, 2, 16)
    bound = cell.bind(torch.randn(2, 5, 8), None)
    start = torch.zeros(2, 5, 8)
    budget = FixedBudget(Picard(scope="prefix"), 5).reach(bound, start, False)
    applied = UnrolledDepth(5).reach(bound, start, False)
    torch.testing.assert_close(budget.state, applied.state)  # the same products, in other memory


@torch.no_grad()
def test_a_budget_of_anderson_is_the_solvers() -> None:
    torch.manual_seed(0)
    cell = TransformerXLCell(8, 2, 16)
    memory = Memory((torch.randn(2, 3, 8), torch.randn(2, 3, 8)))
    bound = cell.bind(torch.randn(2, 5, 8), memory)

    def f(z: torch.Tensor) -> torch.Tensor:
        return bound(z)

    solver = Anderson(tol=0.0, max_evaluations=7, scope="prefix")
    solved = solver.solve(f, torch.zeros(2, 5, 8))
    budget = FixedBudget(solver, 7).reach(f, torch.zeros(2, 5, 8), False)
    torch.testing.assert_close(budget.state, solved.value, rtol=1e-5, atol=1e-5)


def test_the_model_itself_is_left_as_it_was() -> None:
    one = SOLVES["picard"]()
    one.train().cell.eval()
    modes = [module.training for module in one.modules()]
    assert isinstance(fixed_depth(one, 3), FixedBudget)
    export_program(one, "evaluation")
    assert [module.training for module in one.modules()] == modes
    assert all(parameter.requires_grad for parameter in one.parameters())


def whole_sequences(columns: int | None, solver: Solver) -> LanguageModel:
    """A model of sets, or of grids of so many columns."""
    torch.manual_seed(0)
    cell = ContractiveCell(8, 2, 16, causal=False, positions="none" if columns is None else "grid", columns=columns)
    return LanguageModel(TiedEmbedding(31, 8), cell, Equilibrium(solver=solver, eval_solver=solver)).eval()


@torch.no_grad()
@pytest.mark.parametrize("columns", [None, 5])
def test_grids_and_sets_come_back_in_whole_rows(columns: int | None, tmp_path: Path) -> None:
    one = whole_sequences(columns, Anderson(tol=1e-4, max_evaluations=2))
    program = export_program(one)
    save_program(program, tmp_path / "solve.pt2", {})
    loaded, eager = torch.export.load(tmp_path / "solve.pt2").module(), SolvedLogits(one, fixed_depth(one))
    for rows, lines in SHAPES:
        tokens = text((rows, lines * (columns or 1)))
        torch.testing.assert_close(loaded(tokens), eager(tokens), rtol=1e-5, atol=1e-5)


def test_what_has_no_fixed_budget_is_an_error(tmp_path: Path) -> None:
    broyden = model(ContractiveCell(8, 2, 16), Equilibrium(eval_solver=Broyden()))
    with pytest.raises(UserError, match=r"eval_solver: .* Picard or Anderson, found Broyden"):
        export_program(broyden)
    samples = Picard(scope="sample")
    with pytest.raises(UserError, match="has no restarts"):
        export_program(model(ContractiveCell(8, 2, 16), Equilibrium(eval_solver=samples, restarts=Restarts())))
    with pytest.raises(UserError, match="cannot export"):
        export_program(model(ContractiveCell(8, 2, 16, injection=False), Halting(8)))
    chunked = SOLVES["picard"]()
    chunked.chunk_length = 2
    with pytest.raises(UserError, match="in chunks"):
        export_program(chunked)
    with pytest.raises(UserError, match="omit the number of evaluations"):
        export_program(SOLVES["picard"](), "evaluation", 3)
    with pytest.raises(UserError, match="each applied once; omit the number of evaluations"):
        export_program(SOLVES["stack"](), evaluations=3)
    for kind in SOLVES:
        with pytest.raises(ValueError, match="evaluations must be at least 1"):
            export_program(SOLVES[kind](), evaluations=0)
    with pytest.raises(ValueError, match="evaluations must be at least 1"):
        replace(FixedBudget(Picard(), 1), evaluations=0)


@pytest.mark.parametrize("part", ["solve", "evaluation"])
def test_a_loop_over_tokens_is_an_error(part: Part) -> None:
    with pytest.raises(UserError, match=r"cannot trace .* Constraints violated .* with scan .* cannot be exported"):
        export_program(model(TrellisCell(8, 10, scan=True)), part)


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    class Doubled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(10_000))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.weight * x

    program = torch.export.export(Doubled(), (torch.zeros(10_000),))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, before[1]))
    try:
        with pytest.raises(UserError, match="cannot be written"):
            save_program(program, tmp_path / "program.pt2", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
    save_program(program, tmp_path / "program.pt2", {})
    assert [path.name for path in tmp_path.iterdir()] == ["program.pt2"]


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    program = torch.export.export(torch.nn.Identity(), (torch.zeros(2),))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"program\.pt2 cannot be written"):
        save_program(program, tmp_path / "file" / "program.pt2", {})


IN_ONNX = [kind for kind, build in SOLVES.items() if "Anderson" not in repr(build().depth)]


@pytest.fixture
def onnxruntime() -> Any:
    """A runtime of another project; without it, or without what writes its files, there is nothing to compare with."""
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    return pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [*IN_ONNX, "set", "grid"])
def test_another_runtime_finds_the_same(kind: str, tmp_path: Path, onnxruntime: Any) -> None:
    columns = 5 if kind == "grid" else 1
    one = (
        SOLVES[kind]() if kind in SOLVES else whole_sequences(5 if kind == "grid" else None, Picard(max_evaluations=3))
    )
    save_onnx(export_program(one), tmp_path / "solve.onnx", {"kind": kind})
    session = onnxruntime.InferenceSession(str(tmp_path / "solve.onnx"))
    assert json.loads(session.get_modelmeta().custom_metadata_map[METADATA]) == {"kind": kind}
    eager = SolvedLogits(one, fixed_depth(one))
    for rows, lines in SHAPES:
        tokens = text((rows, lines * columns))
        (found,) = session.run(None, {"tokens": tokens.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), eager(tokens), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_one_evaluation_in_another_runtime(tmp_path: Path, onnxruntime: Any) -> None:
    one = SOLVES["anderson"]()  # whose cell has a form there, if not its solver
    save_onnx(export_program(one, "evaluation"), tmp_path / "one.onnx", {})
    session = onnxruntime.InferenceSession(str(tmp_path / "one.onnx"))
    (found,) = session.run(None, {"state": torch.zeros(2, 3, 8).numpy(), "tokens": text((2, 3)).numpy()})
    expected = one(text((2, 3)), depth=UnrolledDepth(1)).hidden
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_what_has_no_form_there_is_an_error(tmp_path: Path, onnxruntime: Any) -> None:
    with pytest.raises(UserError, match=r"no form in ONNX.*Anderson"):
        save_onnx(export_program(SOLVES["anderson"]()), tmp_path / "solve.onnx", {})
    with pytest.raises(UserError, match=r"does not end in \.onnx"):
        save_onnx(export_program(SOLVES["picard"]()), tmp_path / "solve.pt2", {})
    assert list(tmp_path.iterdir()) == []
