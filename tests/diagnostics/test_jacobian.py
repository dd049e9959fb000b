"""Spectral radius and gradient error on maps whose answers are known."""

from __future__ import annotations

import pytest
import torch

import equilibria as eq
from problems import Affine, affine, causal_attention, rotation


@pytest.mark.parametrize("scale", [0.3, 0.9, 1.4])
def test_spectral_radius_of_a_complex_pair(scale):
    f = rotation(scale)
    assert eq.spectral_radius(f, f.start) == pytest.approx(scale, abs=1e-6)


def test_spectral_radius_of_a_non_normal_map():
    f = affine(radius=0.8, batch=1)
    assert eq.spectral_radius(f, f.start, iterations=24) == pytest.approx(0.8, abs=1e-6)


def chain(gain: float, length: int = 48) -> Affine:
    """Each token half of itself and `gain` times the one before it: all eigenvalues are 1/2."""
    matrix = 0.5 * torch.eye(length, dtype=torch.float64) + gain * torch.diag(torch.ones(length - 1), -1).double()
    return Affine(torch.kron(matrix, torch.eye(2, dtype=torch.float64)), torch.zeros(1, length, 2, dtype=torch.float64))


def test_spectral_radius_of_a_causal_map_is_that_of_its_tokens():
    f = chain(gain=1.0)
    assert eq.spectral_radius(f, f.start) > 0.9  # what the Krylov space shows is the chain
    assert eq.spectral_radius(f, f.start, tokens=range(48)) == pytest.approx(0.5, abs=1e-12)
    nested = {"a": f.start, "b": (f.start + 1,)}
    both = eq.spectral_radius(lambda z: {"a": f(z["a"]), "b": (0.8 * z["b"][0],)}, nested, tokens=[0, -1])
    assert both == pytest.approx(0.8, abs=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_blocks_of_tokens_are_exact(causal):
    f = affine(radius=0.8, causal=causal, batch=1, length=6, features=4)
    blocks = f.matrix.reshape(6, 4, 6, 4)
    expected = [float(torch.linalg.eigvals(blocks[t, :, t]).abs().max()) for t in range(6)]
    found = [eq.spectral_radius(f, f.start, tokens=[t]) for t in range(6)]
    assert found == pytest.approx(expected, rel=1e-9)
    assert eq.spectral_radius(f, f.start, tokens=range(6)) == max(found)
    if causal:
        assert max(found) == pytest.approx(0.8, rel=1e-9)


@pytest.mark.parametrize("batch", [1, 4])
def test_radii_of_samples_and_of_their_tokens_are_exact(batch):
    generator = torch.Generator().manual_seed(batch)
    blocks = torch.randn(batch, 3, 3, 5, 5, dtype=torch.float64, generator=generator).tril(0).transpose(-1, -2)
    blocks = blocks * torch.ones(3, 3).tril().double()[None, :, :, None, None]  # causal: a token sees those before it
    start = torch.randn(batch, 3, 5, dtype=torch.float64, generator=generator)

    def f(z):
        return torch.einsum("btsij,bsj->bti", blocks, z)

    own = torch.stack([torch.linalg.eigvals(blocks[:, t, t]).abs().amax(-1) for t in range(3)])
    torch.testing.assert_close(eq.spectral_radii(f, start, tokens=range(3)), own, rtol=1e-8, atol=0)
    torch.testing.assert_close(eq.spectral_radii(f, start), own.amax(0), rtol=1e-6, atol=0)
    nested = {"a": start, "b": (start + 1,)}
    both = eq.spectral_radii(lambda z: {"a": f(z["a"]), "b": (9.0 * z["b"][0],)}, nested)
    torch.testing.assert_close(both, torch.full((batch,), 9.0, dtype=torch.float64))


def test_radii_of_samples_with_smaller_spaces_are_exact_too():
    rows = torch.tensor([[0.5] * 6, [0.1, 0.2, 0.3, 0.4, 0.6, 0.7], [0.0] * 6], dtype=torch.float64)
    torch.testing.assert_close(eq.spectral_radii(lambda z: rows * z, torch.ones_like(rows)), rows.amax(1))


def test_a_jacobian_that_is_not_finite_has_no_radius():
    factor = torch.tensor([0.5, torch.inf, torch.nan]).view(3, 1, 1)
    z = torch.ones(3, 2, 4)
    radii = eq.spectral_radii(lambda z: factor * z, z, tokens=[0, 1])
    assert radii.isnan().tolist() == [[False, True, True]] * 2
    assert radii[:, 0].tolist() == pytest.approx([0.5, 0.5])
    assert torch.tensor(eq.spectral_radius(lambda z: factor * z, z, tokens=[0, 1])).isnan()


def test_a_part_of_the_state_that_the_map_leaves_constant_has_no_gain():
    constant, weight = torch.zeros(2, 3), torch.full((2, 3), 0.5)

    def f(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"kept": constant, "moving": weight * state["moving"]}

    z = {"kept": torch.zeros(2, 3), "moving": torch.ones(2, 3)}
    assert eq.spectral_radius(f, z) == pytest.approx(0.5)


def test_a_constant_map_has_no_gain_at_all():
    z = torch.ones(2, 3)
    assert eq.spectral_radius(torch.zeros_like, z) == 0.0


def test_gradient_error_ranks_gradients():
    f = causal_attention(gain=0.5)
    inputs = f.injection.clone().requires_grad_()
    closed = type(f)(f.weights, inputs, f.gain)
    start = torch.zeros_like(inputs.detach())
    solver = eq.Anderson(tol=1e-8, max_evaluations=200, scope="prefix")

    def error(gradient):
        return eq.gradient_error(closed, start, solver, gradient, {"inputs": inputs})["inputs"]

    exact, good, poor = (error(g) for g in (eq.Implicit(), eq.Phantom(steps=8), eq.Phantom(steps=1)))
    assert exact.relative_error < 1e-3
    assert exact.relative_error < good.relative_error < poor.relative_error
    assert exact.cosine > 0.9999
    assert poor.relative_norm < 1.0


def test_gradient_error_of_a_map_with_a_context_computed_once():
    # What the map closes over has a graph of its own, through which both gradients go.
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    context = torch.tanh(weight)
    solver, start = eq.Picard(tol=1e-9, max_evaluations=99), torch.zeros(1, 1, dtype=torch.float64)
    for gradient in (eq.Implicit(), eq.Phantom(steps=60), eq.Implicit()):
        errors = eq.gradient_error(lambda z: context * z + 1.0, start, solver, gradient, {"weight": weight})
        assert errors["weight"].relative_error < 1e-4


def test_gradients_that_are_both_zero_agree():
    f, unused = affine(radius=0.5), torch.zeros(3, requires_grad=True)
    closed = Affine(f.matrix, f.offset.clone().requires_grad_())
    for gradient in (eq.Implicit(), eq.JacobianFree()):
        found = eq.gradient_error(closed, f.start, eq.Picard(), gradient, {"unused": unused})["unused"]
        assert (found.cosine, found.relative_norm, found.relative_error) == (1.0, 1.0, 0.0)


def test_a_reference_whose_adjoint_does_not_converge_is_no_reference():
    # Each token is the mean of itself and the one before it: far more steps than the reference has.
    f = chain(gain=0.5, length=700)
    offset = torch.randn(f.offset.shape, dtype=torch.float64).requires_grad_()
    start = torch.linalg.solve(torch.eye(1400).double() - f.matrix, offset.detach().flatten()).reshape(f.offset.shape)
    with pytest.raises(eq.ConvergenceError, match="adjoint of the reference"):
        eq.gradient_error(Affine(f.matrix, offset), start, eq.Picard(), eq.JacobianFree(), {"offset": offset})


@pytest.mark.parametrize(
    "call",
    [
        lambda f: eq.spectral_radius(f, f.start, iterations=0),
        lambda f: eq.spectral_radius(f, f.start, tokens=[]),
        lambda f: eq.spectral_radii(f, f.start, iterations=0),
        lambda f: eq.spectral_radii(f, f.start, tokens=[]),
    ],
)
def test_impossible_options_are_named(call):
    with pytest.raises(ValueError, match="at least 1"):
        call(affine(radius=0.5))


def test_complex_states_are_pairs_of_reals():
    gains = torch.tensor([0.9j, 0.1 + 0.2j], dtype=torch.complex128)
    shift = torch.ones(1, 2, dtype=torch.complex128, requires_grad=True)
    z0 = torch.zeros(1, 2, dtype=torch.complex128)

    def f(z):
        return gains * z + shift

    assert eq.spectral_radius(f, z0) == pytest.approx(0.9)
    assert eq.spectral_radius(f, z0, tokens=[1]) == pytest.approx(0.05**0.5)
    probes = torch.Generator().manual_seed(0)
    penalty = eq.jacobian_penalty(f, z0, probes=4000, generator=probes)
    assert float(penalty.detach()) == pytest.approx((0.81 + 0.05) / 2, rel=0.1)
    errors = eq.gradient_error(f, z0, eq.Anderson(tol=1e-8), eq.Implicit(), {"shift": shift})
    assert errors["shift"].relative_error < 1e-4
    assert (
        eq.gradient_error(f, z0, eq.Anderson(tol=1e-8), eq.JacobianFree(), {"shift": shift})["shift"].relative_error
        > 0.4
    )
