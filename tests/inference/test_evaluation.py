import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from equilibria.cells import ContractiveCell, TrellisCell
from equilibria.data.batches import EvaluationStream, Segment
from equilibria.data.prepared import EncodedSplit
from equilibria.data.tasks.groups import WordProblem
from equilibria.depths import Depth, Equilibrium, UnrolledDepth
from equilibria.errors import UserError
from equilibria.gradients import Phantom
from equilibria.inference.evaluation import Spread, TextEvaluation, evaluate_model, evaluate_segments, perplexity
from equilibria.models import LanguageModel, TokenModel
from equilibria.nn import TiedEmbedding
from equilibria.paper.baselines import LSTMLayer, SequenceModel
from equilibria.paper.halting import Halting
from equilibria.solvers import Picard
from watching import Watcher


def model(depth: Depth | None = None, memory_length: int = 0, tol: float = 1e-4) -> LanguageModel:
    torch.manual_seed(0)
    solver = Picard(tol=tol, max_evaluations=60, scope="prefix")
    depth = depth or Equilibrium(solver=solver, eval_solver=solver, gradient=Phantom(steps=2))
    cell = ContractiveCell(d_model=16, heads=2, inner=32, dropout=0.3, carry=0.3)
    return LanguageModel(TiedEmbedding(19, cell.d_model), cell, depth, memory_length, dropout=0.3)


def text(length: int) -> EncodedSplit:
    tokens = np.random.default_rng(length).integers(0, 19, length).astype(np.uint16)
    return EncodedSplit(tokens, words=length // 2, bytes=length * 4)


MODEL = model()


@settings(deadline=None, max_examples=15)
@given(st.integers(2, 60), st.integers(1, 5), st.integers(1, 17))
def test_every_token_but_the_first_counts_once(length: int, batch: int, segment: int) -> None:
    found = evaluate_model(MODEL, text(length), batch, segment)
    assert found.tokens == length - 1


def test_loss_is_the_mean_over_tokens_of_a_direct_computation() -> None:
    split = text(41)
    found = evaluate_model(MODEL, split, batch_size=1, segment_length=64)
    tokens = torch.from_numpy(split.tokens.astype(np.int64))[None]
    with torch.no_grad():
        logits = MODEL.eval()(tokens[:, :-1]).logits
    expected = float(F.cross_entropy(logits[0], tokens[0, 1:]))
    assert found.loss == pytest.approx(expected, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(expected), rel=1e-4)
    nats = expected * 40  # words and bytes in the proportion of the tokens that were predicted, 40 of 41
    assert isinstance(found, TextEvaluation)
    assert found.word_perplexity == pytest.approx(math.exp(nats / (20 * 40 / 41)), rel=1e-4)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / (164 * 40 / 41), rel=1e-4)


def test_segments_of_unequal_length_are_weighted_by_their_tokens() -> None:
    # each token of a segment of length 1 is predicted from the token before it alone
    split = text(30)
    found = evaluate_model(MODEL, split, batch_size=4, segment_length=1)
    tokens = torch.from_numpy(split.tokens.astype(np.int64))
    with torch.no_grad():
        logits = MODEL.eval()(tokens[:-1, None]).logits[:, 0]
    assert found.loss == pytest.approx(float(F.cross_entropy(logits, tokens[1:])), rel=1e-5)


def test_memory_gives_a_segment_what_came_before() -> None:
    remembering, split = model(memory_length=8), text(33)
    whole = evaluate_model(remembering, split, 1, 4)
    assert whole.loss == evaluate_model(remembering, split, 1, 4, memory_length=8).loss
    forgetful = evaluate_model(remembering, split, 1, 4, memory_length=0)
    assert forgetful.loss != whole.loss
    assert forgetful.loss == pytest.approx(evaluate_model(model(), split, 1, 4).loss, rel=1e-6)
    assert remembering.memory_length == 8


def test_chunks_that_see_each_other_through_the_memory_are_not_evaluated_without_one() -> None:
    chunked = model(memory_length=8)
    chunked.chunk_length = 2
    with pytest.raises(UserError, match="chunks of 2 tokens, which see each other through the memory"):
        evaluate_model(chunked, text(33), 1, 4, memory_length=0)
    assert chunked.memory_length == 8


def test_the_model_and_the_random_state_are_left_as_they_were() -> None:
    trained = model().train()
    state = torch.get_rng_state()
    evaluate_model(trained, text(20), 2, 8)
    assert trained.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in trained.parameters())


def test_convergence_is_reported_over_tokens() -> None:
    found = evaluate_model(model(tol=0.1), text(50), 2, 8)
    assert found.unconverged == 0.0
    assert found.solves == 4
    mean, tail, worst = found.residual.mean, found.residual.p95, found.residual.worst
    assert 0 < (mean or 0) <= (tail or 0) <= (worst or 0) <= 0.1
    spent, most, per_solve = found.evaluations.mean, found.evaluations.worst, found.evaluations_per_solve
    assert 1 < (spent or 0) <= (per_solve or 0) <= (most or 0) <= 60
    short = Picard(tol=1e-9, max_evaluations=2, scope="prefix")
    hasty = model(Equilibrium(solver=short, eval_solver=short, gradient=Phantom(steps=2)))
    assert evaluate_model(hasty, text(50), 2, 8).unconverged == 1.0


def test_the_share_that_did_not_converge_is_one_of_tokens() -> None:
    def hasty(tol: float) -> LanguageModel:
        short = Picard(tol=tol, max_evaluations=3, scope="prefix")
        return model(Equilibrium(solver=short, eval_solver=short, gradient=Phantom(steps=2))).eval()

    segment = next(iter(text(50).segments(2, 8)))
    reached = hasty(1e-9)(segment.inputs).solution
    assert reached is not None
    middle = hasty(float(reached.residual.median()))
    found = evaluate_segments(middle, [segment])
    solution = middle(segment.inputs).solution
    assert solution is not None
    assert 0 < int(solution.converged.sum()) < 16
    assert found.unconverged == 1.0 - int(solution.converged.sum()) / 16


def test_masked_positions_do_not_count_as_tokens() -> None:
    seen = evaluate_model(MODEL, text(8), batch_size=2, segment_length=16)  # rows of 3 and 4 targets
    assert seen.tokens == 7


def test_explicit_depths_have_no_residual() -> None:
    found = evaluate_model(model(UnrolledDepth(applications=3)), text(30), 2, 8)
    assert (found.evaluations_per_solve, found.unconverged, found.solves) == (None, None, 0)
    assert found.residual == Spread(None, None, None, None, None)
    assert found.loss > 0


def test_max_tokens_reads_the_beginning() -> None:
    split = text(60)
    found = evaluate_model(MODEL, split, 1, 8, max_tokens=21)
    beginning = evaluate_model(MODEL, replace(split, tokens=split.tokens[:21]), 1, 8)
    assert (found.tokens, found.loss) == (20, beginning.loss)
    assert isinstance(found, TextEvaluation)
    assert found.bytes == round(240 * 20 / 60)


def test_json_has_plain_finite_numbers() -> None:
    figures = evaluate_model(MODEL, text(30), 2, 8).to_json()
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert isinstance(figures["residual"], dict)
    assert figures["residual"].keys() == {"mean", "median", "p90", "p95", "worst"}


def test_a_spread_tells_the_slowest_tenth_from_the_median() -> None:
    counts = np.repeat([4.0, 8.0, 20.0], [80, 12, 8])
    assert Spread.of(counts) == Spread(mean=5.76, median=4.0, p90=8.0, p95=20.0, worst=20.0)
    assert Spread.of(np.array([1.0, 1.0, 1.0, np.inf])) == Spread(None, 1.0, None, None, None)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 4), st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_accuracies_are_of_answers_and_of_whole_sequences(seed: int, rows: int, lengths: list[int]) -> None:
    generator, segments = torch.Generator().manual_seed(seed), []
    for _ in range(2):  # so many batches of sequences, each read in as many segments as there are lengths
        for number, length in enumerate(lengths):
            inputs = torch.randint(19, (rows, length), generator=generator)
            with torch.no_grad():
                best = MODEL.eval()(inputs).logits.argmax(-1)
            right = torch.rand(rows, length, generator=generator) < 0.7
            asked = torch.rand(rows, length, generator=generator) < 0.5
            segments.append(Segment(inputs, torch.where(right, best, (best + 1) % 19), number == 0, asked))
    found = evaluate_segments(MODEL, segments, memory_length=0)
    answers = []  # of each sequence with any, whether they are right, in their order
    for batch in (segments[: len(lengths)], segments[len(lengths) :]):
        for row in range(rows):
            parts = [(MODEL(one.inputs).logits.argmax(-1)[row] == one.targets[row], one) for one in batch]
            answers.append([bool(hit) for hits, one in parts for hit in hits[one.answers[row]]])
    asking = [hits for hits in answers if hits]
    if not asking:
        assert (found.accuracy, found.last_accuracy, found.sequence_accuracy) == (None, None, None)
        return
    assert found.accuracy == pytest.approx(np.mean([hit for hits in asking for hit in hits]))
    assert found.last_accuracy == pytest.approx(np.mean([hits[-1] for hits in asking]))
    assert found.sequence_accuracy == pytest.approx(np.mean([all(hits) for hits in asking]))


def test_a_text_has_no_answers() -> None:
    found = evaluate_model(MODEL, text(20), 2, 8)
    assert (found.accuracy, found.last_accuracy, found.sequence_accuracy) == (None, None, None)


def trellis_model() -> LanguageModel:
    torch.manual_seed(0)
    solver = Picard(tol=1e-6, max_evaluations=200, scope="sample")
    cell = TrellisCell(16, 8, recurrent_std=0.2, scan=True)
    return LanguageModel(TiedEmbedding(19, 16), cell, Equilibrium(eval_solver=solver))


def lstm_model() -> SequenceModel:
    torch.manual_seed(0)
    return SequenceModel(TiedEmbedding(19, 16), [LSTMLayer(16, 16)])


CHUNKED = {
    "attention": model(tol=1e-6),
    "trellis": trellis_model(),
    "explicit": model(UnrolledDepth(3)),
    "lstm": lstm_model(),
}


@pytest.mark.parametrize("reader", CHUNKED.values(), ids=CHUNKED.keys())
@settings(deadline=None, max_examples=6)
@given(chunk_length=st.integers(1, 30), rows=st.integers(1, 5))
def test_a_task_read_in_chunks_is_the_task_read_whole(reader: TokenModel, chunk_length: int, rows: int) -> None:
    split = WordProblem(group="S3", length=12, held_out=7).split("valid")
    whole = evaluate_model(reader, split, rows, 1)
    chunked = evaluate_model(reader, split, rows, 1, chunk_length=chunk_length)
    assert chunked.tokens == whole.tokens == 84
    assert chunked.loss == pytest.approx(whole.loss, rel=1e-4)
    assert chunked.accuracy == whole.accuracy
    assert chunked.last_accuracy == whole.last_accuracy
    assert chunked.sequence_accuracy == whole.sequence_accuracy
    assert chunked.unconverged == whole.unconverged
    if whole.solves:
        assert chunked.solves == whole.solves * -(-12 // chunk_length)


def test_a_text_read_in_chunks_sees_as_far_as_the_limit() -> None:
    reader, split = model(memory_length=6, tol=1e-6), text(60)
    segments = evaluate_model(reader, split, 2, 5)
    chunks = evaluate_model(reader, split, 2, 99, memory_length=6, chunk_length=5)
    assert chunks.loss == pytest.approx(segments.loss, rel=1e-4)
    assert isinstance(chunks, TextEvaluation)
    unlimited = evaluate_model(reader, split, 2, 99, chunk_length=5)
    assert unlimited.loss == pytest.approx(evaluate_model(reader, split, 2, 99).loss, rel=1e-4)
    assert unlimited.loss != pytest.approx(segments.loss, rel=1e-4)


def test_the_chunks_of_a_model_that_solves_chunks_are_those_of_a_cache() -> None:
    reader, split = model(memory_length=6, tol=1e-6), text(60)
    reader.chunk_length = 4
    whole = evaluate_model(reader, split, 1, 12)
    chunks = evaluate_model(reader, split, 1, 12, memory_length=6, chunk_length=4)
    assert chunks.loss == pytest.approx(whole.loss, rel=1e-4)


def test_a_model_without_a_cache_reads_no_chunks() -> None:
    torch.manual_seed(0)
    halting = LanguageModel(TiedEmbedding(19, 16), ContractiveCell(16, 2, 24), Halting(16, max_steps=3))
    with pytest.raises(UserError, match="a chunk length of 4: this model keeps nothing in a cache"):
        evaluate_model(halting, text(20), 2, 8, chunk_length=4)
    with pytest.raises(UserError, match="chunk length must be at least 1, found 0"):
        evaluate_segments(MODEL, [], chunk_length=0)
    with pytest.raises(UserError, match="a memory length of 0: chunks see each other through the cache"):
        evaluate_segments(MODEL, [], memory_length=0, chunk_length=4)


@pytest.mark.parametrize(("batch", "segment", "memory"), [(0, 4, None), (1, 0, None), (1, 4, -1)])
def test_impossible_sizes_are_named(batch: int, segment: int, memory: int | None) -> None:
    with pytest.raises(UserError, match=r"(batch_size|segment_length|memory length).* (0|-1)"):
        evaluate_model(MODEL, text(10), batch, segment, memory)


def test_a_text_without_anything_to_predict_is_an_error() -> None:
    with pytest.raises(UserError, match="1 tokens"):
        evaluate_model(MODEL, text(1), 1, 4)


def test_perplexity_of_a_hopeless_loss_is_infinite() -> None:
    assert perplexity(1e4) == math.inf
    assert perplexity(0.0) == 1.0


def test_segments_that_are_no_text_are_evaluated_too() -> None:
    segments = list(EvaluationStream(text(30).tokens, 2, 8))
    found, expected = evaluate_segments(MODEL, iter(segments)), evaluate_model(MODEL, text(30), 2, 8)
    assert (found.loss, found.tokens, found.residual) == (expected.loss, expected.tokens, expected.residual)
    assert "words" not in found.to_json()
    nothing = [replace(segment, targets=torch.full_like(segment.targets, -100)) for segment in segments]
    for empty in ([], nothing):
        with pytest.raises(UserError, match="no token to predict"):
            evaluate_segments(MODEL, empty)


def test_batches_are_watched() -> None:
    watcher = Watcher()
    evaluate_model(MODEL, text(33), 2, 4, progress=watcher)
    evaluate_model(MODEL, WordProblem(valid_length=4, held_out=5).split("valid"), 2, 4, progress=watcher)
    assert [(sentence, total, sum(done)) for sentence, total, done in watcher.bars] == [
        ("evaluating", 4, 4),
        ("evaluating", 3, 3),
    ]
