"""Every option of a baseline reaches its layers, and one out of its range is refused."""

from functools import partial
from typing import Any

import pytest
import torch

from equilibria.models import Regularisation
from equilibria.nn import TiedEmbedding, UntiedEmbedding
from equilibria.paper.baselines import (
    DARTS,
    GRU,
    LSTM,
    NAS,
    QRNN,
    TCN,
    GatedConvolution,
    LayeredBaseline,
    RelationalMemory,
    SequenceModel,
    VariationalLSTM,
)
from equilibria.paper.universal_transformer import UniversalTransformerModel

UNTIED = partial(UntiedEmbedding)
STACK = {"d_model": 16, "hidden": 9}
NEEDED: dict[type[LayeredBaseline], dict[str, Any]] = {
    **dict.fromkeys((LSTM, VariationalLSTM, GRU, QRNN, RelationalMemory, DARTS, NAS), STACK),
    TCN: {**STACK, "kernel_size": 2},
    GatedConvolution: {"d_model": 16, "kernel_sizes": (2,), "channels": (16,)},
}
OTHER: dict[type[LayeredBaseline], dict[str, Any]] = {
    LSTM: {"weight_dropout": 0.25},
    VariationalLSTM: {"cell_dropout": 0.25, "recurrent_dropout": 0.125},
    GRU: {"weight_dropout": 0.25},
    QRNN: {"window": 4, "weight_dropout": 0.25},
    TCN: {"kernel_size": 3, "dropout": 0.25},
    GatedConvolution: {"kernel_sizes": (3,), "channels": (8,), "dropout": 0.25},
    RelationalMemory: {"slots": 2, "heads": 2, "head_size": 8, "gates": "slot", "mlp_layers": 3},
    DARTS: {"search": "first_order", "cell_dropout": 0.25, "recurrent_dropout": 0.125},
    NAS: {},
}
CASES = [
    (kind, name, value)
    for kind, options in OTHER.items()
    for name, value in {**({} if kind is GatedConvolution else {"hidden": 8, "layers": 2}), **options}.items()
]


def built(kind: type[LayeredBaseline], **options: Any) -> SequenceModel:
    torch.manual_seed(0)
    return kind(**{**NEEDED[kind], "memory_length": 1, **options}).build(11)


def described(model: SequenceModel) -> list[dict[str, object]]:
    return [
        {name: value for name, value in vars(layer).items() if not name.startswith("_")}
        | {name: tensor.shape for name, tensor in layer.state_dict().items()}
        for layer in model.layers
    ]


@pytest.mark.parametrize(("kind", "name", "value"), CASES)
def test_an_option_changes_the_layers(kind: type[LayeredBaseline], name: str, value: Any) -> None:
    model = built(kind, embedding=UNTIED, **{name: value})
    assert described(model) != described(built(kind, embedding=UNTIED))
    tokens = torch.arange(10).reshape(2, 5)
    output = model(tokens, tokens)
    assert torch.isfinite(output.loss)
    assert output.logits.shape == (2, 5, 11)


@pytest.mark.parametrize("kind", NEEDED)
def test_a_tied_baseline_ends_in_the_width_of_the_embedding(kind: type[LayeredBaseline]) -> None:
    model, tokens = built(kind), torch.arange(10).reshape(2, 5)
    assert isinstance(model.embedding, TiedEmbedding)
    assert model(tokens).hidden.shape == (2, 5, 16)
    assert model(tokens).memory is not None


def test_what_is_around_the_layers_is_the_models() -> None:
    regularisation = Regularisation(output_dropout=0.25)
    model = built(LSTM, regularisation=regularisation, memory_length=0, hidden_dropout=0.25)
    assert (model.regularisation, model.memory_length, model.hidden_dropout) == (regularisation, 0, 0.25)


@pytest.mark.parametrize(
    ("kind", "options", "problem"),
    [
        (LSTM, {"d_model": 0}, "d_model must be at least 1, found 0"),
        (NAS, {"hidden": 0}, "hidden must be at least 1, found 0"),
        (LSTM, {"layers": 0}, "layers must be from 1 to 1000, found 0"),
        (LSTM, {"layers": 1001}, "layers must be from 1 to 1000, found 1001"),
        (LSTM, {"memory_length": -1}, "memory_length must be at least 0, found -1"),
        (LSTM, {"hidden_dropout": 1.0}, "model: hidden_dropout must be at least 0 and below 1, found 1.0"),
        *[
            (kind, {name: 1.0}, f"model: {name} must be at least 0 and below 1, found 1.0")
            for kind, options in OTHER.items()
            for name in options
            if name.endswith("dropout")
        ],
        (TCN, {"kernel_size": 0}, "model: kernel_size must be at least 1"),
        (QRNN, {"window": 0}, "model: window must be at least 1"),
        *[(RelationalMemory, {name: 0}, f"{name} must be") for name in ("slots", "heads", "head_size", "mlp_layers")],
        (RelationalMemory, {"gates": "row"}, "gates must be one of 'unit', 'slot', found 'row'"),
        (DARTS, {"search": "third"}, "search must be one of 'first_order', 'second_order'"),
        (GatedConvolution, {"channels": ()}, "kernel_sizes has 1 entries and channels 0"),
        (GatedConvolution, {"channels": (8,)}, "channels ends in 8: expected d_model, 16"),
        (GatedConvolution, {"kernel_sizes": (0,)}, "must be at least 1"),
    ],
)
def test_an_option_out_of_its_range_is_refused(
    kind: type[LayeredBaseline], options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        kind(**{**NEEDED[kind], **options}).check()


def test_options_of_the_universal_transformer() -> None:
    usual = UniversalTransformerModel(d_model=16, heads=4, inner=12)
    other = UniversalTransformerModel(
        d_model=16, heads=2, inner=24, dropout=0.25, max_steps=3, threshold=0.5, ponder_weight=0.25
    )
    model = other.build(11)
    assert (usual.build(11).dropout, model.dropout) == (0.0, 0.25)
    for depth in (model.encoder, model.decoder):
        assert (depth.max_steps, depth.threshold, depth.ponder_weight) == (3, 0.5, 0.25)
    for block in (model.read, model.write):
        assert (block.self_attention.num_heads, block.feed_forward.expand.out_features) == (2, 24)
    assert model.encoder is not model.decoder
    with pytest.raises(ValueError, match="neither memory_length nor regularisation"):
        UniversalTransformerModel(d_model=16, heads=4, inner=12, memory_length=1)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"heads": 3}, "model: d_model must be a multiple of heads, found 16 and 3 heads"),
        ({"heads": 0}, "model: heads must be at least 1, found 0"),
        ({"inner": 0}, "model: inner must be at least 1, found 0"),
        ({"dropout": 1.0}, "model: dropout must be at least 0 and below 1, found 1.0"),
        ({"max_steps": 0}, "model: max_steps must be at least 1, found 0"),
        ({"threshold": 7.0}, "model: threshold must be above 0 and at most 1, found 7.0"),
        ({"ponder_weight": -1.0}, "model: ponder_weight must be at least 0, found -1.0"),
    ],
)
def test_a_universal_transformer_is_checked_before_its_data_is_read(options: dict[str, Any], problem: str) -> None:
    model = UniversalTransformerModel(**{"d_model": 16, "heads": 4, "inner": 12, **options})
    with pytest.raises(ValueError, match=problem):
        model.check()


class Doubled(UntiedEmbedding):
    """An untied embedding of one's own."""


class Faulty(TiedEmbedding):
    def __init__(self, vocabulary_size: int, d_model: int) -> None:
        raise KeyError("rows")


def test_an_embedding_of_one_s_own_is_made_as_ours_are() -> None:
    for kind in (LSTM, GatedConvolution):
        model = built(kind, embedding=partial(Doubled), **({"channels": (9,)} if kind is GatedConvolution else {}))
        assert isinstance(model.embedding, Doubled)
        assert (model.embedding.d_model, model.embedding.d_output) == (16, 9)
    with pytest.raises(ValueError, match=r"model\.embedding: KeyError: 'rows'"):
        built(LSTM, embedding=partial(Faulty))
