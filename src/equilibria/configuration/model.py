"""The `[model]` section of a recipe: an embedding, a cell at a depth, and the layers around them; or a baseline."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Annotated, Literal

from cyclopts import Parameter

from equilibria.cells.transformer_xl import NormPosition
from equilibria.configuration.baseline import ENCODER_DECODER, BaselineRecipe, baseline_problems
from equilibria.configuration.depth import DepthRecipe, depth_problems
from equilibria.configuration.options import Options, foreign_options
from equilibria.configuration.values import Count, Fraction, Layers, LayersOrNone, Natural, NonNegative, Positive
from equilibria.nn.attention import Positions
from equilibria.nn.feed_forward import Activation
from equilibria.nn.normalisation import Normalisation
from equilibria.nn.norms import Norm

EMBEDDING_OPTIONS: Options = {
    "tied": (),
    "adaptive": ("cutoffs", "div_val", "d_embed", "untied_projections", "initialisation", "tied_tables"),
    "untied": ("cutoffs", "d_embed"),
}
"""Options that each embedding takes."""

_PUBLISHED = ("heads", "inner", "attention_dropout", "window", "normalisation", "initial_std")

CELL_OPTIONS: Options = {
    "contractive": (
        *("heads", "inner", "blocks", "norm", "positions", "query_key_norm", "query_key_gain", "key_value_heads"),
        *("activation", "normalisation", "carry", "injection_norm"),
    ),
    "post_norm": (*_PUBLISHED, "norm_position", "affine"),
    "three_block": (*_PUBLISHED, "blocks"),
    "trellis": ("hidden", "output_size", "dilation", "weight_dropout", "normalisation", "recurrent_std", "scan"),
}
"""Options that each cell takes beyond its width and its dropout."""

EXPLICIT_CELLS = ("contractive", "post_norm")
"""Cells that have a form without injection: an ordinary layer."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingRecipe:
    """Tokens in and out."""

    kind: Literal["tied", "adaptive", "untied"] = "tied"
    """One matrix for both, fewer features for rarer tokens (with a bias in the softmax), or a matrix for each."""
    cutoffs: Annotated[tuple[Count, ...], Parameter(json_list=False)] = ()
    """First token of each cluster but the first; for adaptive, and for the softmax of untied; left out: one cluster."""
    div_val: Count | None = None
    """By what the features of a cluster are fewer than those of the one before; for adaptive; left out: 1."""
    d_embed: Count | None = None
    """Features of a row (of the first cluster), projected to the model's width; for adaptive and untied; left out: as
    many."""
    untied_projections: Natural | None = None
    """Clusters, from the first, with a projection of their own in the softmax; for adaptive; left out: 1."""
    initialisation: Literal["scaled", "published"] | None = None
    """Scores of variance 1, or Transformer-XL's small normal weights; for adaptive; left out: scaled."""
    tied_tables: bool | None = None
    """Whether the softmax has the embedding's tables; for adaptive; left out: yes."""


@dataclass(frozen=True, kw_only=True)
class CellRecipe:
    """The map that is iterated."""

    kind: Literal["contractive", "post_norm", "three_block", "trellis"] = "contractive"
    """The default cell, whose carry contracts; those of 2019 and of 2023; TrellisNet's."""
    d_model: Count = 128
    """Width; for transformers a multiple of the heads, and of twice the heads with rotary positions."""
    heads: Count | None = None
    """Attention heads; for all but trellis; left out: 4."""
    inner: Count | None = None
    """Width of the feed-forward layer; for all but trellis; left out: 512, for three_block 256."""
    blocks: Layers | None = None
    """Transformer blocks in one application; for contractive (left out: 1) and three_block (left out: 3)."""
    dropout: Fraction = 0.0
    """Probability of dropping; a mask is drawn once per solve."""
    attention_dropout: Fraction | None = None
    """Probability of dropping an attention probability; for post_norm and three_block; left out: 0."""
    window: Count | None = None
    """Tokens that a token sees at most, itself among them; for post_norm and three_block; left out: all."""
    norm: Norm | None = None
    """Layer norm or root mean square; for contractive; left out: layer."""
    norm_position: NormPosition | None = None
    """Norms after or before attention and feed-forward layer; for post_norm; left out: post."""
    affine: bool | None = None
    """Whether layer norms have a gain and a bias; for post_norm; left out: no."""
    positions: Positions | None = None
    """How attention knows of positions; for contractive; left out: rotary."""
    query_key_norm: bool | None = None
    """Whether queries and keys are normed; for contractive; left out: no."""
    query_key_gain: Positive | None = None
    """How many times larger than usual queries and keys are at the start; for contractive; left out: 1."""
    key_value_heads: Count | None = None
    """Heads of keys and values, a divisor of the heads; for contractive; left out: as many."""
    activation: Activation | None = None
    """Of the feed-forward layer; for contractive; left out: relu."""
    normalisation: Normalisation | None = None
    """Of the weights; left out: none."""
    carry: Fraction | None = None
    """Share of the carried state at the start; for contractive; left out: 0.3."""
    injection_norm: bool | None = None
    """Whether the injection is normed; for contractive; left out: no."""
    initial_std: Positive | None = None
    """Deviation of normal initial weights; for post_norm and three_block; left out: PyTorch's own initialisation."""
    hidden: Natural | None = None
    """Features of the state besides those that are the output; for trellis; left out: 320."""
    output_size: Count | None = None
    """Features of the output; for trellis; left out: d_model, which any but an untied embedding needs."""
    dilation: Count | None = None
    """How far back the earlier tap looks; for trellis; left out: 1."""
    weight_dropout: Fraction | None = None
    """Probability of dropping an entry of the recurrent weight; for trellis; left out: 0."""
    recurrent_std: NonNegative | None = None
    """Deviation of the initial recurrent weight and bias; for trellis; left out: 0.01."""
    scan: bool | None = None
    """Solve the recurrence of the memory cell in every evaluation; for trellis; left out: no."""


REGULARISATION = {
    "token_dropout": "tokens",
    "input_dropout": "inputs",
    "output_dropout": "output",
    "activation_penalty": "activation",
    "slowness_penalty": "slowness",
}
"""The options of the section `[model.regularisation]`, by their names in `Regularisation`."""


@dataclass(frozen=True, kw_only=True)
class RegularisationRecipe:
    """Dropouts and penalties around the layers; a mask is the same for all tokens of a row."""

    token_dropout: Fraction | None = None
    """Probability of dropping a token of the vocabulary wherever it occurs; left out, like what follows: 0."""
    input_dropout: Fraction | None = None
    """Probability of dropping a feature of the embedded tokens."""
    output_dropout: Fraction | None = None
    """Probability of dropping a feature of the final states."""
    activation_penalty: NonNegative | None = None
    """Weight of the mean square of the dropped final states."""
    slowness_penalty: NonNegative | None = None
    """Weight of the mean square of the final states' change from token to token."""


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """A cell and a depth, and what is around them."""

    embedding: Annotated[EmbeddingRecipe, Parameter(group="model.embedding")] = field(default_factory=EmbeddingRecipe)
    """Tokens in and out."""
    cell: Annotated[CellRecipe, Parameter(group="model.cell")] = field(default_factory=CellRecipe)
    """The map that is iterated."""
    depth: Annotated[DepthRecipe, Parameter(group="model.depth")] = field(default_factory=DepthRecipe)
    """How often it is applied."""
    baseline: Annotated[BaselineRecipe, Parameter(group="model.baseline")] = field(default_factory=BaselineRecipe)
    """Another sequence model in the place of cell and depth."""
    regularisation: Annotated[RegularisationRecipe, Parameter(group="model.regularisation")] = field(
        default_factory=RegularisationRecipe
    )
    """Dropouts and penalties around the layers."""
    memory_length: Natural = 0
    """Tokens of the segments before that a segment sees; of a baseline: 0 for none, anything else for its state."""
    dropout: Fraction | None = None
    """Probability of dropping a feature of an embedded token, each token on its own; left out: that of the cell."""
    chunk_length: Count | None = None
    """Tokens that are solved together; left out: a whole segment."""
    prelude_layers: LayersOrNone | None = None
    """Explicit layers, of the cell's kind, between the embedding and the depth; left out: none."""
    coda_layers: LayersOrNone | None = None
    """Explicit layers, of the cell's kind, after the depth; left out: none."""
    coda_inner: Count | None = None
    """Features inside the feed-forward networks of those layers; left out: as many as in the cell."""
    auxiliary_weight: NonNegative | None = None
    """Weight of the mean loss of the states on the way (model.depth.states_every); left out: 0."""


def model_problems(model: ModelRecipe) -> Iterator[str]:
    """What is wrong with the section; each line begins with a key."""
    yield from foreign_options("model.embedding", model.embedding, "kind", EMBEDDING_OPTIONS)
    if model.baseline.kind is not None:
        yield from _beside_a_baseline(model)
        yield from baseline_problems(model.baseline, model.embedding.kind == "untied")
        return
    yield from baseline_problems(model.baseline, False)
    yield from _cell_problems(model.cell, model.embedding.kind)
    yield from depth_problems(model.depth)
    if model.cell.kind not in EXPLICIT_CELLS:
        explicit = " and ".join(f'"{kind}"' for kind in EXPLICIT_CELLS)
        of_cell = f"has no form without injection, as cells of kind {explicit} have"
        for name in ("prelude_layers", "coda_layers"):
            if getattr(model, name):
                yield f'model.{name}: a cell of kind "{model.cell.kind}" {of_cell}'
        if model.depth.kind == "halting":
            yield f'model.depth.kind = "halting": a cell of kind "{model.cell.kind}" {of_cell}'
    if model.coda_inner is not None and not model.coda_layers:
        yield f"model.coda_inner = {model.coda_inner} has no use without model.coda_layers; leave it out"
    if model.depth.shared_biases and (model.cell.kind != "post_norm" or model.depth.tied):
        yield (
            'model.depth.shared_biases: expected model.cell.kind = "post_norm", whose attention has such biases, '
            "and layers that are not tied"
        )
    if model.chunk_length is not None and not model.memory_length:
        yield "model.memory_length = 0: chunks (model.chunk_length) see each other through a memory; give 1 or more"
    if model.auxiliary_weight and model.depth.states_every is None:
        yield "model.auxiliary_weight has no use without model.depth.states_every"


def _beside_a_baseline(model: ModelRecipe) -> Iterator[str]:
    taken = {"embedding", "baseline"}
    if model.baseline.kind != ENCODER_DECODER:
        taken |= {"memory_length", "regularisation"}
    for entry in fields(model):
        useless = entry.name not in taken and getattr(model, entry.name) != getattr(ModelRecipe(), entry.name)
        if useless:
            yield f'model.{entry.name} has no use beside model.baseline.kind = "{model.baseline.kind}"; leave it out'


def _cell_problems(cell: CellRecipe, embedding: str) -> Iterator[str]:
    for problem in foreign_options("model.cell", cell, "kind", CELL_OPTIONS):
        # Recipes of a time when every cell had the key say it of this one too.
        if not (cell.kind == "post_norm" and problem.startswith("model.cell.blocks:")):
            yield problem
    if cell.kind == "post_norm" and cell.blocks not in (None, 1):
        yield f'model.cell.blocks = {cell.blocks}: expected 1, the only number that kind "post_norm" has'
    if cell.kind == "trellis":
        if embedding != "untied" and cell.output_size not in (None, cell.d_model):
            yield (
                f"model.cell.output_size = {cell.output_size}: expected model.cell.d_model, {cell.d_model}, "
                f'which an embedding of kind "{embedding}" reads'
            )
        return
    heads = cell.heads or 4
    rotary = cell.kind == "contractive" and cell.positions in (None, "rotary")
    if cell.d_model % (2 * heads if rotary else heads):
        multiple = f"a multiple of {'twice ' if rotary else ''}model.cell.heads, {2 * heads if rotary else heads}"
        yield f"model.cell.d_model = {cell.d_model}: expected {multiple}"
