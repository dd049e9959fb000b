"""The trellis cell against its equations in plain loops, against PyTorch's LSTM, and what it promises."""

from __future__ import annotations

import copy
from dataclasses import replace
from math import exp, sqrt, tanh

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

import equilibria as eq
from equilibria.cells import Memory, TrellisCell
from equilibria.depths import UnrolledDepth
from trellises import HIDDEN, OUT, SIZE, D, random, settle, trellis

dilations = st.integers(1, 3)
scans = st.booleans()
normalisations = st.sampled_from(["none", "weight", "spectral"])


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + exp(-x))


def weight_by_loops(layer: nn.Module, normalisation: str) -> list[list[float]]:
    """The effective weight of a linear layer, from the parameters it is trained by."""
    named = {name.rpartition(".")[2]: tensor.tolist() for name, tensor in layer.named_parameters()}
    if normalisation == "none":
        return named["weight"]
    if normalisation == "spectral":
        raw = named["original"]
        largest = torch.linalg.svdvals(torch.tensor(raw, dtype=torch.float64))[0].item()
        return [[entry / largest for entry in row] for row in raw]
    rows = zip(named["original0"], named["original1"], strict=True)
    return [[gain * entry / sqrt(sum(x * x for x in row)) for entry in row] for (gain,), row in rows]


def level_by_loops(cell: TrellisCell, z, inputs, past_z, past_inputs, state_now: bool = False) -> Tensor:
    """One level, feature by feature, with zeros before the memory; `state_now`: c of this level, not of the last."""
    inject, recur = (weight_by_loops(layer, cell.normalisation) for layer in (cell.inject, cell.recur))
    bias, delay, result = cell.inject.bias.tolist(), cell.dilation, []
    for b in range(z.shape[0]):
        new: list[list[float]] = []

        def at(sequence: list[list[float]], before: list[list[float]], t: int, width: int) -> list[float]:
            if t >= 0:
                return sequence[t]
            return before[t] if -t <= len(before) else [0.0] * width

        states, known = z[b].tolist(), past_z[b].tolist()
        embedded, known_embedded = inputs[b].tolist(), past_inputs[b].tolist()
        for t in range(z.shape[1]):
            x = at(embedded, known_embedded, t - delay, D) + embedded[t]
            h = at(states, known, t - delay, 2 * SIZE)[:SIZE] + states[t][:SIZE]
            c_before = at(new if state_now else states, known, t - delay, 2 * SIZE)[SIZE:]
            gates = []
            for row in range(4 * SIZE):
                total = bias[row]
                total += sum(w * value for w, value in zip(inject[row], x, strict=True))
                total += sum(w * value for w, value in zip(recur[row], h, strict=True))
                gates.append(total)
            i, o, g, f = (gates[k * SIZE : (k + 1) * SIZE] for k in range(4))
            c = [sigmoid(f[k]) * c_before[k] + sigmoid(i[k]) * tanh(g[k]) for k in range(SIZE)]
            new.append([sigmoid(o[k]) * tanh(c[k]) for k in range(SIZE)] + c)
        result.append(new)
    return torch.tensor(result, dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(dilations, st.integers(1, 6), st.integers(0, 4), normalisations, scans, st.integers(0, 99))
def test_a_level_equals_the_equations(dilation, length, past, normalisation, scan, seed):
    cell = trellis(seed, dilation=dilation, normalisation=normalisation, scan=scan)
    z, inputs = random(2, length, 2 * SIZE), random(2, length, D)
    before = random(2, past, 2 * SIZE), random(2, past, D)
    found = cell.bind(inputs, Memory(before))(z)
    expected = level_by_loops(cell, z, inputs, *before, state_now=scan)
    tolerance = 1e-6 if normalisation == "spectral" else 1e-12
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_unrolled_it_is_a_trellis_net_of_so_many_levels():
    cell = trellis(normalisation="weight", dilation=2)
    inputs, past = random(2, 7, D), (random(2, 2, 2 * SIZE), random(2, 2, D))
    bound = cell.bind(inputs, Memory(past))
    reached = UnrolledDepth(5).reach(bound, cell.initial_state(inputs), training=False)
    expected = cell.initial_state(inputs)
    for _ in range(5):
        expected = level_by_loops(cell, expected, inputs, *past)
    torch.testing.assert_close(reached.state, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(cell.readout(reached.state), expected[..., HIDDEN:SIZE], rtol=1e-12, atol=1e-12)


def ours(gates: Tensor) -> Tensor:
    """Rows in the order i, f, g, o of PyTorch's LSTM in the order i, o, g, f of a trellis."""
    i, f, g, o = gates.chunk(4)
    return torch.stack([i, o, g, f])


def trellis_of(lstm: nn.LSTM, dilation: int, scan: bool) -> TrellisCell:
    """The sparse weights with which a trellis is an LSTM: one layer's features after the other's."""
    width, layers = lstm.hidden_size, lstm.num_layers
    cell = TrellisCell(lstm.input_size, width * (layers - 1), width, dilation=dilation, scan=scan).double()
    parameters = dict(lstm.named_parameters())
    earlier, now = (torch.zeros(4, layers * width, layers * width, dtype=torch.float64) for _ in range(2))
    injected = torch.zeros(4, layers * width, lstm.input_size, dtype=torch.float64)
    bias = torch.zeros(4, layers * width, dtype=torch.float64)
    for layer in range(layers):
        rows = slice(layer * width, (layer + 1) * width)
        earlier[:, rows, rows] = ours(parameters[f"weight_hh_l{layer}"])
        bias[:, rows] = ours(parameters[f"bias_ih_l{layer}"] + parameters[f"bias_hh_l{layer}"])
        if layer == 0:
            injected[:, rows] = ours(parameters["weight_ih_l0"])
        else:
            now[:, rows, (layer - 1) * width : layer * width] = ours(parameters[f"weight_ih_l{layer}"])
    with torch.no_grad():
        cell.inject.weight.copy_(torch.cat([torch.zeros_like(injected), injected], dim=-1).flatten(0, 1))
        cell.recur.weight.copy_(torch.cat([earlier, now], dim=-1).flatten(0, 1))
        cell.inject.bias.copy_(bias.flatten())
    return cell


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), dilations, st.integers(1, 8), scans, st.integers(0, 99))
def test_with_sparse_weights_its_fixed_point_is_an_lstm(layers, dilation, length, scan, seed):
    torch.manual_seed(seed)
    lstm = nn.LSTM(D, OUT, layers, batch_first=True).double()
    cell = trellis_of(lstm, dilation, scan)
    inputs, past = random(2, length, D), random(2, dilation, 2 * layers * OUT)
    memory = Memory((past, random(2, dilation, D)))
    # A wave front: each application finishes one more layer of one more token.
    applications = -(-length // dilation) + layers - 1
    found = settle(cell, inputs, memory, applications)
    again = settle(cell, inputs, memory, applications + 1)
    torch.testing.assert_close(found, again, rtol=0, atol=1e-12)
    for offset in range(min(dilation, length)):  # one LSTM per phase of the dilation
        h, c = (part.reshape(2, layers, OUT).transpose(0, 1).contiguous() for part in past[:, offset].chunk(2, -1))
        expected, _ = lstm(inputs[:, offset::dilation], (h, c))
        torch.testing.assert_close(cell.readout(found)[:, offset::dilation], expected, rtol=1e-11, atol=1e-11)


def test_so_many_levels_are_an_lstm_truncated_to_so_many_tokens():
    torch.manual_seed(1)
    lstm = nn.LSTM(D, OUT, batch_first=True).double()
    cell, inputs = trellis_of(lstm, dilation=1, scan=False), random(2, 9, D)
    found = cell.readout(settle(cell, inputs, applications=4))
    for t in range(9):
        expected, _ = lstm(inputs[:, max(0, t - 3) : t + 1])
        torch.testing.assert_close(found[:, t], expected[:, -1], rtol=1e-11, atol=1e-11)


@settings(max_examples=30, deadline=None)
@given(dilations, st.lists(st.integers(1, 5), min_size=2, max_size=4), st.integers(0, 3), scans, st.integers(0, 99))
def test_segments_equal_one_long_segment(dilation, lengths, spare, scan, seed):
    cell = trellis(seed, gain=0.3, dilation=dilation, scan=scan, normalisation="weight")
    inputs = random(2, sum(lengths), D)
    with torch.no_grad():
        whole, memory, parts = settle(cell, inputs), None, []
        for part in inputs.split(lengths, dim=1):
            bound = cell.bind(part, memory)
            parts.append(settle(cell, part, memory))
            memory = Memory.join(memory, bound.remember(parts[-1]), limit=dilation + spare)
    assert memory is not None
    assert len(memory.states) == cell.remembered
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scan", [False, True], ids=["delayed", "scan"])
@pytest.mark.parametrize("normalisation", ["none", "weight"])
def test_gradients_of_a_level_and_of_the_solution(scan, normalisation):
    cell = trellis(gain=0.3, scan=scan, normalisation=normalisation)
    names, parameters = zip(*cell.named_parameters(), strict=True)
    inputs, past = random(1, 3, D), (random(1, 1, 2 * SIZE), random(1, 1, D))

    class Level(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell

        def forward(self, solved: bool, z: Tensor, inputs: Tensor, *past: Tensor) -> Tensor:
            bound = self.cell.bind(inputs, Memory(past))
            if not solved:
                return bound(z)
            gradient = eq.Implicit(eq.GMRES(tol=1e-12, max_evaluations=80, restart=40))
            solver = eq.Picard(tol=1e-12, max_evaluations=200)
            return eq.fixed_point(bound, z, solver, gradient).value

    def run(solved: bool):
        def f(z, inputs, past_z, past_inputs, *values):
            swapped = {f"cell.{name}": value for name, value in zip(names, values, strict=True)}
            return functional_call(Level(), swapped, (solved, z, inputs, past_z, past_inputs))

        return f

    leaves = [x.detach().clone().requires_grad_() for x in (random(1, 3, 2 * SIZE), inputs, *past, *parameters)]
    assert torch.autograd.gradcheck(run(False), leaves, fast_mode=True)
    assert torch.autograd.gradcheck(run(True), leaves, fast_mode=True)


def test_dropout_is_one_map_per_solve_and_spares_the_memory():
    cell = trellis(dropout=0.5, weight_dropout=0.3).train()
    inputs, z = random(4, 6, D), random(4, 6, 2 * SIZE)
    one, two = cell.bind(inputs), cell.bind(inputs)
    assert torch.equal(cell(z, one), cell(z, one))
    assert not torch.equal(cell(z, one), cell(z, two))
    mask = one.dropout_B1H
    assert mask is not None
    assert mask.shape == (4, 1, SIZE)
    assert set(mask.unique().tolist()) == {0.0, 2.0}
    dropped = one.weight_GP == 0
    assert 0.15 < dropped.double().mean() < 0.45
    torch.testing.assert_close(one.weight_GP[~dropped], (cell.recur.weight / 0.7)[~dropped])
    # The features that are dropped do not count, those of the memory always do.
    off = (mask == 0).expand(4, 6, SIZE)
    changed = torch.where(torch.cat([off, torch.zeros_like(off)], -1), 9.0, z)
    torch.testing.assert_close(cell(z, one), cell(changed, one))  # elsewhere in memory other kernels may compute
    with_past = replace(one, hidden_history_BdH=9.0 * off[:, :1])
    assert (cell(z, with_past) != cell(z, one)).any(-1)[:, 0].tolist() == off[:, 0].any(-1).tolist()
    still = cell.eval().bind(inputs)
    assert still.dropout_B1H is None
    assert torch.equal(still.weight_GP, cell.recur.weight)


def test_dropping_from_a_normalised_weight_drops_from_its_direction():
    cell = trellis(normalisation="weight", weight_dropout=0.4).train()
    weight = cell.bind(random(1, 2, D), None).weight_GP
    gain, direction = (cell.recur.get_parameter(f"parametrizations.weight.original{k}") for k in (0, 1))
    kept = torch.where(weight != 0, direction, 0.0)
    expected = gain * kept / torch.linalg.vector_norm(kept, dim=1, keepdim=True)
    assert 0 < (weight == 0).double().mean() < 0.8
    torch.testing.assert_close(weight, expected)


@pytest.mark.parametrize("normalisation", ["none", "weight", "spectral"])
def test_weights_are_read_once_per_solve_and_never_stale(normalisation, monkeypatch):
    cell, other = trellis(1, normalisation=normalisation), trellis(2, normalisation=normalisation)
    inputs, z = random(2, 4, D), random(2, 4, 2 * SIZE)
    before, wanted = cell.bind(inputs)(z), other.bind(inputs)(z)
    cell.load_state_dict(other.state_dict())
    torch.testing.assert_close(cell.bind(inputs)(z), wanted)  # other memory, other kernels
    assert not torch.allclose(before, wanted)
    twin = copy.deepcopy(cell)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1)
    assert not torch.allclose(twin.bind(inputs)(z), wanted)
    torch.testing.assert_close(cell.bind(inputs)(z), wanted)
    if normalisation != "none":
        module = cell.recur.get_submodule("parametrizations.weight.0")
        calls, original = [], module.forward
        monkeypatch.setattr(module, "forward", lambda *tensors: (calls.append(1), original(*tensors))[1])
        bound = cell.bind(inputs)
        for _ in range(5):
            z = bound(z)
        assert len(calls) == 1


@pytest.mark.parametrize(
    ("sizes", "millions", "normalisation"),
    [
        ((400, 1000, 400), 20.16, "weight"),
        ((400, 1000, 400), 20.16, "none"),
        ((512, 1600, 512), 44.3, "weight"),
        ((512, 1600, 512), 44.3, "spectral"),
    ],
)
def test_published_sizes(sizes, millions, normalisation):
    # 8H (E + H) weights make up the published figure; one bias and, with weight norm, two gains per gate come on top.
    with torch.device("meta"):
        cell = TrellisCell(*sizes, normalisation=normalisation)
    embedded, size = sizes[0], sizes[1] + sizes[2]
    extras = 3 if normalisation == "weight" else 1
    found = sum(parameter.numel() for parameter in cell.parameters())
    assert found == 8 * size * (embedded + size) + extras * 4 * size
    assert found == pytest.approx(millions * 1e6, rel=2e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dilation": 0}, "dilation must be at least 1, found 0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, found 1.0"),
        ({"weight_dropout": -0.1}, "weight_dropout must be at least 0 and below 1, found -0.1"),
        ({"normalisation": "batch"}, "normalisation must be one of.*found 'batch'"),
    ],
)
def test_impossible_options_are_errors_that_name_them(options, message):
    with pytest.raises(ValueError, match=message):
        trellis(**options)
