"""The `[model.baseline]` section of a recipe: one of the sequence models that equilibrium models are compared with."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from cyclopts import Parameter

from equilibria.configuration.options import Options, foreign_options, is_given, missing_options
from equilibria.configuration.values import Count, Fraction, NonNegative

REGULARISATION = {
    "token_dropout": "tokens",
    "input_dropout": "inputs",
    "hidden_dropout": "hidden",
    "output_dropout": "output",
    "activation_penalty": "activation",
    "slowness_penalty": "slowness",
}
"""The options that all baselines take, by their names in `Regularisation`."""

BASELINE_OPTIONS: Options = {
    "lstm": ("hidden", "layers", "weight_dropout"),
    "gru": ("hidden", "layers", "weight_dropout"),
    "qrnn": ("hidden", "layers", "window", "weight_dropout"),
    "tcn": ("hidden", "layers", "kernel_size", "dropout"),
    "gated_convolution": ("kernel_sizes", "channels", "dropout"),
    "relational_memory": ("hidden", "layers", "slots", "heads", "head_size", "gates"),
    "darts": ("hidden", "layers", "search", "cell_dropout", "node_dropout"),
    "nas": ("hidden", "layers"),
}
"""Options that each baseline takes beyond the width of its embedding and the regularisation."""

_NEEDED: Options = {
    kind: ("d_model", "kernel_sizes", "channels")
    if kind == "gated_convolution"
    else ("d_model", "hidden", *(["kernel_size"] if kind == "tcn" else []))
    for kind in BASELINE_OPTIONS
}


@dataclass(frozen=True, kw_only=True)
class BaselineRecipe:
    """Another sequence model in the place of cell and depth."""

    kind: Literal["lstm", "gru", "qrnn", "tcn", "gated_convolution", "relational_memory", "darts", "nas"] | None = None
    """Which; left out: none."""
    d_model: Count | None = None
    """Features of an embedded token."""
    hidden: Count | None = None
    """Units of a layer; of the last one d_model, unless the embedding is untied."""
    layers: Count | None = None
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
    """Probability of dropping a channel; for tcn and gated_convolution; left out: 0."""
    slots: Count | None = None
    """Rows of the memory; for relational_memory; left out: 4."""
    heads: Count | None = None
    """Attention heads; for relational_memory; left out: 4."""
    head_size: Count | None = None
    """Features of a head; for relational_memory; left out: 64."""
    gates: Literal["unit", "slot"] | None = None
    """A gate per feature or per slot; for relational_memory; left out: unit."""
    search: Literal["first_order", "second_order"] | None = None
    """Which of the published cells; for darts; left out: second_order."""
    cell_dropout: Fraction | None = None
    """Probability of dropping a feature of a layer's input; for darts; left out: 0."""
    node_dropout: Fraction | None = None
    """Probability of dropping a feature of what a node reads; for darts; left out: 0."""
    token_dropout: Fraction | None = None
    """Probability of dropping a token of the vocabulary wherever it occurs; left out, like what follows: 0."""
    input_dropout: Fraction | None = None
    """Probability of dropping a feature of the embedded tokens."""
    hidden_dropout: Fraction | None = None
    """Probability of dropping a feature between layers."""
    output_dropout: Fraction | None = None
    """Probability of dropping a feature of the last layer."""
    activation_penalty: NonNegative | None = None
    """Weight of the mean square of the dropped output."""
    slowness_penalty: NonNegative | None = None
    """Weight of the mean square of the output's change from token to token."""


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
