import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import Muon

from equilibria.optimization.muon import CUBIC, ITERATIONS, LINEAR, QUINTIC, GramMuon, orthogonalised


def by_singular_values(matrix_NM: Tensor) -> Tensor:
    """The definition: the polynomial of each singular value, in float64."""
    left, values, right = torch.linalg.svd(matrix_NM.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(ITERATIONS):
        values = LINEAR * values + CUBIC * values**3 + QUINTIC * values**5
    return left @ values.diag() @ right


def of_rank(rows: int, columns: int, rank: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
    return left @ torch.randn(rank, columns, generator=generator, dtype=torch.float64)


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    rank=st.integers(1, 8),
    exponent=st.integers(-3, 6),
    seed=st.integers(0, 99),
)
def test_it_is_the_polynomial_of_the_singular_values(
    rows: int, columns: int, rank: int, exponent: int, seed: int
) -> None:
    """Of any size, and of far fewer directions than rows: what rounding makes of the others stays small."""
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 5e-3), (torch.bfloat16, 5e-3)):
        matrix = (of_rank(rows, columns, rank, seed) * 10.0**exponent).to(dtype)
        found, expected = orthogonalised(matrix), by_singular_values(matrix)
        assert found.dtype == dtype
        assert float((found.double() - expected).norm() / expected.norm()) < tolerance


def test_singular_values_are_near_one() -> None:
    values = torch.linalg.svdvals(orthogonalised(of_rank(30, 120, 30, seed=0)))
    assert 0.68 < float(values.min()) < float(values.max()) < 1.21


@pytest.mark.parametrize("shape", [(1, 1), (3, 5)])
def test_nothing_stays_nothing(shape: tuple[int, int]) -> None:
    assert torch.equal(orthogonalised(torch.zeros(shape)), torch.zeros(shape))


def test_it_does_not_change_what_it_is_given() -> None:
    matrix = of_rank(6, 4, 4, seed=0)
    before = matrix.clone()
    orthogonalised(matrix)
    assert torch.equal(matrix, before)


@pytest.mark.parametrize("shape", [(32, 32), (96, 32), (32, 160)])
def test_its_steps_are_pytorchs_but_for_the_rounding_of_bfloat16(shape: tuple[int, int]) -> None:
    start = of_rank(*shape, min(shape), seed=0).float()
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    one = GramMuon([{"params": [ours]}], lr=0.02, weight_decay=0.3, momentum=0.9)
    other = Muon([theirs], lr=0.02, weight_decay=0.3, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        ours.grad = of_rank(*shape, min(shape), seed=step + 1).float()
        theirs.grad = ours.grad.clone()
        one.step()
        other.step()
    # The same formula, but multiplied and added at once or not, as the kernel does.
    torch.testing.assert_close(one.state[ours]["momentum_buffer"], other.state[theirs]["momentum_buffer"])
    with torch.no_grad():
        assert float((ours - theirs).norm() / (ours - start).norm()) < 1e-2


def test_the_size_of_a_step_is_that_of_adamw() -> None:
    """About 0.2 of the rate in the root of the mean square, however the matrix is shaped."""
    for shape in ((64, 64), (16, 256), (256, 16)):
        matrix = nn.Parameter(torch.zeros(shape))
        matrix.grad = of_rank(*shape, min(shape), seed=0).float()
        GramMuon([{"params": [matrix]}], lr=0.5, weight_decay=0.0).step()
        assert float(matrix.detach().square().mean().sqrt()) == pytest.approx(0.2 * 0.5, rel=0.2)


def test_a_matrix_without_gradient_stays() -> None:
    moved, still = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    moved.grad = torch.eye(2)
    optimizer = GramMuon([{"params": [moved, still]}])
    optimizer.step()
    assert torch.equal(still, torch.ones(2, 2))
    assert not torch.equal(moved, torch.ones(2, 2))
    assert still not in optimizer.state


@pytest.mark.parametrize("shape", [(3,), (), (2, 3, 4)])
def test_what_is_no_matrix_is_refused_at_once(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"two dimensions, found a parameter of shape {re.escape(str(shape))}"):
        GramMuon([{"params": [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(shape))]}])


def test_a_closure_has_gradients_and_its_loss_is_returned() -> None:
    matrix = nn.Parameter(torch.eye(3))
    optimizer = GramMuon([{"params": [matrix]}], lr=1e-2, weight_decay=0.0)

    def closure() -> float:
        optimizer.zero_grad()
        loss = matrix.square().sum()
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == 3.0
    assert math.isclose(float(matrix.detach().diagonal().mean()), 1 - 1e-2 * 0.2 * math.sqrt(3) * 0.7, rel_tol=5e-3)
