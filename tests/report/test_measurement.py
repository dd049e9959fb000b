"""The figures a report measures are those of the solver and the evaluation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equilibria.cells import ContractiveCell
from equilibria.data import EncodedSplit, byte_tokenizer, word_tokenizer
from equilibria.depths import Equilibrium
from equilibria.inference.evaluation import evaluate_model
from equilibria.models import LanguageModel
from equilibria.nn import TiedEmbedding
from equilibria.report.measurement import _pieces, follow_solve, read_passage
from equilibria.solvers import Anderson, Draft, Picard


@pytest.fixture
def chunk_length() -> int | None:
    return None


@pytest.fixture
def model(chunk_length: int | None) -> LanguageModel:
    torch.manual_seed(0)
    cell = ContractiveCell(d_model=16, heads=2, inner=32)
    embedding = TiedEmbedding(256, cell.d_model)
    return LanguageModel(embedding, cell, Equilibrium(), memory_length=8, chunk_length=chunk_length).eval()


def text(length: int) -> np.ndarray:
    return np.frombuffer(("the cat sat on the mat. " * length).encode()[:length], np.uint8).astype(np.uint16)


@pytest.mark.parametrize("chunk_length", [None, 5])
def test_a_passage_has_the_figures_of_the_evaluation(model: LanguageModel) -> None:
    tokens = text(81)
    pieces = read_passage(model, byte_tokenizer(), tokens, segment_length=16)
    assert "".join(piece.text for piece in pieces) == tokens[:-1].astype(np.uint8).tobytes().decode()
    evaluation = evaluate_model(model, EncodedSplit(tokens, 17, 81), batch_size=1, segment_length=16)
    assert np.mean([piece.evaluations for piece in pieces]) == pytest.approx(evaluation.evaluations.mean)
    assert max(piece.residual for piece in pieces) == pytest.approx(evaluation.residual.worst)
    # the evaluation predicts the tokens after the first, the last among them, which the passage does not show
    shown = evaluate_model(model, EncodedSplit(tokens[:-1], 17, 80), batch_size=1, segment_length=16)
    assert pieces[0].nll is None
    losses = [piece.nll for piece in pieces[1:] if piece.nll is not None]
    assert len(losses) == 79
    assert np.mean(losses) == pytest.approx(shown.loss, rel=1e-5)


@pytest.mark.parametrize("chunk_length", [None, 5])
def test_a_solve_is_followed_at_every_evaluation_to_twice_its_budget(model: LanguageModel) -> None:
    inputs = torch.from_numpy(text(64).astype(np.int64)).view(2, 32)
    solver = Anderson(tol=1e-2, max_evaluations=9, scope="prefix")
    depth = model.depth
    convergence = follow_solve(model, inputs, solver)
    assert model.depth is depth
    assert convergence.tolerance == 1e-2
    assert convergence.tokens == 64
    model.depth = Equilibrium(eval_solver=Anderson(tol=0.0, max_evaluations=18, scope="prefix"))
    with torch.no_grad():
        solution = model(inputs).solution
    assert solution is not None
    assert convergence.worst == pytest.approx(solution.trace)
    assert convergence.mean[-1] == pytest.approx(float(solution.residual.mean()))
    for mean, p95, worst in zip(convergence.mean, convergence.p95, convergence.worst, strict=True):
        assert mean <= worst
        assert p95 <= worst


@pytest.mark.parametrize("chunk_length", [None, 5])
def test_what_fills_up_a_row_is_not_counted(model: LanguageModel) -> None:
    inputs = torch.from_numpy(text(64).astype(np.int64)).view(2, 32)
    solver = Anderson(tol=1e-2, max_evaluations=9, scope="prefix")
    counted = torch.ones_like(inputs, dtype=torch.bool)
    counted[1] = False
    convergence = follow_solve(model, inputs, solver, counted)
    assert convergence.tokens == 32
    assert convergence.mean == pytest.approx(follow_solve(model, inputs[:1], solver).mean, rel=1e-4)


@pytest.mark.parametrize("chunk_length", [None, 5])
@pytest.mark.parametrize("with_coda", [False, True])
def test_a_solve_per_sequence_is_followed_token_by_token(model: LanguageModel, with_coda: bool) -> None:
    if with_coda:
        model.coda = ContractiveCell(d_model=16, heads=2, inner=32).eval()
    inputs = torch.from_numpy(text(64).astype(np.int64)).view(2, 32)
    apart, together = (
        follow_solve(model, inputs, Picard(tol=1e-2, max_evaluations=6, scope=scope)) for scope in ("token", "sample")
    )
    assert len(together.mean) == 2 * 6 + 1  # the last one measures
    assert together == apart  # plain iteration is the same whatever a group is


@pytest.mark.parametrize("chunk_length", [5])
def test_what_is_followed_has_no_draft_and_no_fallback(model: LanguageModel) -> None:
    inputs = torch.from_numpy(text(64).astype(np.int64)).view(2, 32)
    solver = Picard(tol=1e-2, max_evaluations=9, scope="prefix")
    helped = replace(solver, draft=Draft(), fallback=replace(solver, damping=0.5))
    assert follow_solve(model, inputs, helped) == follow_solve(model, inputs, solver)


@pytest.mark.parametrize("chunk_length", [5])
def test_a_chunk_that_is_done_before_another_stays_as_it_ended(model: LanguageModel) -> None:
    inputs = torch.from_numpy(text(10).astype(np.int64)).view(1, 10)
    solver = Anderson(tol=1e-2, max_evaluations=4, scope="prefix")
    whole = follow_solve(model, inputs, solver)
    inputs[0, 9] = 255
    with torch.no_grad():
        model.get_parameter("embedding.weight")[255] = torch.nan
    broken = follow_solve(model, inputs, solver)
    assert len(whole.worst) == 2 * 4 + 1  # the last one measures
    # the second chunk is given up after two evaluations, and stays as it ended
    assert broken.worst == [float("inf")] * 9


def test_the_residual_is_per_token_for_solvers_that_mix_per_sequence(model: LanguageModel) -> None:
    model.depth = Equilibrium(eval_solver=Picard(tol=1e-2, max_evaluations=12, scope="sample"))
    pieces = read_passage(model, byte_tokenizer(), text(33), segment_length=16)
    assert len(pieces) == 32
    assert len({piece.evaluations for piece in pieces[:16]}) == 1


@given(st.text())
def test_pieces_of_bytes_are_the_text(passage: str) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode(passage)
    pieces = _pieces(tokenizer, ids)
    assert "".join(text for text, _ in pieces) == tokenizer.decode(ids)
    assert [index for _, place in pieces for index in range(place.start, place.stop)] == list(range(len(ids)))


def test_a_character_of_several_tokens_is_one_piece() -> None:
    tokenizer = byte_tokenizer()
    assert [text for text, _ in _pieces(tokenizer, tokenizer.encode("né €𝄞"))] == ["n", "é", " ", "€", "𝄞"]


def test_words_keep_the_space_before_them() -> None:
    tokenizer = word_tokenizer(["<unk>", "<eos>", "a", "b"])
    assert [text for text, _ in _pieces(tokenizer, [2, 3, 1, 2])] == ["a", " b", "\n", "a"]
