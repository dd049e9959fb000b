"""Saved bytes against what is known to be saved."""

from __future__ import annotations

import torch

import equilibria as eq
from problems import causal_attention


def test_counts_what_a_product_saves():
    x, w = torch.randn(10, 4), torch.randn(4, 3, requires_grad=True)
    assert eq.saved_bytes(lambda: x @ w) == 10 * 4 * 4
    assert eq.saved_bytes(lambda: (x @ w).exp()) == 10 * 4 * 4 + 10 * 3 * 4
    assert eq.saved_bytes(lambda: x @ w, exclude=[x]) == 0


def test_a_tensor_saved_twice_counts_once():
    w = torch.randn(5, requires_grad=True)
    assert eq.saved_bytes(lambda: (w * w, w * w)) == 5 * 4


def phantom_bytes(steps: int, checkpoint: bool) -> int:
    f = causal_attention()
    inputs = f.injection.clone().requires_grad_()
    solver = eq.Picard(tol=0.0, max_evaluations=3)
    gradient = eq.Phantom(steps, checkpoint=checkpoint)
    closed = type(f)(f.weights, inputs, f.gain)
    return eq.saved_bytes(lambda: eq.fixed_point(closed, inputs, solver, gradient, "ignore"), [inputs])


def test_checkpointing_keeps_states_only():
    plain, checkpointed = phantom_bytes(6, checkpoint=False), phantom_bytes(6, checkpoint=True)
    state = causal_attention().injection.untyped_storage().nbytes()
    assert checkpointed <= 7 * state
    assert checkpointed < 0.5 * plain
