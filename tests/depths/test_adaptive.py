"""Tokens that are done leave: the result stays exact and causal, and less is computed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import equilibria as eq
from equilibria.cells import ContractiveCell, StackedCell, TransformerXLCell, TrellisCell
from equilibria.depths import Adaptive, Equilibrium, ExitAfter, ExitOnChange, ExitOnResidual, UnrolledDepth
from equilibria.models import LanguageModel
from equilibria.nn import TiedEmbedding

V, D = 23, 16


# Converges without training, and the smaller an embedding, the sooner.
Calm = partial(ContractiveCell, D, carry=0.3, injection_norm=False)


def token_carrying() -> ContractiveCell:
    cell = Calm(2, 24, token_carry=1.0)
    assert cell.carry_weight is not None
    nn.init.normal_(cell.carry_weight)
    return cell


CELLS = {
    "rotary": lambda: Calm(2, 24),
    "token carry": token_carrying,
    "grouped, linear": lambda: Calm(4, 24, key_value_heads=2, positions="linear", blocks=2),
    "strict": lambda: Calm(2, 24, strict=True),
    "windowed": lambda: TransformerXLCell(D, 2, 24, affine=True, window=9),
    "stack": lambda: StackedCell([Calm(2, 24), TransformerXLCell(D, 2, 24, affine=True)]),
}


def model(cell, depth, memory_length: int = 0, **frame) -> LanguageModel:
    torch.manual_seed(0)
    built = LanguageModel(TiedEmbedding(V, D), cell(), depth, memory_length, **frame).eval()
    with torch.no_grad():
        for parameter in built.cell.parameters():
            parameter.mul_(0.5)
        # Of different size, so that some converge sooner.
        built.get_parameter("embedding.weight").mul_(torch.logspace(-1.5, 0.5, V).unsqueeze(1))
    return built


def text(batch: int = 2, length: int = 40, seed: int = 1) -> Tensor:
    return torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(seed))


def adaptive(exit=None, **options) -> Adaptive:
    return replace(Adaptive(exit or ExitOnResidual(1e-3), max_evaluations=60, together=2, tile=8), **options)


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS.keys())
@torch.no_grad()
def test_tokens_leave_and_the_solution_stays(cell):
    whole = model(cell, Equilibrium(eval_solver=eq.Picard(tol=1e-6, max_evaluations=200, scope="prefix")))
    apart, tokens = model(cell, adaptive(ExitOnResidual(1e-5), max_evaluations=200)), text()
    output = apart(tokens)
    torch.testing.assert_close(output.logits, whole(tokens).logits, rtol=0, atol=1e-3)
    assert output.solution is not None
    assert output.solution.status is eq.Status.CONVERGED
    assert float(output.solution.residual.max()) <= 1e-5
    counts = output.solution.group_evaluations
    assert counts.shape == tokens.shape
    assert float(counts.float().mean()) < 0.9 * output.solution.evaluations


def test_the_residual_is_that_of_what_is_returned():
    built, tokens = model(CELLS["rotary"], adaptive()), text()
    with torch.no_grad():
        solution = built(tokens).solution
        inputs = built.embedding(tokens) * D**0.5
        z, bound = solution.value, built.cell.bind(inputs)
        f_z = bound(z)
    residual = (f_z - z).norm(dim=-1) / f_z.norm(dim=-1)
    torch.testing.assert_close(solution.residual, residual, rtol=1e-3, atol=1e-6)


def test_only_active_tokens_are_evaluated(monkeypatch):
    sizes = []
    original = ContractiveCell.forward

    def counted(self, z, bound):
        sizes.append(z.shape[0] * z.shape[1])
        return original(self, z, bound)

    monkeypatch.setattr(ContractiveCell, "forward", counted)
    built, tokens = model(CELLS["rotary"], adaptive()), text()
    with torch.no_grad():
        solution = built(tokens).solution
    assert sizes[:2] == [80, 80]
    assert sizes[-1] == 80
    assert set(sizes[2:-1]) == {8, 80} or set(sizes[2:-1]) == {8}
    assert sum(sizes) < solution.evaluations * tokens.numel()


@pytest.mark.parametrize("exit", [ExitOnResidual(1e-3), ExitOnChange(1e-5), ExitAfter(4)], ids=str)
@pytest.mark.parametrize("budget", [3, 5, 40])
def test_audits_find_exactly_zero(exit, budget):
    built = model(CELLS["rotary"], adaptive(exit, max_evaluations=budget))
    assert eq.audit_causality(built, text(2, 37), cuts=[5, 16, 30]).leak == 0.0
    assert eq.audit_batch_invariance(built, text(3, 37)).leak == 0.0


@torch.no_grad()
def test_a_budget_is_one_of_every_token_and_what_it_leaves_open_is_said():
    built, tokens = model(CELLS["rotary"], adaptive(ExitOnResidual(1e-6), max_evaluations=4)), text()
    solution = built(tokens).solution
    assert (
        int(solution.group_evaluations.max()) == 4 + 1 + 1
    )  # one measures what the budget led to, and one is the last of all
    assert solution.status is eq.Status.MAX_EVALUATIONS
    after = built(tokens, depth=adaptive(ExitAfter(4)))
    assert torch.equal(after.solution.group_evaluations, torch.full((2, 40), 4, dtype=torch.int32))


@torch.no_grad()
def test_a_looser_rule_costs_less():
    built, tokens, means = model(CELLS["rotary"], adaptive()), text(), []
    for exit in (ExitOnChange(1e-2), ExitOnChange(1e-4), ExitOnChange(1e-7)):
        means.append(float(built(tokens, depth=adaptive(exit)).solution.group_evaluations.float().mean()))
    assert means == sorted(means)
    assert means[0] < means[-1]


@torch.no_grad()
def test_segments_go_on_from_a_cache():
    built, tokens = model(CELLS["rotary"], adaptive(ExitOnResidual(1e-6)), memory_length=40), text()
    whole, memory, parts = built(tokens, tokens), None, []
    for part in tokens.split(15, dim=1):
        output = built(part, memory=memory)
        memory = output.memory
        parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole.logits, rtol=0, atol=1e-4)
    assert whole.loss is not None
    assert built.generate(tokens[:, :20], 4, seed=0).shape == (2, 24)


def test_a_stricter_rule_has_a_share_of_its_threshold():
    assert adaptive(ExitOnResidual(1e-2)).stricter(0.5).exit == ExitOnResidual(5e-3)
    assert adaptive(ExitOnChange(1e-2, 1e-3)).stricter(0.5).exit == ExitOnChange(2.5e-3, 1e-3)
    for fixed in (adaptive(ExitAfter(3)), UnrolledDepth(2)):
        assert fixed.stricter(0.5) == fixed


def test_what_it_cannot_do_is_named():
    with pytest.raises(ValueError, match="train with Equilibrium"):
        adaptive().reach(torch.tanh, torch.zeros(1, 2, 3), training=False)
    with pytest.raises(ValueError, match="evaluates all tokens of a segment together"):
        model(lambda: TrellisCell(D, 8), adaptive())(text())
    coda = model(CELLS["rotary"], adaptive(ExitOnChange()), coda=ContractiveCell(D, 2, 24, injection=False))
    with pytest.raises(ValueError, match="predictions of a model with a coda"):
        coda(text())
    with pytest.raises(ValueError, match="evaluation mode"):
        model(CELLS["rotary"], adaptive()).train()(text())
    for wrong in ("tile", "together", "max_evaluations"):
        with pytest.raises(ValueError, match=f"{wrong} must be at least 1"):
            adaptive(**{wrong: 0})
    for exit in (lambda: ExitOnResidual(0.0), lambda: ExitOnChange(-1.0), lambda: ExitAfter(0)):
        with pytest.raises(ValueError, match="must be"):
            exit()
