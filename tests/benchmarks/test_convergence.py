"""What a benchmark follows is the solve of the model itself."""

import pytest
import torch

import equilibria as eq
from benchmarks.convergence import trace
from equilibria.cells import ContractiveCell
from equilibria.depths import Equilibrium
from equilibria.models import LanguageModel
from equilibria.nn import TiedEmbedding


@pytest.mark.parametrize("with_prelude", [False, True])
def test_a_trace_is_that_of_the_models_own_solve(with_prelude: bool) -> None:
    torch.manual_seed(0)
    prelude = ContractiveCell(16, 2, 24, injection=False) if with_prelude else None
    model = LanguageModel(TiedEmbedding(31, 16), ContractiveCell(16, 2, 24), Equilibrium(), prelude=prelude).eval()
    tokens = torch.arange(16).view(2, 8)
    solver = eq.Picard(tol=0.0, max_evaluations=5, scope="token", trace_groups=True)
    with torch.no_grad():
        solution = model(tokens, depth=Equilibrium(eval_solver=solver)).solution
    assert solution is not None
    assert solution.group_trace is not None
    expected = solution.group_trace.mean(dim=(1, 2)).tolist()
    assert trace(model, tokens, solver)[: len(expected)] == pytest.approx(expected, rel=1e-5)
