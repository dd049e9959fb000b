"""The cell of the language model of 2023 (Geng and Kolter, TorchDEQ, arXiv:2310.18605)."""

from functools import partial

from equilibria.cells import TransformerXLCell

three_blocks = partial(
    TransformerXLCell, blocks=3, norm_position="pre", affine=True, interleaved=True, output_norm=True
)
