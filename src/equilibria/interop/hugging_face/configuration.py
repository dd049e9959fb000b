"""The `config.json` of a model: the `[model]` table of its recipe, and what transformers requires.

A file of two lines beside it lets `trust_remote_code=True` find these classes without an import.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from equilibria.configuration import Recipe, RunRecipe, recipe_from, table_of
from equilibria.models import ModelRecipe

_BRIDGE = "modeling_equilibria"
_BRIDGE_TEXT = """\
# transformers reads this with trust_remote_code=True; the classes are those of the installed package equilibria.
from equilibria.interop.hugging_face import EquilibriaConfig, EquilibriaForCausalLM  # noqa: F401
"""


class EquilibriaConfig(PreTrainedConfig):
    """A language model of equilibria, as transformers describes one.

    Args:
        recipe: the `[model]` table of a recipe as plain JSON, the solver of evaluation in it
            (`recipe["depth"]["eval_solver"]`); other keys have a recipe's defaults.
        vocab_size: tokens.
        max_position_embeddings: tokens that a generated token sees at most, including itself: the window of
            `equilibria generate`. Positions are relative, so a given text may be longer. None for all tokens.
        use_cache: whether the model, if it can, returns the keys and values of what it has read.
        tie_word_embeddings: whether the output layer of a recipe with a tied embedding has the embedding's weight.
        hidden_size, num_hidden_layers: features of a token, and layers of a cache; set by the model.
    """

    model_type = "equilibria"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    recipe: dict[str, Any] | None = None
    vocab_size: int = 256
    max_position_embeddings: int | None = None
    use_cache: bool = True
    tie_word_embeddings: bool = True
    hidden_size: int | None = None
    num_hidden_layers: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        classes = {"AutoConfig": "EquilibriaConfig", "AutoModelForCausalLM": "EquilibriaForCausalLM"}
        kwargs.setdefault("auto_map", {auto: f"{_BRIDGE}.{name}" for auto, name in classes.items()})
        super().__post_init__(**kwargs)

    @classmethod
    def of(cls, model: ModelRecipe, vocabulary_size: int, window: int | None = None) -> EquilibriaConfig:
        """The configuration of a recipe's model; `window` is `max_position_embeddings`."""
        return cls(recipe=table_of(model), vocab_size=vocabulary_size, max_position_embeddings=window)

    def whole_recipe(self) -> Recipe:
        """A recipe of this model; raises a UserError that names a wrong key or value of the table."""
        run = table_of(RunRecipe(name=self.model_type))
        return recipe_from({"run": run, **({"model": self.recipe} if self.recipe else {})}, "config.json (recipe)")

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        super().save_pretrained(save_directory, push_to_hub, **kwargs)
        Path(save_directory, f"{_BRIDGE}.py").write_text(_BRIDGE_TEXT, encoding="utf-8")
