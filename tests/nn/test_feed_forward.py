"""The network of a block: its formula for every activation, with and without dropout, and what it saves."""

from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import equilibria as eq
from equilibria.nn.feed_forward import Activation, FeedForward

PLAIN = {
    "relu": F.relu,
    "gelu": F.gelu,
    "relu_squared": lambda a: F.relu(a) ** 2,
    "swiglu": lambda a: F.silu(a.chunk(2, -1)[0]) * a.chunk(2, -1)[1],
}


def network(activation: Activation) -> tuple[FeedForward, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    mask = torch.empty(3, 1, 32, dtype=torch.float64).bernoulli_(0.7) / 0.7
    return FeedForward(8, 32, activation).double(), x, mask


@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize("masked", [False, True])
def test_values_and_gradients_are_the_formula_s(activation: Activation, masked: bool) -> None:
    ours, x, mask = network(activation)
    used = mask if masked else None

    def plain(x: Tensor) -> Tensor:
        hidden = PLAIN[activation](F.linear(x, ours.expand.weight, ours.expand.bias))
        return F.linear(hidden if used is None else hidden * used, ours.contract.weight, ours.contract.bias)

    found = []
    for f in (ours.bind(used), plain):
        value = f(x)
        found.append((value, *torch.autograd.grad(value.square().sum(), [x, *ours.parameters()])))
    torch.testing.assert_close(*found)
    with torch.no_grad():
        torch.testing.assert_close(ours.bind(used)(x), plain(x))


def test_the_hidden_layer_is_saved_once() -> None:
    """A mask behind the ReLU would have it saved twice: by the ReLU, and by the second layer."""
    ours, x, mask = network("relu")
    hidden, inputs = 3 * 5 * 32 * 8, [x, mask, *ours.parameters()]
    for used in (None, mask):
        assert eq.saved_bytes(lambda used=used: ours.bind(used)(x), inputs) == hidden
