"""Every baseline layer against its published equations, written out with plain loops in float64."""

import math
from typing import Literal, TypeVar

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from equilibria.paper.baselines import (
    DARTS_FIRST_ORDER,
    DARTS_SECOND_ORDER,
    DARTSLayer,
    GatedBlock,
    GRULayer,
    Layer,
    LSTMLayer,
    NASLayer,
    QRNNLayer,
    RelationalMemoryLayer,
    TemporalBlock,
    VariationalLSTMLayer,
)
from equilibria.paper.baselines.base import State

AnyLayer = TypeVar("AnyLayer", bound=Layer)


def randomised(layer: AnyLayer) -> AnyLayer:
    torch.manual_seed(2)
    layer = layer.double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return layer


def drawn(layer: Layer, length: int = 5) -> tuple[Tensor, State]:
    """An input of 2 rows and a state that is not where a sequence starts."""
    x = torch.randn(2, length, layer.d_in, dtype=torch.float64)
    return x, tuple(torch.randn_like(part) for part in layer.start(x))


def compare(layer: Layer, x: Tensor, state: State, expected: Tensor) -> None:
    with torch.no_grad():
        found, _ = layer(x, state)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + (-x).exp())


def test_lstm() -> None:
    layer = randomised(LSTMLayer(3, 4))
    weights, (x, state) = dict(layer.network.named_parameters()), drawn(layer)
    expected = torch.empty(2, 5, 4, dtype=torch.float64)
    for b in range(2):
        h, c = (part[b, 0] for part in state)
        for t in range(5):
            gates = (
                weights["weight_ih_l0"] @ x[b, t]
                + weights["bias_ih_l0"]
                + weights["weight_hh_l0"] @ h
                + weights["bias_hh_l0"]
            )
            i, f, g, o = gates.split(4)
            c = sigmoid(f) * c + sigmoid(i) * torch.tanh(g)
            h = sigmoid(o) * torch.tanh(c)
            expected[b, t] = h.detach()
    compare(layer, x, state, expected)


@pytest.mark.parametrize(("inputs", "recurrent"), [(0.5, 0.5), (0.5, 0.0), (0.0, 0.5)])
def test_variational_lstm(inputs: float, recurrent: float) -> None:
    layer = randomised(VariationalLSTMLayer(3, 4, inputs, recurrent))
    weights, (x, state) = dict(layer.network.named_parameters()), drawn(layer)
    torch.testing.assert_close(layer(x, state), LSTMLayer.forward(layer, x, state))  # evaluation
    torch.manual_seed(3)
    found, last = layer.train()(x, state)
    torch.manual_seed(3)
    masks = [
        torch.ones(2, 4, size, dtype=torch.float64)
        if not p
        else torch.empty(2, 4, size, dtype=torch.float64).bernoulli_(1 - p) / (1 - p)
        for size, p in ((3, inputs), (4, recurrent))
    ]
    for b in range(2):
        h, c = (part[b, 0] for part in state)
        for t in range(5):
            gates = []
            for k in range(4):
                rows = slice(4 * k, 4 * k + 4)
                gates.append(
                    weights["weight_ih_l0"][rows] @ (masks[0][b, k] * x[b, t])
                    + weights["weight_hh_l0"][rows] @ (masks[1][b, k] * h)
                    + weights["bias_ih_l0"][rows]
                    + weights["bias_hh_l0"][rows]
                )
            i, f, g, o = gates
            c = sigmoid(f) * c + sigmoid(i) * torch.tanh(g)
            h = sigmoid(o) * torch.tanh(c)
            torch.testing.assert_close(found[b, t], h, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(torch.stack([part[b, 0] for part in last]), torch.stack([h, c]))


def test_gru() -> None:
    layer = randomised(GRULayer(3, 4))
    weights, (x, state) = dict(layer.network.named_parameters()), drawn(layer)
    expected = torch.empty(2, 5, 4, dtype=torch.float64)
    for b in range(2):
        h = state[0][b, 0]
        for t in range(5):
            x_r, x_u, x_n = (weights["weight_ih_l0"] @ x[b, t] + weights["bias_ih_l0"]).split(4)
            h_r, h_u, h_n = (weights["weight_hh_l0"] @ h + weights["bias_hh_l0"]).split(4)
            update, proposal = sigmoid(x_u + h_u), torch.tanh(x_n + sigmoid(x_r + h_r) * h_n)
            h = (1 - update) * proposal + update * h
            expected[b, t] = h.detach()
    compare(layer, x, state, expected)


def convolved(weight: Tensor, bias: Tensor, dilation: int, past: Tensor, x: Tensor) -> Tensor:
    """A causal convolution of one row, tap by tap: past `(M, D)`, x `(L, D)`, weight `(H, D, K)`."""
    whole, taps = torch.cat([past, x]), weight.shape[-1]
    rows = []
    for t in range(len(x)):
        y = bias
        for k in range(taps):
            y = y + weight[:, :, k] @ whole[len(past) + t - (taps - 1 - k) * dilation]
        rows.append(y)
    return torch.stack(rows)


def matched(match: torch.nn.Module, x: Tensor) -> Tensor:
    """The residual of a layer whose widths differ."""
    return x @ match.get_parameter("weight").T + match.get_parameter("bias")


def normed(convolution: torch.nn.Module) -> Tensor:
    """The weight of a weight-normed convolution from its magnitude and direction."""
    weight = convolution.get_submodule("parametrizations.weight")
    g, v = weight.get_parameter("original0"), weight.get_parameter("original1")
    return torch.stack([g[n].squeeze() * v[n] / v[n].square().sum().sqrt() for n in range(len(v))]).detach()


@pytest.mark.parametrize("d_out", [3, 4])
def test_temporal_block(d_out: int) -> None:
    layer = randomised(TemporalBlock(3, d_out, kernel_size=3, dilation=2))
    x, state = drawn(layer)
    rows = []
    for b in range(2):
        y = x[b]
        for convolution, past in ((layer.first, state[0][b]), (layer.second, state[1][b])):
            y = convolved(normed(convolution), convolution.get_parameter("bias"), 2, past, y).clamp(min=0)
        residual = x[b] if d_out == 3 else matched(layer.match, x[b])
        rows.append((y + residual).clamp(min=0).detach())
    compare(layer, x, state, torch.stack(rows))


@pytest.mark.parametrize("convolutions", [((4, 3),), ((1, 2), (3, 2), (1, 5))])
def test_gated_block(convolutions: tuple[tuple[int, int], ...]) -> None:
    layer = randomised(GatedBlock(3, convolutions))
    x, state = drawn(layer)
    rows = []
    for b in range(2):
        y = x[b]
        for convolution, past in zip(layer.convolutions, state, strict=True):
            both = convolved(normed(convolution), convolution.get_parameter("bias"), 1, past[b], y)
            width = both.shape[-1] // 2
            y = both[:, :width] * sigmoid(both[:, width:])
        residual = x[b] if layer.d_out == 3 else matched(layer.match, x[b])
        rows.append(((y + residual) / math.sqrt(2)).detach())
    compare(layer, x, state, torch.stack(rows))


@pytest.mark.parametrize("window", [1, 2, 3])
def test_qrnn(window: int) -> None:
    layer = randomised(QRNNLayer(3, 4, window))
    x, state = drawn(layer, length=7)
    expected = torch.empty(2, 7, 4, dtype=torch.float64)
    for b in range(2):
        c = state[1][b, 0]
        gates = convolved(layer.convolution.weight, layer.convolution.get_parameter("bias"), 1, state[0][b], x[b])
        for t in range(7):
            z, f, o = gates[t].split(4)
            c = sigmoid(f) * c + (1 - sigmoid(f)) * torch.tanh(z)
            expected[b, t] = (sigmoid(o) * c).detach()
    compare(layer, x, state, expected)


@pytest.mark.parametrize(("gates", "mlp_layers"), [("unit", 2), ("slot", 2), ("slot", 1), ("unit", 3)])
def test_relational_memory(gates: Literal["unit", "slot"], mlp_layers: int) -> None:
    layer = randomised(RelationalMemoryLayer(3, 4, 3, heads=2, head_size=2, gates=gates, mlp_layers=mlp_layers))
    x, state = drawn(layer)
    width, size = 4, 2
    expected = torch.empty(2, 5, 4, dtype=torch.float64)

    def norm(row: Tensor, scale: torch.nn.LayerNorm) -> Tensor:
        centred = row - row.mean()
        return centred / (centred.square().mean() + 1e-5).sqrt() * scale.weight + scale.bias

    for b in range(2):
        memory = state[0][b]
        for t in range(5):
            e = layer.inject.weight @ x[b, t] + layer.inject.bias
            seen = [*memory, e]
            rows = []
            for slot in memory:
                mixed = []
                for h in range(2):
                    part = slice(h * size, (h + 1) * size)
                    q = (layer.queries.weight @ slot)[part]
                    keys = [(layer.keys_values.weight[:width] @ row)[part] for row in seen]
                    values = [(layer.keys_values.weight[width:] @ row)[part] for row in seen]
                    shares = torch.stack([q @ k / math.sqrt(size) for k in keys]).exp()
                    mixed.append(torch.stack(values).T @ (shares / shares.sum()))
                n = norm(slot + torch.cat(mixed), layer.attention_norm)
                fed = n
                for number, linear in enumerate(layer.mlp):
                    fed = linear.get_parameter("weight") @ (fed.clamp(min=0) if number else fed)
                    fed = fed + linear.get_parameter("bias")
                n = norm(n + fed, layer.feed_forward_norm)
                from_input = layer.input_gates.weight @ e + layer.input_gates.bias
                enter, keep = sigmoid(from_input + layer.memory_gates.weight @ torch.tanh(slot)).chunk(2)
                rows.append(keep * slot + enter * torch.tanh(n))
            memory = torch.stack(rows)
            expected[b, t] = (layer.output.weight @ memory.flatten() + layer.output.bias).detach()
    compare(layer, x, state, expected)


def test_the_relational_memory_starts_as_the_identity_that_tends_to_stay() -> None:
    layer = RelationalMemoryLayer(3, 4, slots=2, heads=1, head_size=4)
    (start,) = layer.start(torch.zeros(5, 1, 3))
    assert torch.equal(start, torch.eye(2, 4).expand(5, 2, 4))
    assert layer.input_gates.bias.tolist() == [0.0] * 4 + [1.0] * 4


@pytest.mark.parametrize("nodes", [DARTS_FIRST_ORDER, DARTS_SECOND_ORDER])
def test_darts(nodes: tuple) -> None:
    layer = randomised(DARTSLayer(3, 4, nodes))
    functions = {"tanh": torch.tanh, "relu": F.relu, "sigmoid": sigmoid, "identity": lambda value: value}
    x, state = drawn(layer)
    expected = torch.empty(2, 5, 4, dtype=torch.float64)
    for b in range(2):
        h = state[0][b, 0]
        for t in range(5):
            both = torch.cat([layer.inject.weight, layer.recur.weight], dim=1)
            gate, value = (both @ torch.cat([x[b, t], h])).split(4)
            s = [h + sigmoid(gate) * (torch.tanh(value) - h)]
            for node, step in zip(nodes, layer.steps, strict=True):
                before = s[node.predecessor]
                gate, value = (step.weight @ before).split(4)
                s.append(before + sigmoid(gate) * (functions[node.activation](value) - before))
            h = torch.stack(s[1:]).sum(0) / len(nodes)
            expected[b, t] = h.detach()
    compare(layer, x, state, expected)


def test_darts_under_autocast() -> None:
    layer, x_BLD = DARTSLayer(3, 4), torch.randn(2, 5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        h_BLH, (last_B1H,) = layer(x_BLD, layer.start(x_BLD))
    assert h_BLH.dtype == last_B1H.dtype == torch.float32
    torch.testing.assert_close(h_BLH, layer(x_BLD, layer.start(x_BLD))[0], rtol=0.02, atol=0.002)


def test_the_graphs_are_the_published_ones() -> None:
    first, second = (
        " ".join(f"{node.activation}{node.predecessor}" for node in nodes)
        for nodes in (DARTS_FIRST_ORDER, DARTS_SECOND_ORDER)
    )
    assert first == "relu0 relu1 tanh2 relu3 relu4 identity1 relu5 relu1"
    assert second == "sigmoid0 relu1 relu1 identity1 tanh2 sigmoid5 tanh3 relu5"


def test_nas() -> None:
    layer = randomised(NASLayer(3, 4))
    x, state = drawn(layer)
    expected = torch.empty(2, 5, 4, dtype=torch.float64)
    tanh, relu = torch.tanh, F.relu
    for b in range(2):
        h, c = (part[b, 0] for part in state)
        for t in range(5):
            u, v = (layer.inject.weight @ x[b, t]).split(4), (layer.recur.weight @ h).split(4)
            first = [
                sigmoid(u[0] + v[0]),
                relu(u[1] + v[1]),
                sigmoid(u[2] + v[2]),
                relu(u[3] * v[3]),
                tanh(u[4] + v[4]),
                sigmoid(u[5] + v[5]),
                tanh(u[6] + v[6]),
                sigmoid(u[7] + v[7]),
            ]
            second = [
                tanh(first[0] * first[1]),
                tanh(first[2] + first[3]),
                tanh(first[4] * first[5]),
                sigmoid(first[6] + first[7]),
            ]
            c = tanh(second[0] + c) * second[1]
            h = tanh(c * tanh(second[2] + second[3]))
            expected[b, t] = h.detach()
    compare(layer, x, state, expected)
