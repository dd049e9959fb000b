"""The published DEQ-Transformer cell (Bai, Kolter and Koltun 2019, arXiv:1909.01377; 2021, arXiv:2106.14342).

[q, k, v] = W_qkv [memory; z] + u,     u = injection of the embedded inputs, at memory positions too
scores    = ((q + r_w)·k + (q + r_r)·W_r R(distance)) / √E
a = LN(z + W_o attention),  f(z; x) = LN(a + W₂ relu(W₁ a)),   layer norms without affine parameters

or, with the norms before: a = z + W_o attention(LN [memory; z]),  f(z; x) = a + W₂ relu(W₁ LN(a)). Without injection
it is a layer of Transformer-XL.
"""

from __future__ import annotations

from equilibria.cells.transformer_xl import NormPosition, TransformerXLCell
from equilibria.nn.normalisation import Normalisation


class PostNormCell(TransformerXLCell):
    """One Transformer-XL layer with input injection.

    Args:
        d_model: features of the state, a multiple of `heads`, even.
        heads: attention heads.
        inner: features inside the feed-forward network.
        dropout: probability of dropping a feature; see `cells.transformer_xl` for the masks and their shapes.
        attention_dropout: probability of dropping an attention probability.
        norm_position: `"post"` as in 2019, or `"pre"`. The published code of the latter adds the feed-forward network
            to its normed input; here, as in its later version, to the input itself.
        affine: whether the layer norms have a gain and a bias, as Transformer-XL's have.
        window: tokens that a token sees at most, itself among them; None for all. The published code sets 1000.
        injection: whether there is an input. Without one this is Transformer-XL's layer: no bias after attention, and
            the cell starts from the embedded inputs.
        normalisation: of the five weights of attention and feed-forward network; `"weight"` as published.
        initial_std: deviation of normal initial weights, 0.01 as published; None for PyTorch's own, which is what the
            published code leaves its weight-normalised layers with.
    """

    def __init__(
        self,
        d_model: int = 128,
        heads: int = 4,
        inner: int = 512,
        dropout: float = 0.0,
        *,
        attention_dropout: float = 0.0,
        norm_position: NormPosition = "post",
        affine: bool = False,
        window: int | None = None,
        injection: bool = True,
        normalisation: Normalisation = "none",
        initial_std: float | None = None,
    ) -> None:
        super().__init__(
            d_model,
            heads,
            inner,
            dropout=dropout,
            attention_dropout=attention_dropout,
            norm_position=norm_position,
            affine=affine,
            window=window,
            injection=injection,
            normalisation=normalisation,
            initial_std=initial_std,
        )
