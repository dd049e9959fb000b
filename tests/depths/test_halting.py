"""Adaptive computation time against a plain loop over positions in float64, and what it promises."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import equilibria as eq
from equilibria.cells import StackedCell
from equilibria.depths import Halting
from equilibria.models import LanguageModel
from equilibria.nn import TiedEmbedding
from layers import AveragingLayer
from problems import causal_mixing


def sinusoid(number: int, features: int) -> list[float]:
    """Sines of all frequencies, then their cosines."""
    angles = [number * 10_000.0 ** (-2 * i / features) for i in range(features // 2)]
    return [*(math.sin(angle) for angle in angles), *(math.cos(angle) for angle in angles)]


def halting_by_loops(f, z0, weight, bias, max_steps, threshold):
    """The equations of the module's docstring, position by position; `f` is applied to all of them at once."""
    B, L, D = z0.shape
    h = z0.clone()
    mean, steps, remainder = torch.zeros_like(z0), torch.zeros(B, L), torch.zeros(B, L, dtype=z0.dtype)
    probabilities = [[[] for _ in range(L)] for _ in range(B)]
    for t in range(1, max_steps + 1):
        argument = h.clone()
        for b in range(B):
            for place in range(L):
                for d in range(D):
                    argument[b, place, d] += sinusoid(place, D)[d] + sinusoid(t, D)[d]
        moved = f(argument)
        for b in range(B):
            for place in range(L):
                earlier = probabilities[b][place]
                if steps[b, place]:
                    continue
                h[b, place] = moved[b, place]
                score = sum(float(weight[d]) * float(h[b, place, d]) for d in range(D)) + bias
                p = 1 / (1 + math.exp(-score))
                if sum(earlier) + p >= threshold or t == max_steps:
                    steps[b, place], remainder[b, place] = t, 1 - sum(earlier)
                    mean[b, place] += remainder[b, place] * h[b, place]
                else:
                    mean[b, place] += p * h[b, place]
                    earlier.append(p)
    return mean, steps, remainder


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 99),
    batch=st.integers(1, 3),
    length=st.integers(1, 6),
    half=st.integers(1, 3),
    max_steps=st.integers(1, 7),
    threshold=st.floats(0.3, 1.0),
    bias=st.floats(-2.0, 1.5),
)
@torch.no_grad()
def test_halting_equals_its_equations(seed, batch, length, half, max_steps, threshold, bias):
    f = causal_mixing(seed, 1.5, batch, length, 2 * half)
    depth = Halting(2 * half, max_steps, threshold).double()
    torch.manual_seed(seed)
    depth.halt.weight.normal_(std=1.0)
    depth.halt.bias.fill_(bias)
    z0 = torch.randn_like(f.offset)
    found = depth.ponder(f, z0)
    mean, steps, remainder = halting_by_loops(f, z0, depth.halt.weight[0], bias, max_steps, threshold)
    torch.testing.assert_close(found.steps_BL.double(), steps.double())
    torch.testing.assert_close(found.remainder_BL, remainder, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.state_BLD, mean, rtol=1e-5, atol=1e-6)


def some_halting(max_steps: int = 6, weight: float = 4.0, **options: float) -> Halting:
    """Positions that halt after different numbers of steps."""
    torch.manual_seed(1)
    depth = Halting(6, max_steps, **options)
    torch.nn.init.normal_(depth.halt.weight, std=weight)
    torch.nn.init.constant_(depth.halt.bias, -1.0)
    return depth


def test_positions_halt_on_their_own_and_are_done_no_further_work_for():
    f, calls = causal_mixing(3, 1.5, 2, 9, 6), 0

    def counted(z):
        nonlocal calls
        calls += 1
        return f(z)

    pondered = some_halting(max_steps=50, weight=0.5).double().ponder(counted, torch.zeros_like(f.offset))
    assert len(pondered.steps_BL.unique()) > 1
    assert calls == int(pondered.steps_BL.max()) < 50


def test_the_penalty_is_the_mean_ponder_cost_and_only_in_training():
    f = causal_mixing(3, 1.5, 2, 9, 6)
    depth = some_halting(ponder_weight=0.5).double()
    z0 = torch.zeros_like(f.offset)
    pondered, reached = depth.ponder(f, z0), depth.reach(f, z0, training=True)
    assert reached.penalty is not None
    cost = [
        float(n) + float(r)
        for n, r in zip(pondered.steps_BL.flatten(), pondered.remainder_BL.detach().flatten(), strict=True)
    ]
    assert float(reached.penalty.detach()) == pytest.approx(0.5 * sum(cost) / len(cost))
    reached.penalty.backward()
    slope = depth.halt.bias.grad
    assert slope is not None
    assert float(slope) < 0  # halting sooner costs less
    assert depth.reach(f, z0, training=False).penalty is None
    assert some_halting(ponder_weight=0.0).double().reach(f, z0, training=True).penalty is None


def test_the_gradient_is_that_of_the_weighted_states():
    f, depth = causal_mixing(3, 1.0, 1, 3, 6), some_halting(max_steps=4).double()
    z0 = torch.randn_like(f.offset).requires_grad_()

    def value(start):
        return depth.ponder(f, start).state_BLD

    assert torch.autograd.gradcheck(value, (z0,))


@pytest.mark.parametrize("max_steps", [1, 3, 8])
def test_audits_of_a_universal_transformer_find_exactly_zero(max_steps):
    depth = some_halting(max_steps)
    model = LanguageModel(TiedEmbedding(13, 6), AveragingLayer(6, gain=2.0), depth, memory_length=5)
    tokens = torch.randint(13, (3, 12), generator=torch.Generator().manual_seed(4))
    assert eq.audit_causality(model, tokens).leak == 0.0
    assert eq.audit_batch_invariance(model, tokens).leak == 0.0
    with torch.no_grad():
        steps = depth.ponder(lambda z: model.cell.bind(z)(z), model.embedding(tokens)).steps_BL
    assert max_steps == 1 or len(steps.unique()) > 1


def test_a_model_trains_the_halting_unit_and_remembers():
    layer = AveragingLayer(6, gain=2.0)
    model = LanguageModel(TiedEmbedding(13, 6), StackedCell([layer, layer]), some_halting(), memory_length=5)
    tokens = torch.randint(13, (2, 7), generator=torch.Generator().manual_seed(4))
    first = model(tokens, tokens)
    output = model(tokens, tokens, first.memory)
    (output.loss + output.penalty).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert {"depth.halt.weight", "depth.halt.bias"} <= set(model.state_dict())
    assert output.memory is not None
    assert output.memory.length == 5


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"features": 5}, "features"),
        ({"features": 6, "max_steps": 0}, "max_steps"),
        ({"features": 6, "threshold": 0.0}, "threshold"),
        ({"features": 6, "threshold": 1.5}, "threshold"),
        ({"features": 6, "ponder_weight": -1.0}, "ponder_weight"),
    ],
)
def test_impossible_options_are_errors_that_name_them(options, name):
    with pytest.raises(ValueError, match=name):
        Halting(**options)
