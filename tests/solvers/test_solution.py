"""What a solution says of itself."""

import copy
import pickle

import pytest
import torch

import equilibria as eq


def test_who_takes_a_solution_for_its_value_is_told_where_that_is() -> None:
    solution = eq.fixed_point(lambda z: 0.5 * z + 1.0, torch.zeros(2, 3))
    with pytest.raises(AttributeError, match=r"has no attribute 'sum'; it is not a tensor: the state is in \.value"):
        solution.sum()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AttributeError, match=r"a Solution has no attribute 'states'$"):
        _ = solution.states  # pyright: ignore[reportAttributeAccessIssue]
    for other in (copy.copy(solution), pickle.loads(pickle.dumps(solution.detached()))):
        assert torch.equal(other.value, solution.value)
