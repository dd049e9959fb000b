"""A small recipe of every kind of model that transformers is given."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from equilibria.configuration import (
    BaselineRecipe,
    CellRecipe,
    DepthRecipe,
    EmbeddingRecipe,
    ModelRecipe,
    SolverRecipe,
)
from equilibria.interop.hugging_face import EquilibriaConfig, EquilibriaForCausalLM

VOCABULARY = 61
WINDOW = 24


def _cell(**options: Any) -> CellRecipe:
    return CellRecipe(d_model=16, **{"kind": "contractive", "heads": 2, "inner": 32, **options})


_EXACT = DepthRecipe(eval_solver=SolverRecipe(method="picard", tol=1e-6, max_evaluations=400))

CACHED = {
    "contractive": ModelRecipe(cell=_cell(dropout=0.1), depth=_EXACT, memory_length=8),
    "around": ModelRecipe(cell=_cell(key_value_heads=1), depth=_EXACT, prelude_layers=1, coda_layers=1),
    "unrolled": ModelRecipe(cell=_cell(blocks=2), depth=DepthRecipe(kind="unrolled", applications=3)),
    "tied-stack": ModelRecipe(cell=_cell(), depth=DepthRecipe(kind="stack", applications=3, tied=True)),
    "shared-biases": ModelRecipe(
        cell=_cell(kind="post_norm"), depth=DepthRecipe(kind="stack", applications=11, shared_biases=True)
    ),
    "weight-norm": ModelRecipe(
        cell=_cell(kind="post_norm", normalisation="weight", window=9),
        depth=_EXACT,
        embedding=EmbeddingRecipe(kind="adaptive", cutoffs=(20, 40), div_val=2),
    ),
    "spectral-norm": ModelRecipe(
        cell=_cell(kind="three_block", normalisation="spectral"),
        depth=DepthRecipe(kind="unrolled", applications=3),
        embedding=EmbeddingRecipe(kind="untied"),
    ),
    "trellis": ModelRecipe(cell=CellRecipe(kind="trellis", d_model=16, hidden=8), depth=_EXACT),
}
UNCACHED = {
    "halting": ModelRecipe(cell=_cell(), depth=DepthRecipe(kind="halting")),
    "lstm": ModelRecipe(baseline=BaselineRecipe(kind="lstm", d_model=16, hidden=16, layers=2)),
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
