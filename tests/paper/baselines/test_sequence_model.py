"""What every baseline promises as a model, and the regularisers they share."""

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from equilibria.cells import Memory
from equilibria.diagnostics import audit_batch_invariance, audit_causality
from equilibria.models.regularisation import Regularisation
from equilibria.nn import TiedEmbedding, UntiedEmbedding, dropout_mask
from equilibria.paper.baselines import (
    LSTM,
    QRNN,
    TCN,
    DARTSLayer,
    GatedBlock,
    GatedConvolution,
    GRULayer,
    Layer,
    LSTMLayer,
    NASLayer,
    QRNNLayer,
    RelationalMemoryLayer,
    SequenceModel,
)
from equilibria.paper.baselines.base import State

VOCABULARY, WIDTH = 13, 6

FAMILIES: dict[str, Callable[[], Sequence[Layer]]] = {
    "LSTM": lambda: LSTM(d_model=WIDTH, hidden=8, layers=3, weight_dropout=0.5).build_layers(),
    "GRU": lambda: [GRULayer(WIDTH, 8), GRULayer(8, WIDTH)],
    "TCN": lambda: TCN(d_model=WIDTH, hidden=8, layers=3, kernel_size=2).build_layers(),
    "gated ConvNet": lambda: GatedConvolution(
        d_model=WIDTH, kernel_sizes=(3, 1, 2), channels=(6, 8, WIDTH)
    ).build_layers(),
    "gated bottleneck": lambda: [GatedBlock(WIDTH, ((1, 3), (3, 3), (1, WIDTH)))],
    "QRNN": lambda: QRNN(d_model=WIDTH, hidden=8, layers=3, weight_dropout=0.1).build_layers(),
    "relational memory": lambda: [RelationalMemoryLayer(WIDTH, WIDTH, slots=2, heads=2, head_size=3)],
    "DARTS": lambda: [DARTSLayer(WIDTH, WIDTH)],
    "NAS": lambda: [NASLayer(WIDTH, 8), NASLayer(8, WIDTH)],
}

families = pytest.mark.parametrize("layers", FAMILIES.values(), ids=FAMILIES.keys())


def model(layers: Sequence[Layer], regularisation: Regularisation | None = None) -> SequenceModel:
    torch.manual_seed(1)
    built = SequenceModel(TiedEmbedding(VOCABULARY, WIDTH), layers, regularisation)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return built


def tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


@families
def test_causal_and_independent_of_neighbours_exactly(layers: Callable[[], Sequence[Layer]]) -> None:
    built = model(layers())
    read = tokens(3, 12)
    assert audit_causality(built, read, cuts=range(1, 12)).leak == 0.0
    assert audit_batch_invariance(built, read).leak == 0.0
    changed = read.clone()
    changed[:, 0] = (changed[:, 0] + 1) % VOCABULARY  # and they do read what they may
    assert not torch.equal(built(read).logits[:, 1], built(changed).logits[:, 1])


@families
@settings(deadline=None, max_examples=8)
@given(st.lists(st.integers(0, 14), max_size=3), st.integers(0, 9))
def test_segments_continue_each_other(layers: Callable[[], Sequence[Layer]], cuts: list[int], seed: int) -> None:
    built = model(layers()).double().eval()
    read = tokens(2, 15, seed)
    edges = sorted({0, 15, *cuts})
    memory, parts = None, []
    for begin, end in pairwise(edges):
        output = built(read[:, begin:end], memory=memory)
        assert output.memory is not None
        memory = Memory.unflatten(output.memory.flatten())
        parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), built(read).logits, rtol=1e-9, atol=1e-10)


@families
def test_every_parameter_learns_and_memory_is_detached(layers: Callable[[], Sequence[Layer]]) -> None:
    built = model(layers()).train()
    read = tokens(2, 9)
    first = built(read[:, :5])
    output = built(read[:, 4:8], read[:, 5:9], first.memory)
    assert output.loss is not None
    output.loss.backward()
    for name, parameter in built.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert output.memory is not None
    assert not any(part.requires_grad for part in output.memory.flatten())
    whole = sum(part.numel() for part in output.memory.flatten())
    assert whole == sum(part.untyped_storage().nbytes() for part in output.memory.flatten()) // 4


@families
def test_autocast_leaves_states_in_their_precision_and_a_run_goes_on_without(
    layers: Callable[[], Sequence[Layer]],
) -> None:
    twice = [*layers(), *layers()]
    built, read = model(twice).train(), tokens(2, 10)
    memory = None
    for lowered in (True, True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
            output = built(read[:, :5], read[:, 5:], memory)
        memory = output.memory
        assert isinstance(memory, Memory)
        assert {part.dtype for part in (output.hidden, *memory.states)} == {torch.float32}


@families
def test_the_loss_is_the_cross_entropy_of_the_logits(layers: Callable[[], Sequence[Layer]]) -> None:
    built = model(layers()).eval()
    read, targets = tokens(2, 6), tokens(2, 6, seed=1)
    targets[0, 2] = -100
    output = built(read, targets)
    expected = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(output.loss, expected)
    assert (output.solution, output.penalty) == (None, None)


@families
def test_a_copy_computes_the_same(layers: Callable[[], Sequence[Layer]]) -> None:
    built = model(layers()).train()
    built(tokens(2, 4), tokens(2, 4)).loss.backward()  # type: ignore[union-attr]
    twin = copy.deepcopy(built)
    # Weights elsewhere in memory may meet other kernels.
    torch.testing.assert_close(twin.eval()(tokens(2, 4)).logits, built.eval()(tokens(2, 4)).logits)


def test_without_memory_every_segment_starts_afresh() -> None:
    built = model([GRULayer(WIDTH, WIDTH)]).eval()
    assert built(tokens(1, 3)).memory is not None
    built.memory_length = 0
    assert built(tokens(1, 3)).memory is None


@pytest.mark.parametrize("levels", [1, 3])
def test_the_tcn_sees_its_receptive_field_and_no_further(levels: int) -> None:
    blocks = TCN(d_model=WIDTH, hidden=WIDTH, layers=levels, kernel_size=3).build_layers()
    field = 1 + sum(length for block in blocks for length, _ in block.state_shapes)
    assert field == 1 + 2 * 2 * (2**levels - 1)
    built = model(blocks).double().eval()
    features = built.embedding(tokens(1, 2 * field)).detach().requires_grad_()
    built.read(features, None).hidden_BLD[0, -1].sum().backward()
    assert features.grad is not None
    seen = features.grad[0].abs().amax(-1).nonzero().flatten()
    assert int(seen.min()) >= field
    assert int(seen.min()) <= field + 2  # a rectifier may hide the very last


def test_weights_are_dropped_once_for_a_segment_and_only_in_training() -> None:
    for layer in (LSTMLayer(4, 5, 0.5), GRULayer(4, 5, 0.5), QRNNLayer(4, 5, 2, 0.5)):
        x = torch.randn(1, 1, 4).expand(2, 6, 4)
        before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
        state = tuple(torch.randn_like(part[:1]).expand_as(part) for part in layer.start(x))
        plain, _ = layer.eval()(x, state)
        dropped, _ = layer.train()(x, state)
        again, _ = layer(x, state)
        assert not torch.equal(plain, dropped)
        assert not torch.equal(again, dropped)
        torch.testing.assert_close(dropped[0], dropped[1])  # rows share the mask, not the place in a product's tiles
        assert torch.equal(layer.eval()(x, state)[0], plain)
        assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())


def test_a_dropped_weight_learns_only_where_it_was_kept() -> None:
    layer = LSTMLayer(3, 4, 0.5).train()
    x = torch.randn(2, 5, 3)
    torch.manual_seed(5)
    mask = dropout_mask(torch.ones(16, 4), 0.5, training=True)
    assert mask is not None
    torch.manual_seed(5)
    layer(x, layer.start(x))[0].sum().backward()
    grad = layer.network.get_parameter("weight_hh_l0").grad
    assert grad is not None
    assert torch.equal(grad.abs() > 0, mask > 0)


def test_what_is_dropped_between_layers_is_dropped_at_all_tokens_of_a_row() -> None:
    class Kept(Layer):
        def forward(self, x_BLD: Tensor, state: State) -> tuple[Tensor, State]:
            return x_BLD, state

    built = SequenceModel(
        TiedEmbedding(VOCABULARY, WIDTH), [Kept(WIDTH, WIDTH), Kept(WIDTH, WIDTH)], hidden_dropout=0.5
    ).train()
    ones = torch.ones(4, 5, WIDTH)
    read = built.read(ones, None).hidden_BLD
    assert torch.equal(read, read[:, :1].expand_as(read))
    assert set(read.flatten().tolist()) == {0.0, 2.0}
    assert torch.equal(built.eval().read(ones, None).hidden_BLD, ones)


def test_an_untied_embedding_has_widths_of_its_own() -> None:
    embedding = UntiedEmbedding(10, 4, 7)
    built = SequenceModel(embedding, [LSTMLayer(4, 7)])
    assert built(tokens(2, 3) % 10).logits.shape == (2, 3, 10)
    assert (embedding.vocabulary_size, embedding.d_model) == (10, 4)
    with pytest.raises(ValueError, match="vocabulary_size must be at least 1, found 0"):
        UntiedEmbedding(0, 4)


def test_it_writes_text_like_a_language_model() -> None:
    built = model([GRULayer(WIDTH, WIDTH)])
    written = built.generate(tokens(2, 3), max_new_tokens=4, temperature=0.0)
    assert written.shape == (2, 7)
    assert torch.equal(written[:, -1], built.eval()(written[:, :-1]).logits[:, -1].argmax(-1))
    assert torch.equal(written[:, :3], tokens(2, 3))


def test_what_belongs_to_another_model_is_named() -> None:
    built = model([GRULayer(WIDTH, WIDTH)])
    with pytest.raises(ValueError, match="the memory has 2 tensors"):
        built(tokens(1, 3), memory=model([LSTMLayer(WIDTH, WIDTH)])(tokens(1, 3)).memory)
    with pytest.raises(ValueError, match="token id 13 is outside the vocabulary of 13"):
        built(tokens(1, 3).clamp(min=13))


def test_impossible_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="layer 0 has 5 features out and layer 1 reads 6"):
        SequenceModel(TiedEmbedding(3, 4), [GRULayer(4, 5), GRULayer(6, 4)])
    with pytest.raises(ValueError, match="layer 1 has 5 features out and the softmax reads 4"):
        SequenceModel(TiedEmbedding(3, 4), [GRULayer(4, 6), GRULayer(6, 5)])
    with pytest.raises(ValueError, match="at least 1 layer"):
        SequenceModel(TiedEmbedding(3, 4), [])
    with pytest.raises(ValueError, match="hidden_dropout must be at least 0 and below 1, found 1"):
        SequenceModel(TiedEmbedding(3, 4), [GRULayer(4, 4)], hidden_dropout=1)
    with pytest.raises(ValueError, match="memory_length must be at least 0, found -1"):
        SequenceModel(TiedEmbedding(3, 4), [GRULayer(4, 4)], memory_length=-1)
    with pytest.raises(ValueError, match="gates must be one of 'unit', 'slot', found 'units'"):
        RelationalMemoryLayer(4, 4, gates="units")  # pyright: ignore[reportArgumentType]


def parameters(layers: Sequence[Layer]) -> int:
    return sum(parameter.numel() for layer in layers for parameter in layer.parameters())


def test_published_sizes() -> None:
    """Penn Treebank: 10,000 words, softmax tied to the embedding. The published ones have output biases besides."""
    with torch.device("meta"):
        assert (
            10_000 * 400 + parameters(LSTM(d_model=400, hidden=1150, layers=3).build_layers()) == 24_221_600 - 10_000
        )  # 24M
        assert 10_000 * 400 + parameters(QRNN(d_model=400, hidden=1550, layers=4).build_layers()) == 24_010_150  # 24M
        assert 10_000 * 850 + parameters([DARTSLayer(850, 850)]) == 22_950_000  # 23M
        assert 10_000 * 740 + parameters([NASLayer(740, 740)] * 2) == pytest.approx(25e6, rel=5e-3)  # 25M


@pytest.mark.parametrize("family", FAMILIES)
def test_a_memory_of_another_batch_is_named(family: str) -> None:
    model = SequenceModel(TiedEmbedding(VOCABULARY, WIDTH), FAMILIES[family]()).eval()
    tokens = torch.arange(8).view(2, 4)
    memory = model(tokens[:1]).memory
    with pytest.raises(ValueError, match="memory has batch size 1, the tokens have 2"):
        model(tokens, memory=memory)
