"""The importer of TorchDEQ's deq-lm (Geng and Kolter 2023, arXiv:2310.18605): a pre-norm cell of several blocks"""

from functools import partial

from equilibria.cells import ThreeBlockCell
from equilibria.depths import UnrolledDepth
from equilibria.interop.imported import Imported
from equilibria.interop.published import (
    SEGMENT_LENGTH,
    PublishedOptions,
    drop_frequencies,
    named_weights,
    read_sizes,
    take_block,
    take_embedding,
    take_injection,
    take_norm,
)
from equilibria.interop.state_dict import StateDict
from equilibria.models import LanguageModelRecipe

PUBLISHED_ITERATIONS = 12


def import_torchdeq_lm(state: StateDict, options: PublishedOptions, iterations: int = PUBLISHED_ITERATIONS) -> Imported:
    """The model of a state dictionary.

    Args:
        state: what the file holds.
        options: what it does not say.
        iterations: applications of the cell, from zero. The published model has not arrived at a fixed point then.

    Raises:
        UserError: a tensor is unknown, missing or of another size; the line names it.
    """
    blocks = max(1, state.count("func.dec_attn."))
    prefixes = [(f"func.dec_attn.{i}", f"func.pos_ff.{i}") for i in range(blocks)]
    sizes = read_sizes(state, *prefixes[0], options)
    weights, taken = take_injection(state, sizes.d_model), []
    for number, (attention, feed_forward) in enumerate(prefixes):
        tensors, layers = take_block(state, attention, feed_forward, sizes)
        taken.append(layers)
        for norm, theirs in (
            ("attention_norm", f"{attention}.ln1"),
            ("attention.output_norm", f"{attention}.ln2"),
            ("feed_forward_norm", f"{feed_forward}.ln"),
        ):
            parts = take_norm(state, theirs, sizes.d_model)
            tensors |= {f"{norm}.{part}": tensor for part, tensor in parts.items()}
        weights |= {f"cell.blocks.{number}.{name}": tensor for name, tensor in tensors.items()}
    layers, normalised = named_weights(taken)
    embedding, vocabulary_size, embedded = take_embedding(state, sizes.d_model, options)
    left_out = drop_frequencies(state, sizes.d_model)
    state.finish("torchdeq-lm")
    model = LanguageModelRecipe(
        embedding=embedding,
        cell=partial(
            ThreeBlockCell,
            d_model=sizes.d_model,
            heads=sizes.heads,
            inner=sizes.inner,
            blocks=blocks,
            window=options.window,
            normalisation="weight" if normalised else "none",
        ),
        depth=UnrolledDepth(iterations),
        memory_length=options.memory_length,
    )
    return Imported(state.source, model, vocabulary_size, weights | layers | embedded, SEGMENT_LENGTH, left_out)
