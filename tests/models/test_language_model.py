"""The language model: promises end to end, loss, memory, generation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import equilibria as eq
from equilibria.cells import Cache, ContractiveCell, TransformerXLCell
from equilibria.depths import Equilibrium, UnrolledDepth
from equilibria.models import LanguageModel
from equilibria.nn import SelfAttention, TiedEmbedding

CELLS = {
    "contractive": lambda: ContractiveCell(d_model=16, heads=2, inner=24, carry=0.3),
    "two blocks": lambda: ContractiveCell(d_model=16, heads=2, inner=24, blocks=2, carry=0.3),
    "post norm": lambda: TransformerXLCell(d_model=16, heads=2, inner=24),
}


def model(cell=CELLS["contractive"], depth=None, memory_length=0) -> LanguageModel:
    torch.manual_seed(0)
    built = cell()
    return LanguageModel(TiedEmbedding(29, built.d_model), built, depth, memory_length)


def some_tokens(batch: int = 3, length: int = 20) -> torch.Tensor:
    return torch.randint(0, 29, (batch, length), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS.keys())
@pytest.mark.parametrize("method", [eq.Picard, eq.Anderson, eq.Broyden])
@pytest.mark.parametrize("budget", [1, 3, 6, 12])
def test_audits_find_exactly_zero(cell, method, budget):
    audited = model(cell, Equilibrium(eval_solver=method(tol=1e-3, max_evaluations=budget, scope="prefix")))
    assert eq.audit_causality(audited, some_tokens()).leak == 0.0
    assert eq.audit_batch_invariance(audited, some_tokens()).leak == 0.0


def test_an_audit_without_a_cut_is_an_error():
    with pytest.raises(ValueError, match="cuts must name at least 1 position"):
        eq.audit_causality(model(), some_tokens(), cuts=[])


def test_the_audit_sees_a_leak():
    with pytest.warns(UserWarning, match='depth.eval_solver.scope = "sample": when a token stops'):
        leaking = model(depth=Equilibrium(eval_solver=eq.Anderson(tol=1e-3, max_evaluations=6, scope="sample")))
    audit = eq.audit_causality(leaking, some_tokens())
    assert audit.leak > 0.0
    assert not audit.holds


@pytest.mark.parametrize("memory_length", [0, 7])
def test_memory_is_projected_once_per_solve(monkeypatch, memory_length):
    calls = 0
    original = SelfAttention._projected

    def counted(self, *arguments):
        nonlocal calls
        calls += 1
        return original(self, *arguments)

    monkeypatch.setattr(SelfAttention, "_projected", counted)
    for budget in (2, 9):
        calls = 0
        deep = model(depth=Equilibrium(solver=eq.Picard(tol=0.0, max_evaluations=budget)), memory_length=memory_length)
        first = deep(some_tokens())
        deep(some_tokens(), memory=first.memory)
        assert calls == (1 if memory_length else 0)


def test_loss_is_the_mean_over_targets_that_exist():
    small, tokens = model(), some_tokens()
    targets = some_tokens().roll(-1, dims=1)
    targets[:, 15:] = -100
    output = small(tokens, targets)
    log_probabilities = output.logits.log_softmax(-1)[:, :15]
    picked = log_probabilities.gather(-1, targets[:, :15].unsqueeze(-1))
    torch.testing.assert_close(output.loss, -picked.mean())
    assert abs(output.loss.item() - math.log(29)) < 1.0


def test_segments_with_memory_equal_one_long_segment_at_the_equilibrium():
    tight = Equilibrium(eval_solver=eq.Anderson(tol=1e-6, max_evaluations=200, scope="prefix"))
    whole = model(depth=tight, memory_length=40).eval()
    tokens = some_tokens()
    with torch.no_grad():
        expected = whole(tokens).logits.log_softmax(-1)
        memory, parts = None, []
        for part in tokens.split(7, dim=1):
            output = whole(part, memory=memory)
            memory = output.memory
            parts.append(output.logits.log_softmax(-1))
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-3, atol=1e-4)


TIGHT = Equilibrium(eval_solver=eq.Picard(tol=1e-6, max_evaluations=200, scope="prefix"))


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS.keys())
@pytest.mark.parametrize("past", ["nothing", "memory", "cache"])
def test_a_map_and_its_solution_are_those_of_the_forward_pass(cell, past):
    solving, tokens = model(cell, TIGHT, memory_length=12).eval(), some_tokens()
    before, after = tokens[:, :12], tokens[:, 12:]
    with torch.no_grad():
        memory = {"nothing": None, "memory": solving(before).memory, "cache": solving.prefill(before).cache}[past]
        bound, solution = solving.solve(after, memory)
    assert solution.status is eq.Status.CONVERGED
    with torch.no_grad():
        torch.testing.assert_close(bound(solution.value), solution.value, rtol=0, atol=1e-4)
        read = solving.decode(after, memory).hidden_BLD if past == "cache" else solving(after, memory=memory).hidden
    torch.testing.assert_close(solution.value, read, rtol=0, atol=1e-4)
    z = solution.value.clone().requires_grad_()
    assert float(torch.autograd.grad(bound(z).square().sum(), z)[0].norm()) > 0  # products with the Jacobian are there


def test_a_cache_is_as_it_was_after_a_solve():
    solving, tokens = model(depth=TIGHT).eval(), some_tokens()
    cache = solving.prefill(tokens[:, :12]).cache
    assert isinstance(cache, Cache)
    contents, length = [kept.clone() for kept in cache.contents], cache.tokens
    bound, solution = solving.solve(tokens[:, 12:], cache)
    eq.spectral_radii(bound, solution.value)
    assert cache.tokens == length
    assert all(torch.equal(kept, was) for kept, was in zip(cache.contents, contents, strict=True))
    whole = solving.decode(tokens[:, 12:], cache)
    torch.testing.assert_close(whole.hidden_BLD, solution.value, rtol=0, atol=1e-4)


def test_in_training_mode_the_training_solve_is_told():
    solving = model(depth=Equilibrium(solver=eq.Picard(tol=1e-9, max_evaluations=3, scope="prefix"))).train()
    _, solution = solving.solve(some_tokens())
    assert solution.evaluations == 3 + 1
    assert not solution.value.requires_grad


def test_a_depth_that_does_not_solve_has_no_solution_to_tell():
    with pytest.raises(ValueError, match="no solution at a depth of kind UnrolledDepth"):
        model(depth=UnrolledDepth(3)).solve(some_tokens())
    solving = model(memory_length=4).eval()
    memory = solving(some_tokens(batch=2)).memory
    with pytest.raises(ValueError, match="memory has batch size 2, the tokens have 3"):
        solving.solve(some_tokens(), memory)


def test_unrolled_depth_is_backpropagation_through_a_tied_stack():
    twin, tokens = model(depth=UnrolledDepth(5)), some_tokens()
    output = twin(tokens, tokens)
    assert output.solution is None
    inputs = F.embedding(tokens, twin.get_parameter("embedding.weight")) * 4.0
    bound = twin.cell.bind(inputs)
    z = torch.zeros_like(inputs)
    for _ in range(5):
        z = bound(z)
    torch.testing.assert_close(output.hidden, z)
    again = model(depth=UnrolledDepth(5, checkpoint=True))
    output.loss.backward()
    again(tokens, tokens).loss.backward()
    for one, two in zip(twin.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


@pytest.mark.parametrize("gradient", [eq.Phantom(steps=2), eq.Implicit()])
def test_every_parameter_gets_a_gradient(gradient):
    trained, tokens = model(depth=Equilibrium(gradient=gradient)), some_tokens()
    trained(tokens, tokens).loss.backward()
    for name, parameter in trained.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


def test_the_implicit_gradient_of_the_model_is_that_of_unrolling():
    tokens, grads = some_tokens(), []
    tight = eq.Anderson(tol=1e-9, max_evaluations=300, scope="prefix")
    ways = [eq.Implicit(eq.GMRES(tol=1e-9, max_evaluations=200, restart=60)), eq.Unrolled(steps=400)]
    for gradient in ways:
        trained = model(depth=Equilibrium(solver=tight, gradient=gradient)).double()
        output = trained(tokens, tokens)
        assert float(output.solution.residual.max()) < 1e-7
        output.loss.backward()
        grads.append([parameter.grad for parameter in trained.parameters()])
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_generation_is_repeatable_and_keeps_the_prompt():
    small, prompt = model().train(), some_tokens(2, 5)
    seen: list[torch.Tensor] = []
    one = small.generate(prompt, 6, temperature=0.8, top_k=10, top_p=0.9, seed=1, on_token=seen.append)
    two = small.generate(prompt, 6, temperature=0.8, top_k=10, top_p=0.9, seed=1)
    assert torch.equal(one, two)
    assert torch.equal(one[:, :5], prompt)
    assert torch.equal(torch.stack(seen, 1), one[:, 5:])
    assert small.training
    assert not torch.equal(one, small.generate(prompt, 6, temperature=0.8, seed=2))


def test_greedy_generation_takes_the_most_likely_token():
    small, prompt = model(), some_tokens(1, 5)
    out = small.generate(prompt, 3, temperature=0.0)
    small.eval()
    for t in range(5, 8):
        assert out[0, t] == small(out[:, :t]).logits[0, -1].argmax()


@pytest.mark.parametrize(("bad", "found"), [(29, "29"), (-1, "-1")])
def test_a_token_outside_the_vocabulary_is_named(bad, found):
    with pytest.raises(ValueError, match=f"token id {found} is outside the vocabulary of 29"):
        model()(torch.full((1, 2), bad))


@pytest.mark.parametrize("option", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": -0.1}, {"top_p": 1.5}])
def test_impossible_sampling_options_are_named(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        model().generate(some_tokens(1, 2), 1, **option)


def test_a_model_is_a_module_with_a_tied_softmax():
    small = model()
    assert isinstance(small, nn.Module)
    names = {name for name, _ in small.named_parameters()}
    assert "embedding.weight" in names
    assert not any("head" in name or "softmax" in name for name in names)


@pytest.mark.parametrize(
    ("tokens", "padding", "message"),
    [
        (torch.tensor([1, 2, 3]), None, r"tokens must be \(batch, length >= 1\), found shape \(3,\)"),
        (torch.zeros(1, 0, dtype=torch.long), None, "length >= 1"),
        (torch.ones(2, 2, dtype=torch.long), torch.tensor([1]), "padding must be 2 numbers from 0 to 1, one for each"),
    ],
)
def test_prompts_of_another_shape_are_said(tokens, padding, message) -> None:
    with pytest.raises(ValueError, match=message):
        model().eval().generate(tokens, 2, padding_B=padding)
    if padding is None:
        with pytest.raises(ValueError, match="tokens must be"):
            model()(tokens)


@pytest.mark.parametrize("tokens", ["hello", [1, 2, 3], None])
def test_text_and_lists_are_no_tokens(tokens) -> None:
    for call in (model().eval(), lambda given: model().eval().generate(given, 2)):
        with pytest.raises(TypeError, match=r"tokens must be a tensor of ids, .*found (str|list|None)"):
            call(tokens)


def test_a_depth_that_is_none_is_said() -> None:
    with pytest.raises(TypeError, match="depth must be an object such as Equilibrium"):
        model()(torch.ones(1, 2, dtype=torch.long), depth=5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="Implicit is a gradient, not a solver"):
        Equilibrium(solver=eq.Implicit())  # pyright: ignore[reportArgumentType]


def test_a_dropout_beyond_a_probability_is_said() -> None:
    with pytest.raises(ValueError, match="dropout"):
        LanguageModel(TiedEmbedding(29, 16), CELLS["contractive"](), dropout=2.0)
