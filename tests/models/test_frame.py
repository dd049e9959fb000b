"""What stands around a cell in a language model: prelude and coda, the memory of all, chunks, auxiliary losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import equilibria as eq
from equilibria.cells import Cell, ContractiveCell, Memory, StackedCell, TransformerXLCell, TrellisCell
from equilibria.depths import ChunkedSolution, Equilibrium, UnrolledDepth
from equilibria.models import LanguageModel
from equilibria.nn import TiedEmbedding, UntiedEmbedding
from equilibria.paper.halting import Halting
from layers import AveragingLayer

V, D = 11, 8


def layers(count: int, **options) -> StackedCell:
    return StackedCell([AveragingLayer(D, **options) for _ in range(count)])


def framed(cell=None, depth=None, memory_length=20, **options) -> LanguageModel:
    """Two explicit layers, a cell at a depth, one more layer; in float64, small enough to be solved tightly."""
    torch.manual_seed(2)
    parts: dict[str, Any] = {"prelude": layers(2), "coda": layers(1)} | options
    model = LanguageModel(TiedEmbedding(V, D), cell or ContractiveCell(D, 2, 12), depth, memory_length, **parts)
    with torch.no_grad():
        for parameter in model.cell.parameters():
            parameter.mul_(0.5)
    return model.double()


def tight(gradient=None) -> Equilibrium:
    solver = eq.Anderson(tol=1e-12, max_evaluations=300, scope="prefix")
    gradient = gradient or eq.Implicit(eq.GMRES(tol=1e-12, max_evaluations=400, restart=100))
    return Equilibrium(solver=solver, eval_solver=solver, gradient=gradient, residual_penalty=0.0)


def text(batch: int = 2, length: int = 10, seed: int = 4) -> torch.Tensor:
    return torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(2)


MODELS = {
    "contractive at equilibrium": lambda **o: framed(ContractiveCell(D, 2, 12), tight(), **o),
    "post norm at equilibrium": lambda **o: framed(TransformerXLCell(D, 2, 12), tight(), **o),
    "a stack at equilibrium": lambda **o: framed(
        StackedCell([ContractiveCell(D, 2, 12), ContractiveCell(D, 2, 12)]), tight(), **o
    ),
    "explicit layers": lambda **o: framed(layers(3), UnrolledDepth(1), **o),
    "explicit tied layers": lambda **o: framed(StackedCell([AveragingLayer(D)] * 3), UnrolledDepth(1), **o),
    "explicit layers, recomputed": lambda **o: framed(layers(3), UnrolledDepth(1, checkpoint=True), **o),
}


def test_the_frame_is_its_parts_in_order():
    model, tokens = framed(layers(2, injection=True), UnrolledDepth(3), dropout=0.0), text()
    assert model.prelude is not None
    assert model.coda is not None
    z = model.embedding(tokens) * D**0.5
    x = model.prelude.bind(z)(z)
    bound, z = model.cell.bind(x), torch.zeros_like(x)
    for _ in range(3):
        z = bound(z)
    hidden = model.coda.bind(z)(z)
    output = model(tokens, tokens)
    torch.testing.assert_close(output.hidden, hidden)
    torch.testing.assert_close(output.logits, hidden @ next(model.embedding.parameters()).mT)
    expected = F.cross_entropy(output.logits.flatten(0, 1), tokens.flatten())
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())
@torch.no_grad()
def test_segments_with_memory_are_one_long_segment(build):
    model, tokens = build(), text()
    model.eval()
    whole = model(tokens)
    memory, parts = None, []
    for part in tokens.split([3, 1, 4, 2], dim=1):
        output = model(part, memory=memory)
        memory = output.memory
        parts.append(output.hidden)
    torch.testing.assert_close(torch.cat(parts, 1), whole.hidden, rtol=1e-6, atol=1e-7)
    assert memory is not None
    assert len(memory.states) == 2 + model.cell.remembered + 1
    for one, two in zip(memory.states, whole.memory.states, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())
@settings(max_examples=4, deadline=None)
@given(chunk_length=st.integers(1, 9), already=st.booleans())
def test_chunks_are_one_long_segment_with_its_gradient(build, chunk_length, already):
    tokens, targets = text(), text(seed=5)
    targets[0, 2:4] = -100
    results = []
    for options in ({}, {"chunk_length": chunk_length}):
        torch.manual_seed(2)  # the same weights in both
        model = build(**options)
        memory = model(text(seed=6)[:, :4]).memory if already else None
        output = model(tokens, targets, memory)
        output.loss.backward()
        results.append((output, [parameter.grad for parameter in model.parameters()]))
    (whole, expected), (chunked, found) = results
    torch.testing.assert_close(chunked.hidden, whole.hidden, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(chunked.loss, whole.loss, rtol=1e-6, atol=1e-7)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)
    for one, two in zip(chunked.memory.states, whole.memory.states, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())
def test_the_gradient_flows_between_chunks_and_not_between_segments(build):
    model, tokens = build(chunk_length=4), text(1, 8)
    inputs = []
    model.embedding.register_forward_hook(lambda *call: inputs.append(call[-1]))
    first = model(tokens)
    assert first.memory is not None
    assert not any(state.requires_grad for state in first.memory.states)
    second = model(tokens, memory=first.memory)
    second.hidden[:, 4:].square().sum().backward(inputs=inputs)
    earlier, here = (features.grad for features in inputs)
    assert earlier is None
    assert here is not None
    assert float(here[:, :4].abs().max()) > 0


def test_a_memory_shorter_than_a_segment_is_kept_after_every_chunk():
    model, tokens = framed(depth=tight(), memory_length=3, chunk_length=2), text(1, 9)
    model.eval()
    lengths = []
    model.cell.register_forward_pre_hook(lambda _, call: lengths.append(call[1].blocks[0].attention.pattern.mask))
    with torch.no_grad():
        output = model(tokens)
    seen = {0 if mask is None else mask.shape[1] - mask.shape[0] for mask in lengths}
    assert seen == {0, 2, 3}
    assert output.memory.length == 3
    changed = tokens.clone()
    changed[:, 3] = (changed[:, 3] + 1) % V
    with torch.no_grad():
        other = model(changed)
    assert torch.equal(other.hidden[:, :3], output.hidden[:, :3])
    assert not torch.equal(other.hidden[:, 4:6], output.hidden[:, 4:6])


def test_the_solution_of_chunks_is_one_report():
    model, tokens = framed(depth=tight(eq.Phantom(steps=1)), chunk_length=4), text(2, 10)
    output = model(tokens)
    assert model.prelude is not None
    assert isinstance(output.solution, ChunkedSolution)
    assert [chunk.residual.shape[1] for chunk in output.solution.chunks] == [4, 4, 2]
    assert output.solution.residual.shape == (2, 10)
    with torch.no_grad():
        x = model.embedding(tokens) * D**0.5
        x = model.prelude.bind(x)(x)
        z, bound = output.solution.value, model.cell.bind(x)
        f_z = bound(z)
    residual = ((f_z - z).norm(dim=-1) / f_z.norm(dim=-1)).float()
    torch.testing.assert_close(output.solution.residual, residual, rtol=1e-3, atol=1e-9)


AUDITED = {
    "equilibrium": lambda: Equilibrium(eval_solver=eq.Anderson(tol=1e-3, max_evaluations=5, scope="prefix")),
    "unrolled": lambda: UnrolledDepth(3),
    "halting": lambda: Halting(D, max_steps=4, threshold=0.8),
}


@pytest.mark.parametrize("depth", AUDITED.values(), ids=AUDITED.keys())
@pytest.mark.parametrize("chunk_length", [None, 1, 3, 4])
@pytest.mark.parametrize("cell", [lambda: ContractiveCell(D, 2, 12), lambda: layers(2)], ids=["cell", "stack"])
def test_audits_find_exactly_zero(depth, chunk_length, cell):
    model = framed(cell(), depth(), chunk_length=chunk_length).float()
    assert eq.audit_causality(model, text(3, 12)).leak == 0.0
    assert eq.audit_batch_invariance(model, text(3, 12)).leak == 0.0


def test_auxiliary_losses_are_those_of_the_states_on_the_way():
    depth = UnrolledDepth(5, states_every=2)
    model, tokens, targets = framed(layers(1, injection=True), depth, auxiliary_weight=0.3), text(), text(seed=5)
    targets[:, :3] = -100
    output = model(tokens, targets)
    losses = []
    for applications in (2, 4):
        losses.append(model(tokens, targets, depth=UnrolledDepth(applications)).loss)
    torch.testing.assert_close(output.penalty, 0.3 * (losses[0] + losses[1]) / 2)
    assert model(tokens).penalty is None
    assert model.eval()(tokens, targets).penalty is None


@pytest.mark.parametrize("gradient", [eq.Implicit(), eq.Unrolled(steps=6), eq.Phantom(steps=2)])
def test_auxiliary_losses_of_an_equilibrium_come_on_top_of_its_penalty(gradient):
    solver = eq.Picard(tol=0.0, max_evaluations=6, scope="prefix")
    tokens, penalties = text(), []
    for weight in (0.0, 0.5, 1.0):
        depth = Equilibrium(solver=solver, gradient=gradient, states_every=2)
        model = framed(depth=depth, auxiliary_weight=weight)
        output = model(tokens, tokens)
        penalties.append(output.penalty)
        (output.loss + output.penalty).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
    none, half, full = penalties
    assert float((half - none).detach()) > 0.1
    torch.testing.assert_close(full - none, 2 * (half - none))


def test_auxiliary_losses_of_chunks_are_those_of_the_segment():
    tokens, penalties = text(), []
    for chunk_length in (None, 3):
        torch.manual_seed(0)
        cell = StackedCell([AveragingLayer(D, injection=True)] * 4)
        # A chunk of a nilpotent map is at its solution long before iterate 39, which is the solution then.
        solver = eq.Picard(tol=0.0, max_evaluations=40, scope="prefix")
        depth = Equilibrium(solver=solver, gradient=eq.Implicit(), residual_penalty=0.0, states_every=39)
        model = framed(cell, depth, chunk_length=chunk_length, auxiliary_weight=1.0)
        penalties.append(model(tokens, tokens).penalty)
    torch.testing.assert_close(penalties[1], penalties[0])


def test_a_jacobian_penalty_goes_through_fused_attention_and_trains():
    depth = Equilibrium(jacobian_penalty=1.0)
    tokens = text(2, 12)
    model = framed(ContractiveCell(D, 2, 12), depth).float()
    output = model(tokens, tokens)
    output.penalty.backward()
    gradient = model.get_parameter("cell.blocks.0.attention.queries_keys_values.weight").grad
    assert gradient is not None
    assert float(gradient.abs().max()) > 0


def test_dropout_masks_are_drawn_once_per_solve_in_every_part():
    model = framed(layers(1, injection=True, dropout=0.5), UnrolledDepth(2), prelude=layers(1, dropout=0.5), coda=None)
    maps = []
    for part in ("prelude.cells.0", "cell.cells.0"):
        model.get_submodule(part).register_forward_pre_hook(lambda _, call: maps.append(call[1]))
    model(text())
    assert len(maps) == 3
    assert maps[1] is maps[2]
    assert not torch.equal(maps[0].mask, maps[1].mask)


def test_weights_are_named_after_their_parts():
    model = LanguageModel(TiedEmbedding(V, D), ContractiveCell(D, 2, 12))
    names = list(model.state_dict())
    assert names[0] == "embedding.weight"
    assert all(name.startswith("cell.") for name in names[1:])
    assert set(names[1:]) == {f"cell.{name}" for name in model.cell.state_dict()}


def test_a_memory_of_another_model_is_an_error():
    model, tokens = framed(), text()
    alone = LanguageModel(TiedEmbedding(V, D), ContractiveCell(D, 2, 12), memory_length=5)
    with pytest.raises(ValueError, match="has 1 tensors and the cells of this model remember 4"):
        model(tokens, memory=alone(tokens).memory)
    with pytest.raises(ValueError, match="has 4 tensors and the cells of this model remember 1"):
        alone(tokens, memory=model(tokens).memory)


def test_a_cell_that_remembers_nothing_has_no_part_of_the_memory():
    class Forgetful(Cell):
        remembered = 0

        def __init__(self):
            super().__init__()
            self.d_model, self.linear = D, torch.nn.Linear(D, D)

        def evaluate(self, z_BLD, inputs_BLD, past):
            assert past is None
            return torch.tanh(self.linear(z_BLD) + inputs_BLD)

        def remember(self, z_BLD, inputs_BLD):
            return ()

    model = framed(Forgetful(), UnrolledDepth(2))
    first = model(text())
    assert len(first.memory.states) == 3
    assert model(text(), memory=first.memory).memory.length == 20
    alone = LanguageModel(TiedEmbedding(V, D), Forgetful(), UnrolledDepth(1), memory_length=5)
    again = alone(text(), memory=alone(text()).memory)
    assert again.memory == Memory(())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding": TiedEmbedding(V, 6)}, "the embedding has 6 features out and the cell reads 8"),
        ({"coda": AveragingLayer(4)}, "the cell has 8 features out and the coda reads 4"),
        ({"prelude": TrellisCell(D, 10, 6)}, "the prelude has 6 features out and the cell reads 8"),
        ({"cell": TrellisCell(D, 10, 6)}, "the cell has 6 features out and the softmax reads 8"),
        ({"cell": StackedCell([TrellisCell(D, 10, 6)])}, "the cell has 6 features out and the softmax reads 8"),
        ({"embedding": UntiedEmbedding(V, D, 6)}, "the cell has 8 features out and the softmax reads 6"),
        ({"memory_length": -1}, "memory_length must be at least 0, found -1"),
        ({"chunk_length": 0}, "found chunk_length 0"),
        ({"chunk_length": 4, "memory_length": 0}, "found chunk_length 4 and memory_length 0"),
        ({"auxiliary_weight": -0.5}, "auxiliary_weight must be at least 0, found -0.5"),
    ],
)
def test_impossible_options_are_errors(options, message):
    options = {"embedding": TiedEmbedding(V, D), "cell": AveragingLayer(D), "memory_length": 5} | options
    with pytest.raises(ValueError, match=message):
        LanguageModel(**options)


def test_memory_is_of_the_result_where_inputs_are_injected_and_of_the_argument_where_not():
    tokens = text()
    for injection, applications in ((True, 3), (False, 2)):
        model = framed(AveragingLayer(D, injection), UnrolledDepth(3), prelude=None, coda=None)
        remembered = model(tokens).memory
        again = model(tokens, depth=UnrolledDepth(applications))
        torch.testing.assert_close(remembered.states[0], again.hidden.detach())


def test_a_model_that_keeps_no_memory_hands_none_on():
    model, tokens = framed(layers(1), UnrolledDepth(1), chunk_length=4), text()
    memory = model(tokens).memory
    first, second = model(tokens, memory=memory, memory_length=0), model(tokens[:, 4:8], memory_length=0)
    assert first.memory is None
    torch.testing.assert_close(first.hidden[:, 4:8], second.hidden)
    assert not torch.equal(first.hidden[:, :4], model(tokens[:, :4], memory_length=0).hidden)
