"""Importers of published DEQ transformers: TorchDEQ's deq-lm, and TorchDEQ's deq-seq with the DEQ-Transformer of 2021.

Their checkpoints (locuslab/deq, 2021, and TorchDEQ, 2023) share names, options and the embedding with its softmax; only
the cells differ. Everything that a file does not say is in `PublishedOptions`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from equilibria.cells import TransformerXLCell
from equilibria.cells.transformer_xl import NormPosition
from equilibria.data import FolderText, Tokenizer, word_tokenizer
from equilibria.data.tokenizers import END
from equilibria.depths import Depth, Equilibrium, UnrolledDepth
from equilibria.errors import UserError
from equilibria.gradients import Implicit
from equilibria.interop.imported import Imported
from equilibria.interop.state_dict import StateDict, Weight
from equilibria.models import LanguageModelRecipe
from equilibria.nn import AdaptiveEmbedding
from equilibria.solvers import Anderson

WIKITEXT_103_CUTOFFS = (20_000, 40_000, 200_000)
PUBLISHED_ITERATIONS = 12
MOST_ITERATIONS = 400
_SEGMENT_LENGTH = 150
_HEADS = 10

_LAYERS = {
    "attention.queries_keys_values": "qkv_net",
    "attention.distances": "r_net",
    "attention.output": "o_net",
    "feed_forward.expand": "ff1_net",
    "feed_forward.contract": "ff2_net",
}
"""The five weights of a block that may be normalised: our names and theirs."""

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class PublishedOptions:
    """What a published checkpoint does not say.

    Attributes:
        heads: attention heads; None for what the biases of attention say, or else 10 as published.
        memory_length: tokens of earlier segments that are attended to.
        window: tokens that a token sees at most, including itself.
        cutoffs: first token of each cluster but the first, where all clusters share one table (`div_val` 1); None for
            those published for WikiText-103.
    """

    heads: int | None = None
    memory_length: int = 150
    window: int = 1000
    cutoffs: tuple[int, ...] | None = None


def import_torchdeq_lm(state: StateDict, options: PublishedOptions, iterations: int = PUBLISHED_ITERATIONS) -> Imported:
    """TorchDEQ's deq-lm (Geng and Kolter 2023, arXiv:2310.18605): a pre-norm cell of several blocks.

    It applies the cell `iterations` times from zero, as published: the state is not at a fixed point then. Raises a
    UserError that names a tensor that is unknown, missing or of another size.
    """
    blocks = max(1, state.count("func.dec_attn."))
    prefixes = [(f"func.dec_attn.{i}", f"func.pos_ff.{i}") for i in range(blocks)]
    norms = {"attention_norm": "{0}.ln1", "attention.output_norm": "{0}.ln2", "feed_forward_norm": "{1}.ln"}
    options_2023 = {"norm_position": "pre", "affine": True, "interleaved": True, "output_norm": True}
    cell = partial(TransformerXLCell, blocks=blocks, **options_2023)
    return _imported("torchdeq-lm", state, options, prefixes, norms, cell, UnrolledDepth(iterations))


def import_torchdeq_seq(
    state: StateDict,
    options: PublishedOptions,
    iterations: int = MOST_ITERATIONS,
    norm_position: NormPosition = "post",
) -> Imported:
    """The DEQ-Transformer of 2021 (Bai, Koltun and Kolter, arXiv:2106.14342), and TorchDEQ's deq-seq: one block.

    It is solved until every token's residual is at 1e-6, where the published code stops at 1e-3 or after 30
    evaluations: figures then are those of the equilibrium, and do not depend on the solver.

    Args:
        iterations: evaluations of the cell at most.
        norm_position: where the cell's norms are, which their files do not say.

    Raises:
        UserError: names a tensor that is unknown, missing or of another size.
    """
    prefixes = [("func.dec_attn", "func.pos_ff")]
    # Layer norms without gain and bias leave nothing in the file.
    affine = "func.dec_attn.ln.weight" in state or "func.pos_ff.ln.weight" in state
    norms = {"attention_norm": "{0}.ln", "feed_forward_norm": "{1}.ln"} if affine else {}
    depth = Equilibrium(
        residual_penalty=0.0,
        solver=Anderson(tol=1e-3, max_evaluations=30, scope="prefix"),
        gradient=Implicit(),
        eval_solver=Anderson(tol=1e-6, max_evaluations=iterations, scope="prefix"),
    )
    cell = partial(TransformerXLCell, norm_position=norm_position, affine=affine)
    return _imported("torchdeq-seq", state, options, prefixes, norms, cell, depth)


def published_vocabulary(folder: Path) -> Tokenizer:
    """The vocabulary, which no checkpoint holds, counted as in Transformer-XL (Dai et al. 2019, arXiv:1901.02860).

    `<eos>` is 0; then come all words by falling frequency, ties in the order of first occurrence. The folder holds the
    training text, in the layout of `FolderText`.
    """
    counts: Counter[str] = Counter()
    for piece in FolderText(folder).pieces("train"):
        counts.update(piece.split())
    del counts[END]
    return word_tokenizer([END, *(word for word, _ in counts.most_common())])


def _imported(
    kind: str,
    state: StateDict,
    options: PublishedOptions,
    prefixes: Sequence[tuple[str, str]],
    norms: Mapping[str, str],
    cell: partial[Any],
    depth: Depth,
) -> Imported:
    """The model of a state dictionary.

    Args:
        prefixes: of the tensors of each block: attention and feed-forward.
        norms: our names of a block's layer norms, and theirs behind `{0}` or `{1}`, the block's prefixes.
    """
    sizes = _sizes(state, *prefixes[0], options)
    weights, taken = _injection(state, sizes.d_model), []
    for number, block in enumerate(prefixes):
        tensors, layers = _block(state, *block, sizes)
        taken.append(layers)
        for norm, theirs in norms.items():
            for part in ("weight", "bias"):
                tensors[f"{norm}.{part}"] = state.take(f"{theirs.format(*block)}.{part}", sizes.d_model)
        weights |= {f"cell.blocks.{number}.{name}": tensor for name, tensor in tensors.items()}
    matrices, normalised = _named_weights(taken)
    embedding, vocabulary_size, embedded = _embedding(state, sizes.d_model, options)
    left_out = _drop_frequencies(state, sizes.d_model)
    state.finish(kind)
    normalisation = "weight" if normalised else "none"
    model = LanguageModelRecipe(
        embedding=embedding,
        cell=partial(cell, **vars(sizes), window=options.window, normalisation=normalisation),
        depth=depth,
        memory_length=options.memory_length,
    )
    return Imported(state.source, model, vocabulary_size, weights | matrices | embedded, _SEGMENT_LENGTH, left_out)


@dataclass(frozen=True)
class _Sizes:
    d_model: int
    heads: int
    inner: int


def _sizes(state: StateDict, attention: str, feed_forward: str, options: PublishedOptions) -> _Sizes:
    """The sizes of a block; raises a UserError if they contradict each other or the options."""
    rows, d_model = state.weight_shape(f"{attention}.qkv_net")
    if rows != 3 * d_model:
        raise UserError(
            f"{state.source}: {attention}.qkv_net has {rows} rows and {d_model} columns; expected three times as many "
            f"rows as columns, for heads that split the width"
        )
    bias = state.shape(f"{attention}.r_w_bias")
    heads = (len(bias) == 2 and bias[0]) or options.heads or _HEADS
    if options.heads not in (None, heads):
        raise UserError(
            f"{state.source} has {heads} heads, as {attention}.r_w_bias says; found --heads {options.heads}"
        )
    if d_model % heads:
        raise UserError(f"{state.source}: a width of {d_model} is not a multiple of {heads} heads; give --heads")
    return _Sizes(d_model, heads, state.weight_shape(f"{feed_forward}.ff1_net")[0])


def _injection(state: StateDict, d_model: int) -> Tensors:
    """The layer that injects the embedded inputs: linear or a convolution of kernel 1, with or without a bias."""
    layer = "injection" if "injection.weight" in state else "inject_conv"
    weight = state.take(f"{layer}.weight", 3 * d_model, d_model)
    has_bias = f"{layer}.bias" in state
    bias = state.take(f"{layer}.bias", 3 * d_model) if has_bias else torch.zeros(3 * d_model)
    return {"cell.inject.weight": weight, "cell.inject.bias": bias}


def _block(state: StateDict, attention: str, feed_forward: str, sizes: _Sizes) -> tuple[Tensors, dict[str, Weight]]:
    """A block under our names: biases, and the five weights that may be normalised."""
    d_model, inner = sizes.d_model, sizes.inner
    heads = sizes.heads, d_model // sizes.heads
    shapes = {
        "attention.queries_keys_values": (3 * d_model, d_model),
        "attention.distances": (d_model, d_model),
        "attention.output": (d_model, d_model),
        "feed_forward.expand": (inner, d_model),
        "feed_forward.contract": (d_model, inner),
    }
    tensors, weights = {}, {}
    for ours, theirs in _LAYERS.items():
        layer = f"{attention if ours.startswith('attention') else feed_forward}.{theirs}"
        weights[ours] = state.take_weight(layer, *shapes[ours])
        if ours not in ("attention.queries_keys_values", "attention.distances"):
            tensors[f"{ours}.bias"] = state.take(f"{layer}.bias", shapes[ours][0])
    for ours, theirs in (("content", "r_w"), ("distance", "r_r")):
        name = f"{attention}.{theirs}_bias"
        bias = state.take(name, *(heads if len(state.shape(name)) == 2 else (d_model,)))
        tensors[f"attention.{ours}_bias"] = bias.reshape(heads)
    return tensors, weights


def _named_weights(blocks: Sequence[dict[str, Weight]]) -> tuple[Tensors, bool]:
    """The five weights of each block under our names, and whether they stay normalised: if all of them are."""
    normalised = all(weight.norm is not None for block in blocks for weight in block.values())
    tensors = {}
    for number, block in enumerate(blocks):
        for layer, weight in block.items():
            name = f"cell.blocks.{number}.{layer}"
            if normalised and weight.norm is not None:
                tensors[f"{name}.parametrizations.weight.original0"] = weight.norm
                tensors[f"{name}.parametrizations.weight.original1"] = weight.matrix
            else:
                tensors[f"{name}.weight"] = weight.effective
    return tensors, normalised


def _drop_frequencies(state: StateDict, d_model: int) -> tuple[str, ...]:
    """Takes the buffer of the sinusoidal distances, if it holds the published ones; returns a note on it."""
    name = "pos_emb.inv_freq"
    if name not in state:
        return ()
    expected = 10_000.0 ** -(torch.arange(0, d_model, 2) / d_model)
    found = state.take(name, len(expected))
    if not torch.allclose(found, expected, rtol=1e-2):  # half precision is allowed for
        raise UserError(
            f"{state.source}: {name} holds other frequencies than 10000^(−2i/{d_model}); they are fixed here"
        )
    return (f"{name}, which is computed",)


def _embedding(state: StateDict, d_model: int, options: PublishedOptions) -> tuple[partial[Any], int, Tensors]:
    """The adaptive embedding and softmax: recipe, vocabulary size, and the weights under our names."""
    tables = state.count("word_emb.emb_layers.")
    shapes = [state.matrix_shape(f"word_emb.emb_layers.{i}.weight") for i in range(max(1, tables))]
    d_embed = shapes[0][1]
    embedded = [state.take(f"word_emb.emb_layers.{i}.weight", *shape) for i, shape in enumerate(shapes)]
    softmax = [state.take(f"crit.out_layers.{i}.weight", *shape) for i, shape in enumerate(shapes)]
    biases = [state.take(f"crit.out_layers.{i}.bias", rows) for i, (rows, _) in enumerate(shapes)]
    cutoffs = _cutoffs(state, [rows for rows, _ in shapes], options.cutoffs)
    clusters = len(cutoffs) + 1
    if tables == 1:  # div_val 1 keeps all clusters in one table
        sizes = [right - left for left, right in pairwise((0, *cutoffs, shapes[0][0]))]
        embedded, softmax, biases = (list(parts[0].split(sizes)) for parts in (embedded, softmax, biases))
    inputs, outputs = _projections(state, [table.shape[1] for table in embedded], tables, d_model)
    div_val = _div_val(state, [table.shape[1] for table in embedded], bool(inputs) and d_embed == d_model)
    tied = all(map(torch.equal, embedded, softmax))
    if clusters > 1:
        # Cluster i reads the head's column −i: theirs are in reverse order.
        rows = state.take("crit.cluster_weight", clusters - 1, d_embed).flip(0)
        softmax[0] = torch.cat([softmax[0], rows])
        biases[0] = torch.cat([biases[0], state.take("crit.cluster_bias", clusters - 1).flip(0)])
    own = max((i + 1 for i, pair in enumerate(zip(inputs, outputs, strict=True)) if not torch.equal(*pair)), default=0)
    embedding = partial(AdaptiveEmbedding, cutoffs=cutoffs, div_val=div_val, d_embed=d_embed, tied_tables=tied)
    recipe = partial(embedding, untied_projections=own) if inputs else embedding
    tensors = {f"tables.{i}.weight": table for i, table in enumerate(softmax if tied else embedded)}
    tensors |= {} if tied else {f"own_tables.{i}.weight": table for i, table in enumerate(softmax)}
    tensors |= {f"biases.{i}": bias for i, bias in enumerate(biases)}
    tensors |= {f"projections.{i}": projection for i, projection in enumerate(inputs)}
    tensors |= {f"own_projections.{i}": projection for i, projection in enumerate(outputs[:own])}
    return recipe, sum(rows for rows, _ in shapes), {f"embedding.{name}": tensor for name, tensor in tensors.items()}


def _cutoffs(state: StateDict, rows: list[int], given: tuple[int, ...] | None) -> tuple[int, ...]:
    """Where clusters begin, by the tables' sizes or, with one table for all, by the options."""
    clusters = state.matrix_shape("crit.cluster_weight")[0] if "crit.cluster_weight" in state else 0
    if len(rows) > 1:
        found = tuple(sum(rows[: i + 1]) for i in range(len(rows) - 1))
        if given not in (None, found):
            raise UserError(f"{state.source} has clusters that begin at {found}; found --cutoffs {given}")
        return found
    cutoffs = given if given is not None else (WIKITEXT_103_CUTOFFS if clusters else ())
    if len(cutoffs) != clusters or any(left >= right for left, right in pairwise((0, *cutoffs, rows[0]))):
        raise UserError(
            f"{state.source} has {clusters + 1} clusters in one table of {rows[0]} tokens and does not say where they "
            f"begin; found cutoffs {cutoffs}; give {clusters} of them with --cutoffs, rising and below {rows[0]}"
        )
    return cutoffs


def _projections(state: StateDict, widths: list[int], tables: int, d_model: int) -> tuple[list[Tensor], list[Tensor]]:
    """The projections of each cluster in the embedding and in the softmax; none if the model has none."""

    def take(name: str, width: int) -> Tensor:
        return state.take(name if name in state else f"{name}.weight", d_model, width)

    names = "word_emb.emb_projs.", "crit.out_projs."
    if tables == 1 and widths[0] == d_model and not any(state.count(name) for name in names):
        return [], []
    inputs = [take(f"{names[0]}{i}", width) for i, width in enumerate(widths[:tables])]
    outputs = [take(f"{names[1]}{i}", width) for i, width in enumerate(widths)]
    return inputs * (len(outputs) // len(inputs)), outputs


def _div_val(state: StateDict, widths: list[int], projected: bool) -> int:
    """The divisor of the width from one cluster to the next."""
    first = widths[0]
    # With one table that is projected to its own width, any divisor means the same.
    smallest = 2 if projected else 1
    if len(widths) > 1:
        smallest = max(smallest, first // (widths[1] + 1) + 1)  # those below it leave more than the second width
    for divisor in range(smallest, smallest + isqrt(first) + 1):
        if all(first // divisor**i == width for i, width in enumerate(widths)):
            return divisor
    raise UserError(
        f"{state.source}: word_emb.emb_layers are {', '.join(map(str, widths))} wide; "
        f"expected the first width divided by powers of one divisor"
    )
