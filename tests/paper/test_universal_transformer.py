"""The encoder-decoder: its equations, what may see what, and a small task that it learns."""

import math

import pytest
import torch
from torch import Tensor, nn

from equilibria.data import Reversal
from equilibria.inference.evaluation import evaluate_segments
from equilibria.nn import TiedEmbedding
from equilibria.paper.halting import Halting
from equilibria.paper.universal_transformer import UniversalTransformer, _Seen


def model(d_model: int = 8, steps: int = 3, dropout: float = 0.0, seed: int = 0) -> UniversalTransformer:
    torch.manual_seed(seed)
    encoder, decoder = (Halting(d_model, steps) for _ in range(2))
    return UniversalTransformer(TiedEmbedding(9, d_model), 2, 2 * d_model, encoder, decoder, dropout)


def tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(1, 9, (rows, length), generator=torch.Generator().manual_seed(seed))


def normed(x: Tensor, norm: nn.Module) -> Tensor:
    centred = x - x.mean()
    scaled = centred / (centred.square().mean() + 1e-5).sqrt()
    return scaled * norm.get_parameter("weight") + norm.get_parameter("bias")


def attended(attention: nn.MultiheadAttention, queries: Tensor, seen: Tensor, causal: bool) -> Tensor:
    """Two heads of four features, query by query."""
    weight, bias = attention.get_parameter("in_proj_weight"), attention.get_parameter("in_proj_bias")
    rows = []
    for t, query in enumerate(queries):
        visible = seen[: t + 1] if causal else seen
        mixed = []
        for head in range(2):
            q, k, v = (slice(8 * part + 4 * head, 8 * part + 4 * head + 4) for part in range(3))
            keys = [weight[k] @ row + bias[k] for row in visible]
            values = [weight[v] @ row + bias[v] for row in visible]
            scores = torch.stack([(weight[q] @ query + bias[q]) @ key / math.sqrt(4) for key in keys])
            mixed.append(torch.stack(values).T @ scores.softmax(0))
        output = attention.out_proj
        rows.append(output.weight @ torch.cat(mixed) + output.bias)
    return torch.stack(rows)


@pytest.mark.parametrize("reads_source", [False, True])
def test_a_block_equals_the_published_equations(reads_source: bool) -> None:
    built = model().double().eval()
    block = built.write if reads_source else built.read
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    h, source = torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 3, 8, dtype=torch.float64)
    mask = torch.ones(5, 5, dtype=torch.bool).triu(1) if reads_source else None
    found = block(h, _Seen(source if reads_source else None, mask, block.feed_forward.bind(), (None,) * 3))
    for b in range(2):
        mixed = attended(block.self_attention, h[b], h[b], causal=reads_source)
        rows = torch.stack([normed(row, block.norms[0]) for row in h[b] + mixed])
        if block.source_attention is not None:
            mixed = attended(block.source_attention, rows, source[b], causal=False)
            rows = torch.stack([normed(row, block.norms[1]) for row in rows + mixed])
        expand, contract = block.feed_forward.expand, block.feed_forward.contract
        fed = (rows @ expand.weight.T + expand.bias).clamp(min=0) @ contract.weight.T + contract.bias
        expected = torch.stack([normed(row, block.norms[-1]) for row in rows + fed])
        torch.testing.assert_close(found[b], expected, rtol=1e-9, atol=1e-9)


def test_a_target_sees_the_whole_source_and_the_targets_before_it_exactly() -> None:
    built = model().eval()
    source, target = tokens(3, 6), tokens(3, 5, seed=1)
    logits = built(source, target).logits
    for cut in range(5):
        changed = target.clone()
        changed[:, cut:] = changed[:, cut:] % 8 + 1
        found = built(source, changed).logits
        assert torch.equal(found[:, : cut + 1], logits[:, : cut + 1])
        assert cut == 4 or not torch.equal(found[:, cut + 1], logits[:, cut + 1])
    for place in range(6):
        changed = source.clone()
        changed[:, place] = changed[:, place] % 8 + 1
        assert (built(changed, target).logits != logits).any(-1).all()
    assert torch.equal(built(torch.cat([source[:1], tokens(2, 6, 9)]), target).logits[0], logits[0])


def test_what_ends_early_is_ignored_after_its_end() -> None:
    built = model().eval()
    source, target = tokens(2, 4), tokens(2, 5)
    shorter = target.clone()
    shorter[:, 3:] = -100
    expected = nn.functional.cross_entropy(built(source, target).logits[:, :3].flatten(0, 1), target[:, :3].flatten())
    torch.testing.assert_close(built(source, shorter).loss, expected)


def test_writing_a_target_predicts_what_training_would() -> None:
    built = model().eval()
    source = tokens(2, 4)
    written = built.generate(source, max_new_tokens=5, temperature=0.0)
    assert torch.equal(written[:, :4], source)
    assert torch.equal(built(source, written[:, 4:]).logits.argmax(-1), written[:, 4:])


def test_both_depths_are_paid_for_and_every_parameter_learns() -> None:
    built = model(dropout=0.1).train()
    output = built(tokens(2, 4), tokens(2, 4, seed=1))
    assert output.penalty is not None
    assert output.loss is not None
    (output.loss + output.penalty).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in built.parameters())
    built.encoder.ponder_weight = 0.0
    less = built(tokens(2, 4), tokens(2, 4, seed=1)).penalty
    assert less is not None
    assert less.item() < output.penalty.item()


def test_it_learns_to_reverse() -> None:
    task, built = Reversal(symbols=4, held_out=100), model(d_model=32, steps=2, seed=1).train()
    batches, optimizer = task.training(32), torch.optim.Adam(built.parameters(), lr=3e-3)
    for step in range(250):
        segment = batches.at(step)
        output = built(segment.inputs, segment.targets)
        assert output.loss is not None
        (output.loss + output.penalty).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert evaluate_segments(built, task.split("valid").segments(50)).loss < 0.2  # chance is 2.08
    segment = next(iter(task.split("valid").segments(100)))
    written = built.generate(segment.inputs, max_new_tokens=4, temperature=0.0)[:, 4:]
    assert (written == segment.targets).float().mean() > 0.9


def test_what_it_cannot_do_is_named() -> None:
    built = model()
    with pytest.raises(ValueError, match="needs a target"):
        built(tokens(1, 3))
    with pytest.raises(ValueError, match="token id 9 is outside the vocabulary of 9"):
        built(torch.full((1, 3), 9), tokens(1, 3))
    with pytest.raises(ValueError, match="start must be one of 9 token ids, found 9"):
        UniversalTransformer(TiedEmbedding(9, 8), 2, 8, Halting(8), Halting(8), start=9)
    with pytest.raises(ValueError, match="found 8 and 3 heads"):
        UniversalTransformer(TiedEmbedding(9, 8), 3, 8, Halting(8), Halting(8))
