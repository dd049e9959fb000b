"""From the `[model.baseline]` section of a recipe to the layers it names."""

from itertools import pairwise
from typing import assert_never

from equilibria.configuration.baseline import BASELINE_OPTIONS, BaselineRecipe
from equilibria.configuration.options import given_options
from equilibria.paper.baselines import (
    DARTS_FIRST_ORDER,
    DARTS_SECOND_ORDER,
    DARTSLayer,
    GRULayer,
    Layer,
    LSTMLayer,
    NASLayer,
    QRNNLayer,
    RelationalMemoryLayer,
    VariationalLSTMLayer,
    gated_blocks,
    temporal_blocks,
)

_GRAPHS = {"first_order": DARTS_FIRST_ORDER, "second_order": DARTS_SECOND_ORDER}
_OF_ALL = {"hidden", "layers", "hidden_dropout"}
_LAYER_NAMES = {"cell_dropout": "input_dropout"}
"""Options that have another name in the classes of the layers."""


def build_layers(baseline: BaselineRecipe, tied: bool) -> list[Layer]:
    """The layers of a baseline: as many units in the last as the embedding has features, where the two are tied.

    Raises:
        ValueError: numbers that a layer cannot have.
    """
    d_model, hidden, layers = baseline.d_model, baseline.hidden, baseline.layers or 1
    assert d_model is not None
    assert baseline.kind is not None
    options = given_options(baseline, set(BASELINE_OPTIONS[baseline.kind]) - _OF_ALL)
    if baseline.kind == "gated_convolution":
        pairs = tuple(zip(options.pop("kernel_sizes"), options.pop("channels"), strict=True))
        return [*gated_blocks(d_model, pairs, **options)]
    assert hidden is not None  # checked
    last = d_model if tied else hidden
    if baseline.kind == "tcn":
        return [*temporal_blocks(d_model, hidden, last, layers, **options)]
    options = {_LAYER_NAMES.get(name, name): value for name, value in options.items()}
    widths = pairwise([d_model, *[hidden] * (layers - 1), last])
    match baseline.kind:
        case "lstm":
            return [LSTMLayer(*width, **options) for width in widths]
        case "variational_lstm":
            return [VariationalLSTMLayer(*width, **options) for width in widths]
        case "gru":
            return [GRULayer(*width, **options) for width in widths]
        case "qrnn":
            first = options.pop("window", 2)
            return [QRNNLayer(*width, 1 if number else first, **options) for number, width in enumerate(widths)]
        case "relational_memory":
            return [RelationalMemoryLayer(*width, **options) for width in widths]
        case "darts":
            graph = _GRAPHS[options.pop("search", "second_order")]
            return [DARTSLayer(*width, graph, **options) for width in widths]
        case "nas":
            return [NASLayer(*width) for width in widths]
        case "universal_transformer":
            raise AssertionError("an encoder-decoder is no stack of layers")
        case _:
            assert_never(baseline.kind)
