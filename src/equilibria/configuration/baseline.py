"""The `[model.baseline]` section of a recipe: one of the sequence models that equilibrium models are compared with."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from cyclopts import Parameter

from equilibria.configuration.options import Options, foreign_options, is_given, missing_options
from equilibria.configuration.values import Count, Fraction, Layers, NonNegative, Ratio

_STACK = ("layers", "hidden_dropout")

BASELINE_OPTIONS: Options = {
    "lstm": ("hidden", *_STACK, "weight_dropout"),
    "variational_lstm": ("hidden", *_STACK, "cell_dropout", "recurrent_dropout"),
    "gru": ("hidden", *_STACK, "weight_dropout"),
    "qrnn": ("hidden", *_STACK, "window", "weight_dropout"),
    "tcn": ("hidden", *_STACK, "kernel_size", "dropout"),
    "gated_convolution": ("kernel_sizes", "channels", "hidden_dropout", "dropout"),
    "relational_memory": ("hidden", *_STACK, "slots", "heads", "head_size", "gates", "mlp_layers"),
    "darts": ("hidden", *_STACK, "search", "cell_dropout", "recurrent_dropout"),
    "nas": ("hidden", *_STACK),
    "universal_transformer": ("heads", "inner", "dropout", "max_steps", "threshold", "ponder_weight"),
}
"""Options that each baseline takes beyond the width of its embedding."""

_NEEDED: Options = {
    **dict.fromkeys(BASELINE_OPTIONS, ("d_model", "hidden")),
    "tcn": ("d_model", "hidden", "kernel_size"),
    "gated_convolution": ("d_model", "kernel_sizes", "channels"),
    "universal_transformer": ("d_model", "heads", "inner"),
}

ENCODER_DECODER = "universal_transformer"
"""The baseline that reads a source and writes a target; all others read on from segment to segment."""


@dataclass(frozen=True, kw_only=True)
class BaselineRecipe:
    """Another sequence model in the place of cell and depth."""

    kind: (
        Literal["lstm", "variational_lstm", "gru", "qrnn", "tcn", "gated_convolution"]
        | Literal["relational_memory", "darts", "nas", "universal_transformer"]
        | None
    ) = None
    """Which; left out: none. The universal_transformer is an encoder and a decoder."""
    d_model: Count | None = None
    """Features of an embedded token."""
    hidden: Count | None = None
    """Units of a layer; of the last one d_model, unless the embedding is untied."""
    layers: Layers | None = None
    """Layers; left out: 1."""
    weight_dropout: Fraction | None = None
    """Probability of dropping an entry of the recurrent matrix, for qrnn of the convolution; for lstm, gru and qrnn."""
    window: Count | None = None
    """Tokens that the first layer's convolution sees, the others' one; for qrnn; left out: 2."""
    kernel_size: Count | None = None
    """Taps of a convolution; for tcn, whose dilation doubles from layer to layer."""
    kernel_sizes: Annotated[tuple[Count, ...], Parameter(json_list=False)] = ()
    """Taps of each layer's convolution; for gated_convolution."""
    channels: Annotated[tuple[Count, ...], Parameter(json_list=False)] = ()
    """Channels of each layer; for gated_convolution."""
    dropout: Fraction | None = None
    """Probability of dropping a channel; for tcn and gated_convolution; of a sublayer's output; for
    universal_transformer; left out: 0."""
    slots: Count | None = None
    """Rows of the memory; for relational_memory; left out: 4."""
    heads: Count | None = None
    """Attention heads; for relational_memory (left out: 4) and universal_transformer."""
    head_size: Count | None = None
    """Features of a head; for relational_memory; left out: 64."""
    gates: Literal["unit", "slot"] | None = None
    """A gate per feature or per slot; for relational_memory; left out: unit."""
    mlp_layers: Layers | None = None
    """Layers of the network after the attention; for relational_memory; left out: 2."""
    search: Literal["first_order", "second_order"] | None = None
    """Which of the published cells; for darts; left out: second_order."""
    cell_dropout: Fraction | None = None
    """Probability of dropping a feature of a layer's input; for darts and, per gate, variational_lstm; left out: 0."""
    recurrent_dropout: Fraction | None = None
    """Probability of dropping a feature of what a node reads (darts), or of the last hidden state in each gate
    (variational_lstm); left out: 0."""
    hidden_dropout: Fraction | None = None
    """Probability of dropping a feature between layers, for all tokens of a row alike; but for universal_transformer;
    left out: 0."""
    inner: Count | None = None
    """Width of the feed-forward layers; for universal_transformer."""
    max_steps: Count | None = None
    """Applications at most, of the encoder and of the decoder; for universal_transformer; left out: 8."""
    threshold: Ratio | None = None
    """Sum of halting probabilities at which a token halts; for universal_transformer; left out: 0.99."""
    ponder_weight: NonNegative | None = None
    """Weight, in the training loss, of the steps that are taken; for universal_transformer; left out: 1e-3."""


def baseline_problems(baseline: BaselineRecipe, untied: bool) -> Iterator[str]:
    """What is wrong with the section; each line begins with a key.

    Args:
        baseline: the section.
        untied: whether the softmax has a matrix of its own.
    """
    key = "model.baseline"
    if baseline.kind is None:
        for entry in fields(baseline):
            if is_given(getattr(baseline, entry.name)):
                yield f"{key}.{entry.name} has no use without {key}.kind"
        return
    yield from foreign_options(key, baseline, "kind", BASELINE_OPTIONS)
    yield from missing_options(key, baseline, "kind", _NEEDED)
    sizes, channels = baseline.kernel_sizes, baseline.channels
    if len(sizes) != len(channels):
        yield f"{key}.kernel_sizes has {len(sizes)} entries and {key}.channels {len(channels)}: expected as many"
    if channels and not untied and channels[-1] != baseline.d_model:
        expected = f"expected d_model, {baseline.d_model}, which the softmax reads unless the embedding is untied"
        yield f"{key}.channels ends in {channels[-1]}: {expected}"
