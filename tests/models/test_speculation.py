"""Tokens that are guessed ahead: the text is the one that is written without, and so is what the cache keeps."""

from __future__ import annotations

import re
import warnings
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import equilibria as eq
from cached_models import CELLS, D, V, model, text
from equilibria.depths import Equilibrium, UnrolledDepth
from equilibria.errors import UserError
from equilibria.models import Decoder
from equilibria.models.sampling import Sampler, Sampling
from equilibria.models.speculation import Speculation, _Window
from equilibria.nn import UntiedEmbedding
from equilibria.paper.baselines import LSTMLayer, SequenceModel

CONTRACTING = [name for name in CELLS if name not in ("post norm", "windowed")]
"""Those that plain iteration solves."""


def plain(tol: float = 1e-8, most: int = 200, **options: object) -> Equilibrium:
    return Equilibrium(eval_solver=eq.Picard(tol=tol, max_evaluations=most, scope="prefix", **options))  # pyright: ignore


def doubled(cell: str, framed: bool = False) -> eq.LanguageModel:
    """In float64, so that hardly any two tokens are as likely as each other within the tolerance; and with weights that
    depend on the text."""
    built = model(CELLS[cell], plain(), framed).double()
    with torch.no_grad():
        for name, parameter in built.cell.named_parameters():
            if "norm" not in name:
                parameter.mul_(0.5)
        built.embedding.weight.mul_(3.0)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue, reportCallIssue]
    return built


@pytest.mark.parametrize("framed", [False, True], ids=["alone", "framed"])
@pytest.mark.parametrize("cell", CONTRACTING)
def test_the_text_is_the_one_without_guesses(cell, framed):
    built, prompt = doubled(cell, framed), text(1, 5)
    for temperature in (0.0, 0.9):
        usual = built.generate(prompt, 12, temperature=temperature, seed=3)
        assert len(set(usual[0].tolist())) > 3
        for guesses in (1, 6):
            found = built.generate(prompt, 12, temperature=temperature, seed=3, guesses=guesses)
            assert found.tolist() == usual.tolist()


@pytest.mark.parametrize(
    "solver",
    [
        eq.Anderson(tol=1e-8, max_evaluations=200, scope="prefix", history=1),
        eq.Anderson(tol=1e-8, max_evaluations=200, scope="token", history=3),
        eq.Picard(tol=1e-8, max_evaluations=400, scope="token", damping=0.6),
    ],
    ids=["secant", "anderson", "damped"],
)
def test_the_text_is_the_one_without_guesses_by_other_methods(solver):
    built, prompt, depth = doubled("rotary", framed=True), text(1, 5), Equilibrium(eval_solver=solver)
    for temperature in (0.0, 0.9):
        usual = built.generate(prompt, 20, temperature=temperature, seed=3, depth=depth)
        assert usual.equal(built.generate(prompt, 20, temperature=temperature, seed=3))
        for guesses in (1, 6):
            found = built.generate(prompt, 20, temperature=temperature, seed=3, depth=depth, guesses=guesses)
            assert found.tolist() == usual.tolist()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 50),
    guesses=st.integers(1, 12),
    window=st.integers(3, 40),
    sampling=st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 0.5, 1.5]),
        top_p=st.sampled_from([None, 0.7]),
        repetition_penalty=st.sampled_from([1.0, 1.3]),
        frequency_penalty=st.sampled_from([0.0, 0.4]),
    ),
)
def test_whatever_is_drawn_and_however_far_a_token_sees(seed, guesses, window, sampling):
    built, prompt = doubled("rotary", framed=True), text(1, 4, seed)
    usual = built.generate(prompt, 16, seed=seed, window=window, sampling=sampling)
    assert built.generate(prompt, 16, seed=seed, window=window, sampling=sampling, guesses=guesses).equal(usual)


@pytest.mark.parametrize("cell", CONTRACTING)
def test_the_cache_keeps_what_a_reading_of_the_text_leaves_there(cell):
    built, prompt = doubled(cell, framed=True), text(1, 5)
    sampler = Sampler(Sampling(0.0), None, prompt[0].tolist(), V)
    decoder = Decoder(built, guesser=built.guesser(6))
    written = [int(decoder.join(prompt, [sampler]).token_B)]
    written += [int(decoder.step().token_B) for _ in range(20)]
    (group,) = decoder._groups
    read = torch.cat([prompt, torch.tensor([written[:-1]])], dim=1)
    with torch.no_grad():
        whole = built.prefill(read)
    assert group.where.cache.tokens == read.shape[1]  # pyright: ignore[reportAttributeAccessIssue]
    for found, expected in zip(group.where.cache.contents, whole.cache.contents, strict=True):  # pyright: ignore
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(group.where.logits_BV, whole.logits_BV, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("wrong", [0.1, 1.0])
def test_whatever_is_guessed_the_text_is_the_same(wrong, monkeypatch):
    built, prompt, generator = doubled("rotary", framed=True), text(1, 5), torch.Generator().manual_seed(0)
    usual, right = built.generate(prompt, 30, temperature=0.0), Sampler.guesses

    def guesses(self: Sampler, logits_LV: Tensor) -> list[int]:
        kept = torch.rand(len(logits_LV), generator=generator) >= wrong
        others = torch.randint(V, (len(logits_LV),), generator=generator)
        return torch.where(kept, torch.tensor(right(self, logits_LV)), others).tolist()

    monkeypatch.setattr(Sampler, "guesses", guesses)
    assert built.generate(prompt, 30, temperature=0.0, guesses=8).equal(usual)


def test_a_wrong_guess_that_is_kept_until_its_state_counts_is_forgotten_with_it(monkeypatch):
    built, prompt = doubled("rotary", framed=True), text(1, 5)
    usual, right, renewed = built.generate(prompt, 20, temperature=0.0), Speculation._guess, []

    def guess(self: Speculation, window: _Window, guesses: list[int]) -> None:
        if window.final > 1:
            renewed.append(guesses[0] != window.tokens[1])
        else:
            there = window.tokens[1:]
            guesses = [*there, *((token + 1) % V for token in guesses[len(there) :])]
        right(self, window, guesses)

    monkeypatch.setattr(Speculation, "_guess", guess)
    assert built.generate(prompt, 20, temperature=0.0, guesses=8).equal(usual)
    assert any(renewed)


def test_logits_that_are_not_finite_are_guessed_within_the_vocabulary():
    logits = torch.full((3, V), torch.nan)
    for temperature in (0.0, 0.7):
        sampler = Sampler(Sampling(temperature), 1, [0], V)
        assert all(0 <= token < V for token in sampler.guesses(logits))


def test_a_token_has_its_whole_budget_after_those_before_it():
    """However long it has been guessed for: a budget that is enough without guesses is enough with them."""
    built, prompt = doubled("rotary"), text(1, 5)
    spent = [int(one.solved.evaluations_B) for one in islice(built.stream(prompt, Sampling(0.0)), 1, 20) if one.solved]
    depth = plain(most=max(spent) + 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built.generate(prompt, 20, temperature=0.0, depth=depth, guesses=8)


def test_figures_are_those_of_the_states_that_count():
    built, prompt = doubled("rotary"), text(1, 5)
    for drawn in islice(built.stream(prompt, Sampling(0.0), guesses=5), 1, 12):
        assert drawn.solved is not None
        assert drawn.solved.converged_B.tolist() == [True]
        assert 0 < drawn.solved.residual_B <= 0.5e-8
        assert 2 < drawn.solved.evaluations_B < 100
    short = plain(1e-12, most=3)
    drawn = next(islice(built.stream(prompt, Sampling(0.0), depth=short, guesses=5), 2, None))
    assert drawn.solved is not None
    assert drawn.solved.converged_B.tolist() == [False]
    assert drawn.solved.residual_B > 1e-12
    with pytest.warns(eq.ConvergenceWarning, match="of 9 tokens were drawn after solves that did not converge"):
        built.generate(prompt, 9, temperature=0.0, depth=short, guesses=5)


def test_fewer_evaluations_are_made_than_without():
    built, prompt = doubled("rotary"), text(1, 5)
    calls = []
    built.cell.register_forward_pre_hook(lambda *_: calls.append(1))
    counts = []
    for guesses in (0, 8):
        calls.clear()
        built.generate(prompt, 40, temperature=0.0, guesses=guesses)
        counts.append(len(calls))
    assert counts[1] < 0.7 * counts[0]


def test_texts_that_are_decoded_together_take_the_usual_way():
    built, prompts = model(CELLS["rotary"], plain(1e-4)), text(3, 5)
    usual, guessed = (built.generate(prompts, 10, seed=1, guesses=guesses) for guesses in (0, 5))
    assert usual.equal(guessed)


def test_a_text_that_joins_one_that_is_guessed_ahead_changes_neither():
    built = doubled("rotary", framed=True)
    prompts = [text(1, 5, 1), text(1, 7, 2)]
    alone = [built.generate(prompt, 16, temperature=0.0)[0, prompt.shape[1] :].tolist() for prompt in prompts]
    decoder, samplers = Decoder(built, guesser=built.guesser(6)), []
    written: dict[Sampler, list[int]] = {}

    def take(drawn: object) -> None:
        for sampler, token in zip(drawn.samplers, drawn.token_B.tolist(), strict=True):  # pyright: ignore
            written.setdefault(sampler, []).append(token)

    for prompt in prompts:
        samplers.append(Sampler(Sampling(0.0), None, prompt[0].tolist(), V))
        take(decoder.join(prompt, [samplers[-1]]))
        for _ in range(4):
            take(decoder.step())
    decoder.leave(samplers[0])
    for _ in range(6):
        take(decoder.step())
    for sampler, expected in zip(samplers, alone, strict=True):
        assert written[sampler] == expected[: len(written[sampler])]


def test_a_state_that_is_not_finite_ends_the_text_as_without_guesses():
    built, prompt = model(CELLS["rotary"], plain(1e-4)), text(1, 5)
    drawn = built.stream(prompt, Sampling(0.0), guesses=4)
    next(drawn)
    with torch.no_grad():
        built.cell.norm.weight.fill_(torch.nan)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    with pytest.raises(ValueError, match="not finite"):
        for _ in islice(drawn, 12):
            pass


def test_a_map_that_grows_is_not_called_converged():
    class Grows(eq.Cell):
        d_model = D

        def evaluate(self, z_BLD: Tensor, inputs_BLD: Tensor, past: object, /) -> Tensor:
            return z_BLD + inputs_BLD

        @property
        def cached(self) -> tuple[tuple[int, ...], ...]:
            return ((1,),)

    built = model(Grows, plain(0.05, most=60))
    _, drawn = islice(built.stream(text(1, 3), Sampling(0.0), guesses=3), 2)
    assert drawn.solved is not None
    assert not drawn.solved.converged_B.any()


def test_where_nothing_can_be_guessed_the_error_says_why():
    prompt, built = text(1, 4), model(CELLS["rotary"], plain())
    with pytest.raises(ValueError, match=re.escape("guesses must be at least 0, found -1")):
        built.generate(prompt, 2, guesses=-1)
    drafted = plain(draft=eq.Draft())
    for depth in (UnrolledDepth(3), Equilibrium(eval_solver=eq.Broyden(scope="prefix")), drafted):
        with pytest.raises(UserError, match="whose eval_solver is Picard or Anderson alone"):
            built.generate(prompt, 2, depth=depth, guesses=3)
    recurrent = SequenceModel(UntiedEmbedding(V, D), [LSTMLayer(D, D)]).eval()
    with pytest.raises(UserError, match="a SequenceModel does not solve, so it guesses no tokens ahead"):
        recurrent.generate(prompt, 2, guesses=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built.generate(prompt, 2, depth=plain(1e-4), guesses=3)
