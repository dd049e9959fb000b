"""Norms by fewer calls are the norms of the modules, and leave out no hook."""

import pytest
import torch
from torch import nn

from equilibria.nn.normalisation import bound_norm, feature_norm, over_root_mean_square


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_over_the_root_mean_square_is_rms_norm(dtype):
    x = torch.randn(3, 5, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(over_root_mean_square(x), torch.rms_norm(x, (8,)))


def test_next_to_nothing_stays_small_and_has_a_gradient():
    x = torch.zeros(2, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(over_root_mean_square(x).sum(), x)
    assert not over_root_mean_square(x).any()
    assert torch.isfinite(gradient).all()
    assert (over_root_mean_square(torch.full((2, 8), 1e-12)).abs() < 1e-6).all()


def test_gradients_of_both_orders():
    x = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(over_root_mean_square, x)
    assert torch.autograd.gradgradcheck(over_root_mean_square, x)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_a_bound_norm_is_the_module_to_the_last_bit(kind):
    norm, x = feature_norm(kind, 8), torch.randn(2, 8)
    with torch.no_grad():
        norm.weight.normal_()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    assert bound_norm(norm) is not norm
    assert torch.equal(bound_norm(norm)(x), norm(x))


def test_a_module_that_is_more_than_its_class_is_called():
    hooked, replaced, own = nn.LayerNorm(8), nn.LayerNorm(8), nn.BatchNorm1d(8)
    hooked.register_forward_hook(lambda *_: None)
    replaced.forward = lambda input: input
    for norm in (hooked, replaced, own):
        assert bound_norm(norm) is norm
