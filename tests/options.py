"""A value of every option of a recipe, and the small recipes and models that the tests of options build."""

import inspect
from collections.abc import Mapping
from typing import Any

from equilibria.configuration import (
    BaselineRecipe,
    EmbeddingRecipe,
    ModelRecipe,
    Recipe,
    RunRecipe,
    TrainingRecipe,
    build_model,
)
from equilibria.configuration.baseline import BASELINE_OPTIONS
from equilibria.configuration.recipe import problems
from equilibria.models import LanguageModel
from equilibria.paper.baselines import SequenceModel

VALUES: Mapping[str, Any] = {
    **{"heads": 2, "inner": 24, "blocks": 2, "norm": "rms", "positions": "none", "query_key_norm": True},
    **{"query_key_gain": 2.5, "key_value_heads": 1, "activation": "gelu", "normalisation": "weight"},
    **{"attention_dropout": 0.25, "carry": 0.75, "injection_norm": True},
    **{"window": 3, "norm_position": "pre", "affine": True, "initial_std": 0.5, "hidden": 9, "output_size": 16},
    **{"dilation": 2, "weight_dropout": 0.25, "recurrent_std": 0.5, "scan": True},
    **{"damping": 0.75, "history": 5, "ridge": 0.5, "halvings": 2, "inner_products": 3, "forcing": 0.5},
    **{"products": "differences", "criterion": "absolute", "check_every": 4},
    **{"steps": 3, "checkpoint": True, "terms": 4, "tol": 0.03, "max_evaluations": 12, "restart": 6, "share": 0.75},
    **{"keep_every": 5, "bound": 0.125},
    **{"residual_penalty": 0.5, "jacobian_penalty": 0.25, "states_every": 2, "penalty_above": 0.25},
    **{"max_steps": 3, "threshold": 0.5, "ponder_weight": 0.25},
    **{
        "cutoffs": (4, 7),
        "div_val": 2,
        "d_embed": 12,
        "untied_projections": 0,
        "initialisation": "published",
        "tied_tables": False,
    },
    **{"layers": 2, "kernel_size": 3, "kernel_sizes": (2, 3), "channels": (8, 16), "dropout": 0.25, "slots": 2},
    **{"mlp_layers": 3, "hidden_dropout": 0.25},
    **{"head_size": 8, "gates": "slot", "search": "first_order", "cell_dropout": 0.25, "recurrent_dropout": 0.125},
}
"""A value of every option that is no default."""


def cases(options: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(kind, name) for kind, names in options.items() for name in names]


def recipe(model: ModelRecipe, seed: int = 0) -> Recipe:
    return Recipe(run=RunRecipe(name="x"), model=model, training=TrainingRecipe(seed=seed))


def language_model(model: ModelRecipe) -> LanguageModel:
    assert list(problems(recipe(model))) == []
    built = build_model(recipe(model), 11)
    assert isinstance(built, LanguageModel)
    return built


def parameters(of: Any, *others: str) -> set[str]:
    return set(inspect.signature(of).parameters) - set(others)


LAYERS = [kind for kind in BASELINE_OPTIONS if kind != "universal_transformer"]


def baseline_recipe(kind: Any, embedding: Any = "untied", **options: Any) -> ModelRecipe:
    sizes: dict[str, Any] = {"d_model": 16}
    if kind == "gated_convolution":
        sizes |= {"kernel_sizes": (2,), "channels": (16,)}
    elif kind == "universal_transformer":
        sizes |= {"heads": 4, "inner": 12}
    else:
        sizes |= {"hidden": 9, **({"kernel_size": 2} if kind == "tcn" else {})}
    section = BaselineRecipe(kind=kind, **{**sizes, **options})
    return ModelRecipe(baseline=section, embedding=EmbeddingRecipe(kind=embedding), memory_length=int(kind in LAYERS))


def baseline(model: ModelRecipe) -> SequenceModel:
    assert list(problems(recipe(model))) == []
    built = build_model(recipe(model), 11)
    assert isinstance(built, SequenceModel)
    return built
