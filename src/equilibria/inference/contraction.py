"""How strongly a model's map contracts where it is solved: spectral radii of the map at a few tokens.

Near 0 the first application says it all; near 1 a token takes many. The radius of a causal map is that of its tokens,
each of which is measured alone over a cache of what precedes it, so that the cost is about that of one solve. It does
not see what travels from token to token, as in a recurrence: that shows in the evaluations of whole segments.
"""

import numpy as np
import torch
from torch import Tensor

from equilibria.depths import Depth
from equilibria.diagnostics import spectral_radii
from equilibria.diagnostics.audits import evaluating
from equilibria.models import LanguageModel, TokenModel

_TOKENS = 16
_ROWS = 4  # of a model without a cache
_LENGTH = 128  # how far into a segment tokens are taken from


def spectral_radii_of(model: TokenModel, inputs_BL: Tensor, depth: Depth | None = None) -> np.ndarray | None:
    """The spectral radius of a model's map at the solution of 16 tokens, which are spread over the rows and the first
    128 positions of a segment; of a model that keeps nothing in a cache, of 4 tokens in each of 4 rows; where all
    tokens see each other, of 4 whole rows.

    Args:
        model: on any device; its mode is restored.
        inputs_BL: a segment's tokens, before which there are none.
        depth: at which they are solved; None for the model's own.

    Returns:
        One number per token or row, NaN where the solve ended in what is not finite; None where nothing is solved.
    """
    if not isinstance(model, LanguageModel) or not (depth or model.depth).solves:
        return None
    causal = model.causal
    tokens_BL = inputs_BL[:, : _LENGTH if causal else None].to(next(model.parameters()).device)
    with evaluating(model):
        if causal and tokens_BL.shape[1] > 1 and model.decodes(depth):
            return _single_tokens(model, tokens_BL, depth).cpu().numpy()
        tokens_BL = tokens_BL[:_ROWS, : model.chunk_length]
        bound, solution = model.solve(tokens_BL, depth=depth)
        positions = None
        if causal:
            positions = np.unique(np.linspace(0, tokens_BL.shape[1] - 1, _TOKENS // _ROWS).astype(int)).tolist()
        return spectral_radii(bound, solution.value, tokens=positions).flatten().cpu().numpy()


def _single_tokens(model: LanguageModel, tokens_BL: Tensor, depth: Depth | None) -> Tensor:
    """The radii `(R,)` of the last tokens of some beginnings, each of at least 2 tokens."""
    batch, length = tokens_BL.shape
    ends_R = torch.linspace(1, length - 1, _TOKENS, device=tokens_BL.device).long()
    rows_R = torch.arange(_TOKENS, device=tokens_BL.device) % batch
    padding_R = length - 1 - ends_R
    # Beginnings of different lengths end at the same place once they are padded at their left.
    places_RL = (torch.arange(length, device=tokens_BL.device) - padding_R.unsqueeze(1)).clamp_min(0)
    beginnings_RL = tokens_BL[rows_R].gather(1, places_RL)
    cache = model.prefill(beginnings_RL[:, :-1], padding_R, depth=depth).cache
    bound, solution = model.solve(beginnings_RL[:, -1:], cache, depth=depth)
    return spectral_radii(bound, solution.value)
