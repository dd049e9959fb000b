"""Decoding from a cache: the same as solving everything afresh, for every cell and depth that can."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import equilibria as eq
from cached_models import CELLS, D, V, model, text
from equilibria.cells import Cache, Cell, ContractiveCell
from equilibria.depths import Adaptive, Equilibrium, ExitOnResidual, UnrolledDepth
from equilibria.models import Decoder, LanguageModel
from equilibria.models.decoding import Solved, Step
from equilibria.models.sampling import Sampler, Sampling
from equilibria.nn import TiedEmbedding, UntiedEmbedding
from equilibria.paper.baselines import LSTMLayer, SequenceModel
from equilibria.paper.halting import Halting
from three_blocks import three_blocks


def solved(tol: float = 1e-6, solver: type = eq.Anderson, scope: str = "prefix") -> Equilibrium:
    return Equilibrium(eval_solver=solver(tol=tol, max_evaluations=200, scope=scope))


def logits(step: Step) -> Tensor:
    return step.embedding.logits(step.hidden_BLD).detach()


@torch.no_grad()
def token_by_token(model: LanguageModel, tokens: Tensor, prompt: int, padding: Tensor | None = None) -> Tensor:
    """Logits of all tokens, the prompt read at once and the rest one by one."""
    step = model.prefill(tokens[:, :prompt], padding)
    found = [logits(step)]
    for place in range(prompt, tokens.shape[1]):
        step = model.decode(tokens[:, place], step.cache)
        found.append(step.logits_BV.unsqueeze(1))
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("framed", [False, True], ids=["alone", "framed"])
@pytest.mark.parametrize("depth", [solved(), UnrolledDepth(4)], ids=["equilibrium", "unrolled"])
@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS.keys())
@torch.no_grad()
def test_decoding_is_a_full_solve(cell, depth, framed):
    built, tokens = model(cell, depth, framed), text()
    whole = built(tokens).logits
    torch.testing.assert_close(token_by_token(built, tokens, 9), whole, rtol=0, atol=1e-4)
    torch.testing.assert_close(logits(built.prefill(tokens, chunk_length=5)), whole, rtol=0, atol=1e-4)


def test_layers_whose_memory_is_not_their_input_are_decoded_as_in_one_segment():
    built, tokens = model(lambda: three_blocks(D, 2, 24, initial_std=0.05), UnrolledDepth(3)), text()
    with torch.no_grad():
        torch.testing.assert_close(token_by_token(built, tokens, 9), built(tokens).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tol", [1e-3, 1e-6])
@pytest.mark.parametrize("adaptive", [False, True])
@torch.no_grad()
def test_decoding_is_as_exact_as_its_tolerance(tol, adaptive):
    depth = Adaptive(ExitOnResidual(tol), max_evaluations=200) if adaptive else solved(tol, eq.Picard)
    built, tokens = model(CELLS["rotary"], depth), text(2, 24)
    step = built.decode(tokens[:, 1], built.prefill(tokens[:, :1]).cache)
    assert step.solution is not None
    assert step.solution.tolerance == tol / 2
    bound = 10 * tol if tol > 1e-4 else 1e-4
    torch.testing.assert_close(token_by_token(built, tokens, 8), built(tokens).logits, rtol=0, atol=bound)


@pytest.mark.parametrize("solver", [eq.Broyden, eq.Anderson])
@torch.no_grad()
def test_a_solver_that_returns_another_iterate_than_its_last_leaves_the_right_cache(solver):
    built, tokens = model(CELLS["two blocks, linear"], solved(solver=solver, scope="sample")), text()
    torch.testing.assert_close(token_by_token(built, tokens, 9), built(tokens).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS.keys())
@torch.no_grad()
def test_padding_changes_nothing(cell):
    built, tokens, padding = model(cell, solved(), framed=True), text(), torch.tensor([0, 4, 7])
    found = token_by_token(built, tokens, 10, padding)
    other = tokens.clone()
    other[1, :4], other[2, :7] = 3, 5
    again = token_by_token(built, other, 10, padding)
    for row, start in enumerate(padding.tolist()):
        alone = built(tokens[row : row + 1, start:]).logits[0]
        torch.testing.assert_close(found[row, start:], alone, rtol=0, atol=1e-4)
        assert torch.equal(again[row, start:], found[row, start:])


@pytest.mark.parametrize("cell", [CELLS["rotary"], CELLS["windowed"], CELLS["scanned trellis"]])
@torch.no_grad()
def test_segments_chunks_and_tokens_give_the_same_log_probabilities(cell):
    built, tokens = model(cell, solved(), memory_length=24), text(2, 24)
    expected = built(tokens).logits.log_softmax(-1)
    memory, parts = None, []
    for part in tokens.split(7, dim=1):
        output = built(part, memory=memory)
        memory = output.memory
        parts.append(output.logits.log_softmax(-1))
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(token_by_token(built, tokens, 1).log_softmax(-1), expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_limited_cache_sees_what_a_memory_of_that_length_shows():
    built, tokens = model(CELLS["rotary"], solved(), memory_length=6), text(2, 30)
    memory, expected = None, []
    for token in tokens.split(1, dim=1):
        output = built(token, memory=memory)
        memory = output.memory
        expected.append(output.logits)
    step = built.prefill(tokens[:, :1], limit=6)
    found = [logits(step)]
    for token in tokens[:, 1:].unbind(1):
        step = built.decode(token, step.cache)
        found.append(step.logits_BV.unsqueeze(1))
    torch.testing.assert_close(torch.cat(found, 1), torch.cat(expected, 1), rtol=0, atol=1e-4)
    assert isinstance(step.cache, Cache)
    assert step.cache.length == 6


@torch.no_grad()
def test_a_cache_grows_past_its_blocks_and_forgets_past_its_limit(monkeypatch):
    monkeypatch.setattr("equilibria.cells.cache._BLOCK", 3)
    built, tokens = model(CELLS["windowed"], solved(), memory_length=40), text(2, 20)
    torch.testing.assert_close(token_by_token(built, tokens, 4), built(tokens).logits, rtol=0, atol=1e-4)
    step = built.prefill(tokens[:, :4])
    cache = step.cache
    assert isinstance(cache, Cache)
    buffers = set()
    for token in tokens[:, 4:].unbind(1):
        built.decode(token, cache)
        buffers.add(cache._tensors[0].data_ptr())
    assert cache.length == 4  # the rest of the window
    assert cache._tensors[0].shape[-2] == 4 + 1 + 3
    assert len(buffers) < 16


@torch.no_grad()
def test_rows_of_a_cache_can_be_chosen():
    built, tokens = model(CELLS["rotary"], solved()), text()
    step = built.prefill(tokens, torch.tensor([0, 2, 5]))
    assert isinstance(step.cache, Cache)
    chosen = step.cache.select(torch.tensor([2, 2, 0]))
    found = built.decode(torch.tensor([1, 2, 3]), chosen).logits_BV
    for row, (source, start, token) in enumerate([(2, 5, 1), (2, 5, 2), (0, 0, 3)]):
        alone = torch.cat([tokens[source : source + 1, start:], torch.tensor([[token]])], dim=1)
        torch.testing.assert_close(found[row], built(alone).logits[0, -1], rtol=0, atol=1e-4)


@torch.no_grad()
def test_one_cell_is_kept_however_often_it_is_applied():
    tokens = text()
    sizes = {}
    for name, depth in {"equilibrium": solved(), "twin": UnrolledDepth(18)}.items():
        cache = model(CELLS["rotary"], depth).prefill(tokens).cache
        assert isinstance(cache, Cache)
        sizes[name] = cache.bytes
    assert sizes["equilibrium"] == 2 * tokens.numel() * D * 4
    assert sizes["twin"] == 18 * sizes["equilibrium"]


def greedily(built: LanguageModel, prompt: Tensor, count: int) -> Tensor:
    """The text that solving everything afresh writes."""
    tokens = prompt
    with torch.no_grad():
        for _ in range(count):
            tokens = torch.cat([tokens, built(tokens).logits[:, -1:].argmax(-1)], dim=1)
    return tokens


@pytest.mark.parametrize("depth", [solved(), UnrolledDepth(4)], ids=["equilibrium", "unrolled"])
@pytest.mark.parametrize("cell", [CELLS["rotary"], CELLS["post norm"], CELLS["trellis"]])
def test_greedy_text_is_that_of_full_solves_with_and_without_padding(cell, depth):
    built, prompt = model(cell, depth), text(2, 6)
    expected = greedily(built, prompt, 8)
    assert torch.equal(built.generate(prompt, 8, temperature=0.0), expected)
    padding = torch.tensor([0, 2])
    written = built.generate(prompt, 8, temperature=0.0, padding_B=padding)
    assert torch.equal(written[:1], expected[:1])
    assert torch.equal(written[1:, 2:], greedily(built, prompt[1:, 2:], 8))


def test_a_long_prompt_is_read_as_far_as_the_window_reaches():
    built, prompt = model(CELLS["rotary"], solved()), text(2, 12)
    full = built.generate(prompt, 1, temperature=0.0, window=5)
    assert torch.equal(full[:, -1:], greedily(built, prompt[:, -5:], 1)[:, -1:])


def test_drawn_tokens_come_with_what_they_cost():
    built, prompt = model(CELLS["rotary"], solved(solver=eq.Picard)), text(2, 6)
    stream = built.stream(prompt, Sampling(temperature=0.0))
    first, second = next(stream), next(stream)
    for drawn in (first, second):
        assert drawn.solved is not None
        assert int(drawn.solved.evaluations_B.min()) > 1
        assert drawn.solved.converged_B.tolist() == [True, True]
    explicit = model(CELLS["rotary"], UnrolledDepth(2)).stream(prompt, Sampling())
    assert next(explicit).solved is None


class Keepless(Cell):
    """A cell that keeps nothing of a token, so that its models write without a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.d_model, self.linear = D, torch.nn.Linear(D, D)

    def evaluate(self, z: Tensor, inputs: Tensor, past: object) -> Tensor:
        return torch.tanh(0.5 * self.linear(z) + inputs)


@pytest.mark.parametrize("cell", [CELLS["rotary"], Keepless], ids=["cached", "afresh"])
def test_tokens_drawn_after_a_failed_solve_are_told_of(cell):
    built, prompt = model(cell, solved(solver=eq.Picard)), text(2, 6)
    assert built.decodes() == (cell is not Keepless)
    with pytest.warns(eq.ConvergenceWarning, match="6 of 6 tokens were drawn after solves that did not converge"):
        built.generate(prompt, 3, seed=0, depth=Equilibrium(eval_solver=eq.Picard(max_evaluations=1)))
    built.generate(prompt, 3, seed=0)  # warns of nothing


def test_a_failure_within_the_prompt_is_one_of_the_first_token():
    solution = model(CELLS["rotary"], solved())(text(2, 6)).solution
    assert solution is not None
    converged = torch.ones(2, 6, dtype=torch.bool)
    converged[1, 2] = False
    found = Solved.of(replace(solution, converged=converged), 2)
    assert found is not None
    assert found.converged_B.tolist() == [True, False]
    assert torch.equal(found.evaluations_B, solution.group_evaluations[:, -1])


def test_a_text_whose_logits_are_not_finite_ends_and_the_others_go_on():
    torch.manual_seed(0)
    embedding, prompt = UntiedEmbedding(V, D), torch.tensor([[1, 2, 3]])
    built = LanguageModel(embedding, CELLS["rotary"](), UnrolledDepth(2)).eval()
    expected = built.generate(prompt, 3, temperature=0.0)[0, 3:].tolist()
    bad = next(token for token in range(4, V) if token not in expected)
    with torch.no_grad():
        embedding.rows.weight[bad] = torch.nan
    decoder, samplers = Decoder(built), [Sampler(Sampling(0.0), 0, [1, 2, 3], V) for _ in range(2)]
    first = decoder.join(prompt, samplers).token_B
    samplers[0].token = bad
    second, third = (decoder.step().token_B for _ in range(2))
    assert [int(first[1]), int(second[1]), *third.tolist()] == expected
    assert int(second[0]) == -1
    assert decoder.samplers == samplers[1:]
    with pytest.raises(ValueError, match="not finite"):
        built.generate(torch.tensor([[1, bad]]), 2)


def test_a_warm_start_leads_to_the_same_state():
    built, tokens = model(CELLS["rotary"], solved(solver=eq.Picard)), text()
    found = []
    for warm in (True, False):
        cache = built.prefill(tokens[:, :-1]).cache
        assert isinstance(cache, Cache)
        cache.warm_start = warm
        found.append(built.decode(tokens[:, -1], cache).logits_BV)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-4)
    assert not torch.equal(found[0], found[1])


def test_decoding_a_row_does_not_depend_on_the_others():
    built, tokens = model(CELLS["rotary"], solved(1e-3, eq.Picard)), text()
    found = []
    for others in (text(seed=1), text(seed=2)):
        others[0] = tokens[0]
        found.append(token_by_token(built, others, 4)[0])
    assert torch.equal(found[0], found[1])


def test_baselines_decode_from_their_state_whatever_their_memory():
    torch.manual_seed(0)
    built, tokens = SequenceModel(TiedEmbedding(V, 8), [LSTMLayer(8, 8)], memory_length=0).eval(), text()
    step = built.prefill(tokens[:, :5])
    for place in range(5, 16):
        step = built.decode(tokens[:, place], step.cache)
    torch.testing.assert_close(step.logits_BV, built(tokens).logits[:, -1])
    with pytest.raises(ValueError, match="prompts of one length"):
        built.prefill(tokens, torch.tensor([0, 1, 0]))


def test_what_cannot_decode_says_so():
    halting = model(lambda: ContractiveCell(D, 2, 24, injection=False), Halting(D))
    with pytest.raises(ValueError, match="nothing to keep in a cache"):
        halting.prefill(text())
    assert halting.generate(text(), 3, seed=0).shape == (3, 19)
    built = model(CELLS["rotary"], solved())
    with pytest.raises(ValueError, match="evaluation mode"):
        built.train().prefill(text())
    built.eval()
    with pytest.raises(ValueError, match="3 numbers from 0 to 15"):
        built.prefill(text(), torch.tensor([0, 16, 0]))
    with pytest.raises(ValueError, match="cache has batch size 3"):
        built.decode(text(2, 1), built.prefill(text()).cache)
    with pytest.raises(ValueError, match="token id 29"):
        built.decode(torch.full((3,), 29), built.prefill(text()).cache)
    with pytest.raises(ValueError, match="limit must be at least 0"):
        built.prefill(text(), limit=-1)


def test_a_cache_or_a_memory_of_another_model_or_batch_is_named():
    built, deeper = model(CELLS["rotary"], solved()), model(CELLS["rotary"], UnrolledDepth(4))
    with pytest.raises(ValueError, match="cache is of another model"):
        built.decode(text(3, 1), deeper.prefill(text()).cache)
    with pytest.raises(ValueError, match="cache is of another model"):
        deeper.decode(text(3, 1), built.prefill(text()).cache)
    memory = built(text(2)).memory
    for rows in (1, 4):
        with pytest.raises(ValueError, match=f"memory has batch size 2, the tokens have {rows}"):
            built(text(rows), memory=memory)


def test_of_nothing_nothing_is_written_and_less_is_an_error():
    built = model(CELLS["rotary"], solved())
    assert torch.equal(built.generate(text(), 0, seed=0), text())
    with pytest.raises(ValueError, match="max_new_tokens must be at least 0, found -1"):
        built.generate(text(), -1)
