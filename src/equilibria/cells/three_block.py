"""The cell of the 2023 DEQ language model (Geng and Kolter 2023, TorchDEQ, arXiv:2310.18605), pre-norm.

For each of three blocks, which all read the same memory and the same injection u:

    [q, k, v] = W_qkv LN₁([memory; z]) + u,     split per head as (q, k, v) of that head
    z ← z + W_o LN₂(attention),  z ← z + W₂ relu(W₁ LN(z)),     layer norms with gain and bias

There is no norm after the last block, so that states grow with the number of applications: the published model
applies its cell twelve times from zero and has not arrived at a fixed point then.
"""

from __future__ import annotations

from equilibria.cells.transformer_xl import TransformerXLCell
from equilibria.nn.normalisation import Normalisation


class ThreeBlockCell(TransformerXLCell):
    """Three pre-norm Transformer-XL blocks around one injection and one memory.

    Args:
        d_model: features of the state, a multiple of `heads`, even.
        heads: attention heads.
        inner: features inside each feed-forward network.
        dropout: probability of dropping a feature; see `cells.transformer_xl` for the masks and their shapes.
        attention_dropout: probability of dropping an attention probability.
        blocks: how many in the cell, three as published.
        window: tokens that a token sees at most, itself among them; None for all. The published code sets 1000.
        normalisation: of the five weights of each block; `"weight"` as published.
        initial_std: deviation of normal initial weights, 0.01 as published; None for PyTorch's own.
    """

    def __init__(
        self,
        d_model: int = 128,
        heads: int = 4,
        inner: int = 256,
        dropout: float = 0.0,
        *,
        attention_dropout: float = 0.0,
        blocks: int = 3,
        window: int | None = None,
        normalisation: Normalisation = "none",
        initial_std: float | None = None,
    ) -> None:
        super().__init__(
            d_model,
            heads,
            inner,
            blocks,
            dropout,
            attention_dropout=attention_dropout,
            norm_position="pre",
            affine=True,
            window=window,
            interleaved=True,
            output_norm=True,
            normalisation=normalisation,
            initial_std=initial_std,
        )
