"""On a device other than the CPU: nothing is made on the wrong one, results are the CPU's, the host waits seldom."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

import equilibria as eq
from elsewhere import DEVICE, NAME, waits, without_doubles
from equilibria import devices
from equilibria.cells import Cell, ContractiveCell, StackedCell, TransformerXLCell, TrellisCell
from equilibria.configuration import Recipe
from equilibria.depths import Depth, Equilibrium, UnrolledDepth
from equilibria.gradients import Gradient
from equilibria.models import LanguageModel, sampling
from equilibria.nn import AdaptiveEmbedding, TiedEmbedding, TokenEmbedding, UntiedEmbedding
from equilibria.optimization import SGD, AdamW, Constant, Exponential, Muon, Optimizer, RAdam
from equilibria.runs.folder import RunFolder
from equilibria.runs.metrics import read_metrics
from equilibria.solvers import Solver
from equilibria.training import trainer
from tiny import TRAINING, tiny_recipe, tiny_task_recipe
from ways import ALL, SOLVERS, tanh_map, tanh_problem, tight

DEVICES = [torch.device("cpu"), DEVICE]
V, D = 29, 16


@pytest.fixture(autouse=True)
def tied() -> Iterator[None]:
    """Weights that are shared stay so when a model moves, as on a device of PyTorch's own."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Converting a tensor with requires_grad")
        yield
    torch.__future__.set_swap_module_params_on_conversion(False)


def agree(of: Callable[[torch.device], Any], tolerance: float = 1e-5) -> None:
    """What is computed on each device, brought to the CPU, is the same."""
    here, there = (of(device) for device in DEVICES)
    torch.testing.assert_close(there, here, rtol=tolerance, atol=tolerance)


def solved(solver: Solver, gradient: Gradient, device: torch.device) -> list[Tensor]:
    """A solution and the gradients of two inputs."""
    weight, inputs = (leaf.detach().to(device).requires_grad_() for leaf in tanh_problem())
    start = torch.zeros(inputs.shape, dtype=inputs.dtype, device=device)
    solution = eq.fixed_point(tanh_map(weight, inputs), start, solver, gradient)
    assert solution.status is eq.Status.CONVERGED
    assert solution.value.device == solution.residual.device == device
    solution.value.square().sum().backward()
    return [tensor.detach().cpu() for tensor in (solution.value, weight.grad, inputs.grad) if tensor is not None]


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers(name: str) -> None:
    agree(lambda device: solved(tight(SOLVERS[name], torch.float64), eq.Guarded(), device))


@pytest.mark.parametrize("name", ALL)
def test_gradients(name: str) -> None:
    agree(lambda device: solved(tight(eq.Broyden(max_evaluations=400), torch.float64), ALL[name], device))


@pytest.mark.parametrize("solver", [eq.Anderson, eq.Broyden, eq.NewtonKrylov])
def test_a_device_without_doubles(solver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(device: torch.device) -> list[Tensor]:
        weight, inputs = (leaf.detach().to(device, torch.float32).requires_grad_() for leaf in tanh_problem())
        gradient = eq.Guarded() if solver is not eq.Broyden else eq.Reversible(steps=40, damping=0.9)
        solution = eq.fixed_point(tanh_map(weight, inputs), torch.zeros_like(inputs), solver(tol=1e-5), gradient)
        solution.value.square().sum().backward()
        assert solution.status is eq.Status.CONVERGED
        assert weight.grad is not None
        return [solution.value.detach().cpu(), weight.grad.cpu()]

    monkeypatch.setattr(devices, "_WITHOUT_DOUBLES", {NAME})
    with without_doubles():
        agree(of, 1e-3)


def test_a_text_on_a_device_without_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_WITHOUT_DOUBLES", {NAME})
    with without_doubles():
        for positions in ("rotary", "linear"):
            cell = partial(ContractiveCell, D, 2, 24, positions=positions)
            agree(lambda device, cell=cell: read(device, cell, SOLVED, EMBEDDINGS["tied"]), 1e-3)
            torch.manual_seed(0)
            model = LanguageModel(TiedEmbedding(V, D), cell(), SOLVED, 8).to(DEVICE)
            drawn = [sampling.Sampler(sampling.Sampling(repetition_penalty=1.1), 0, [1], V)]
            with torch.no_grad():
                step = model.eval().prefill(torch.tensor([[1, 2, 3]], device=DEVICE))
                assert 0 <= sampling.Sampler.draw(drawn, step.logits_BV)[0] < V


def test_a_start_in_half_precision_and_a_search() -> None:
    for solver in (eq.Picard(tol=1e-6, max_evaluations=200, draft=eq.Draft()), eq.Broyden(tol=1e-6, halvings=4)):
        agree(lambda device, solver=solver: solved(solver, eq.Phantom(steps=30), device), 1e-3)


def test_diagnostics_and_penalties() -> None:
    def of(device: torch.device) -> list[Any]:
        weight, inputs = (leaf.detach().to(device) for leaf in tanh_problem())
        f, start = tanh_map(weight.requires_grad_(), inputs), torch.zeros_like(inputs)
        solution = eq.fixed_point(f, start, eq.Anderson(tol=1e-8))
        z = solution.value.detach()
        torch.manual_seed(0)
        found = [eq.residual_penalty(solution), eq.jacobian_penalty(f, z), eq.spectral_radius(f, z)]
        errors = eq.gradient_error(f, start, eq.Anderson(tol=1e-8), eq.Phantom(steps=3), {"weight": weight})
        numbers = [*found, errors["weight"].cosine, eq.audit_coupling(f, z).strength]
        return [torch.as_tensor(number).detach().cpu() for number in numbers]

    agree(of, 1e-4)


@pytest.mark.parametrize(
    "solver",
    [eq.Picard(), eq.Anderson(), eq.Broyden(), eq.Anderson(scope="prefix"), eq.Broyden(scope="prefix")],
    ids=lambda solver: f"{type(solver).__name__} {solver.scope}",
)
def test_the_host_waits_once_for_each_evaluation(solver: Solver) -> None:
    weight, inputs = (leaf.detach().to(DEVICE) for leaf in tanh_problem())
    start = torch.zeros_like(inputs)
    with waits() as waited:
        solution = eq.fixed_point(tanh_map(weight, inputs), start, replace(solver, tol=1e-8, max_evaluations=200))
    assert solution.evaluations > 5
    assert waited.total() <= solution.evaluations + 5, waited


CELLS: dict[str, Callable[[], Cell]] = {
    "rotary": lambda: ContractiveCell(D, 2, 24),
    "grouped": lambda: ContractiveCell(D, 4, 24, key_value_heads=2, positions="none"),
    "linear, strict": lambda: ContractiveCell(D, 2, 24, blocks=2, positions="linear", strict=True),
    "post norm": lambda: TransformerXLCell(D, 2, 24, affine=True, window=5),
    "trellis": lambda: TrellisCell(D, 8, dilation=2),
    "scanned trellis": lambda: TrellisCell(D, 8, scan=True),
    "stack": lambda: StackedCell([ContractiveCell(D, 2, 24), TransformerXLCell(D, 2, 24, affine=True)]),
}
SOLVED = Equilibrium(eval_solver=eq.Anderson(tol=1e-6, max_evaluations=200, scope="prefix"))
EMBEDDINGS: dict[str, Callable[[], TokenEmbedding]] = {
    "tied": lambda: TiedEmbedding(V, D),
    "untied": lambda: UntiedEmbedding(V, D),
    "adaptive": lambda: AdaptiveEmbedding(V, D, cutoffs=(10, 20)),
}


def read(
    device: torch.device, cell: Callable[[], Cell], depth: Depth, embedding: Callable[[], TokenEmbedding]
) -> list[Tensor]:
    """A training step's loss and gradients, the loss of a segment after another, and the predictions of a text that is
    read and continued by two tokens."""
    torch.manual_seed(0)
    prelude = StackedCell([ContractiveCell(D, 2, 24, injection=False)])
    model = LanguageModel(embedding(), cell(), depth, 8, prelude=prelude).to(device)
    tokens = torch.randint(0, V, (2, 13), generator=torch.Generator().manual_seed(1)).to(device)
    output = model.train()(tokens[:, :-1], tokens[:, 1:])
    assert output.loss is not None
    output.loss.backward()
    found = [output.loss, *[parameter.grad for parameter in model.parameters() if parameter.grad is not None]]
    with torch.no_grad():
        memory = model.eval()(tokens[:, :6], tokens[:, 1:7]).memory
        found.append(model(tokens[:, 6:12], tokens[:, 7:], memory).loss)
        step = model.prefill(tokens, padding_B=torch.tensor([0, 3], device=device))
        for number in range(2):
            found.append(step.logits_BV)
            step = model.decode(tokens[:, number], step.cache)
    return [tensor.detach().cpu() for tensor in found]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("depth", [SOLVED, UnrolledDepth(3)], ids=["equilibrium", "unrolled"])
def test_language_models(cell: str, depth: Depth) -> None:
    agree(lambda device: read(device, CELLS[cell], depth, EMBEDDINGS["tied"]), 1e-4)


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_embeddings(embedding: str) -> None:
    agree(lambda device: read(device, CELLS["rotary"], SOLVED, EMBEDDINGS[embedding]), 1e-4)


def test_a_token_of_a_text_waits_once_for_each_evaluation() -> None:
    torch.manual_seed(0)
    model = LanguageModel(TiedEmbedding(V, D), ContractiveCell(D, 2, 24), SOLVED, 8).to(DEVICE).eval()
    with torch.no_grad():
        step = model.prefill(torch.arange(12, device=DEVICE).view(2, 6))
        token = step.logits_BV.argmax(-1)
        with waits() as waited:
            step = model.decode(token, step.cache)
    assert step.evaluations_BL is not None
    assert waited.total() <= int(step.evaluations_BL.max()) + 8, waited


def trained(device: str, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The losses in the log of a run."""
    monkeypatch.setattr(trainer, "training_device", lambda _: device)
    eq.train(recipe, console=Console(quiet=True))
    return [float(str(line["loss"])) for line in read_metrics(RunFolder(recipe.run.folder).metrics)]


@pytest.mark.parametrize("of", [tiny_recipe, tiny_task_recipe], ids=["text", "task"])
@pytest.mark.parametrize("optimizer", [AdamW(), Muon(), RAdam(), SGD()], ids=lambda one: type(one).__name__)
def test_a_run(
    of: Callable[..., Recipe], optimizer: Optimizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = replace(TRAINING, optimizer=optimizer, averaging=Exponential(decay=0.5))
    losses = [trained(device, of(tmp_path / device, training), monkeypatch) for device in ("cpu", NAME)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_run_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = replace(TRAINING, schedule=Constant())
    whole = trained(NAME, tiny_recipe(tmp_path / "whole", training), monkeypatch)
    begun = tiny_recipe(tmp_path / "begun", training)
    monkeypatch.setattr(trainer, "training_device", lambda _: NAME)
    for steps, resume in ((4, False), (12, True)):
        eq.train(replace(begun, training=replace(training, steps=steps)), resume=resume, console=Console(quiet=True))
    losses = [line["loss"] for line in read_metrics(RunFolder(begun.run.folder).metrics) if line["step"] == 12]
    assert losses == whole[-2:]


def test_the_device_refuses_what_accelerators_refuse() -> None:
    there = torch.ones(3, device=DEVICE)
    with pytest.raises(RuntimeError, match=r"tensors of elsewhere:0 and, of shapes \[\(3,\)\], of the CPU"):
        print(there + torch.ones(3))
    with waits() as waited:
        assert float((there + torch.tensor(2.0)).sum()) == 9.0
        assert there.tolist() == [1.0] * 3
        assert there[there > 0].shape == (3,)
    assert waited == {"_local_scalar_dense": 1, "copy to the host": 1, "index": 1}
