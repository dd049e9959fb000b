"""A small recipe of every kind of model that transformers is given."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from equilibria.cells import Cell, ContractiveCell, TransformerXLCell, TrellisCell
from equilibria.depths import Equilibrium, Stack, UnrolledDepth
from equilibria.interop.hugging_face import EquilibriaConfig, EquilibriaForCausalLM
from equilibria.models import LanguageModelRecipe, ModelRecipe
from equilibria.nn import AdaptiveEmbedding, UntiedEmbedding
from equilibria.paper.baselines import LSTM
from equilibria.paper.halting import Halting
from equilibria.solvers import Picard
from three_blocks import three_blocks

VOCABULARY = 61
WINDOW = 24

_SIZES = {"d_model": 16, "heads": 2, "inner": 32}
_CONTRACTIVE: partial[Cell] = partial(ContractiveCell, **_SIZES, carry=0.3)
_POST_NORM: partial[Cell] = partial(TransformerXLCell, **_SIZES)
_EXACT = Equilibrium(eval_solver=Picard(tol=1e-6, max_evaluations=400, scope="prefix"))

CACHED = {
    "contractive": LanguageModelRecipe(cell=partial(_CONTRACTIVE, dropout=0.1), depth=_EXACT, memory_length=8),
    "around": LanguageModelRecipe(
        cell=partial(_CONTRACTIVE, key_value_heads=1), depth=_EXACT, prelude_layers=1, coda_layers=1
    ),
    "unrolled": LanguageModelRecipe(cell=partial(_CONTRACTIVE, blocks=2), depth=UnrolledDepth(3)),
    "tied-stack": LanguageModelRecipe(cell=_CONTRACTIVE, depth=Stack(3, tied=True)),
    "shared-biases": LanguageModelRecipe(cell=_POST_NORM, depth=Stack(11, shared_biases=True)),
    "weight-norm": LanguageModelRecipe(
        embedding=partial(AdaptiveEmbedding, cutoffs=(20, 40), div_val=2),
        cell=partial(_POST_NORM, normalisation="weight", window=9),
        depth=_EXACT,
    ),
    "spectral-norm": LanguageModelRecipe(
        embedding=partial(UntiedEmbedding),
        cell=partial(three_blocks, **_SIZES, normalisation="spectral"),
        depth=UnrolledDepth(3),
    ),
    "trellis": LanguageModelRecipe(cell=partial(TrellisCell, d_model=16, hidden=8), depth=_EXACT),
}
UNCACHED: dict[str, ModelRecipe] = {
    "halting": LanguageModelRecipe(cell=_CONTRACTIVE, depth=partial(Halting)),
    "lstm": LSTM(d_model=16, hidden=16, layers=2),
}
KINDS = CACHED | UNCACHED
LAYERS = {"contractive": 1, "around": 3, "unrolled": 6, "tied-stack": 3, "shared-biases": 11, "weight-norm": 1} | {
    "spectral-norm": 9,
    "trellis": 1,
}
"""Layers of keys and values that a cache has."""


def model(kind: str, **recipe: Any) -> Any:
    """An `EquilibriaForCausalLM` with random weights, in evaluation mode; what it inherits, no checker understands."""
    torch.manual_seed(0)
    return EquilibriaForCausalLM(EquilibriaConfig.of(replace(KINDS[kind], **recipe), VOCABULARY, WINDOW)).eval()


def text(rows: int = 2, length: int = 9, seed: int = 0) -> torch.Tensor:
    """Random token ids."""
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def loaded(folder: Path, **options: Any) -> Any:
    """What `AutoModelForCausalLM` makes of a folder."""
    return AutoModelForCausalLM.from_pretrained(folder, **options)
