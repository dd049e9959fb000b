"""The importer of the DEQ-Transformer of 2021 (Bai, Koltun and Kolter, arXiv:2106.14342) and of TorchDEQ's deq-seq

Both have one cell of one block and the same names; layer norms without gain and bias leave none in the file.
"""

from functools import partial

from equilibria.cells import PostNormCell
from equilibria.cells.transformer_xl import NormPosition
from equilibria.depths import Equilibrium
from equilibria.gradients import Implicit
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
from equilibria.solvers import Anderson

MOST_ITERATIONS = 400
_ATTENTION, _FEED_FORWARD = "func.dec_attn", "func.pos_ff"


def import_torchdeq_seq(
    state: StateDict,
    options: PublishedOptions,
    iterations: int = MOST_ITERATIONS,
    norm_position: NormPosition = "post",
) -> Imported:
    """The model of a state dictionary.

    It is solved until every token's residual is at 1e-6, where the published code stops at 1e-3 or after 30
    evaluations: figures then are those of the equilibrium, and do not depend on the solver.

    Args:
        state: what the file holds.
        options: what it does not say.
        iterations: evaluations of the cell at most.
        norm_position: where the cell's norms are, which their files do not say.

    Raises:
        UserError: a tensor is unknown, missing or of another size; the line names it.
    """
    sizes = read_sizes(state, _ATTENTION, _FEED_FORWARD, options)
    weights = take_injection(state, sizes.d_model)
    tensors, layers = take_block(state, _ATTENTION, _FEED_FORWARD, sizes)
    norms = {"attention_norm": f"{_ATTENTION}.ln", "feed_forward_norm": f"{_FEED_FORWARD}.ln"}
    affine = any(f"{theirs}.weight" in state for theirs in norms.values())
    for norm, theirs in norms.items() if affine else ():
        parts = take_norm(state, theirs, sizes.d_model)
        tensors |= {f"{norm}.{part}": tensor for part, tensor in parts.items()}
    weights |= {f"cell.blocks.0.{name}": tensor for name, tensor in tensors.items()}
    named, normalised = named_weights([layers])
    embedding, vocabulary_size, embedded = take_embedding(state, sizes.d_model, options)
    left_out = drop_frequencies(state, sizes.d_model)
    state.finish("torchdeq-seq")
    model = LanguageModelRecipe(
        embedding=embedding,
        cell=partial(
            PostNormCell,
            d_model=sizes.d_model,
            heads=sizes.heads,
            inner=sizes.inner,
            window=options.window,
            norm_position=norm_position,
            affine=affine,
            normalisation="weight" if normalised else "none",
        ),
        depth=Equilibrium(
            residual_penalty=0.0,
            solver=Anderson(tol=1e-3, max_evaluations=30, scope="prefix"),
            gradient=Implicit(),
            eval_solver=Anderson(tol=1e-6, max_evaluations=iterations, scope="prefix"),
        ),
        memory_length=options.memory_length,
    )
    return Imported(state.source, model, vocabulary_size, weights | named | embedded, SEGMENT_LENGTH, left_out)
