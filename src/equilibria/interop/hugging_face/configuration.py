"""What `config.json` says of a model: the `[model]` table of its recipe, as it is, and what transformers asks of any.

Beside it goes a file of two lines, so that `trust_remote_code=True` finds these classes without an import.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from equilibria.configuration import Recipe, RunRecipe, recipe_from, table_of
from equilibria.models import ModelRecipe

BRIDGE = "modeling_equilibria"
"""The module that a folder holds for `trust_remote_code`."""

_BRIDGE_TEXT = """\
# transformers reads this with trust_remote_code=True; the classes are those of the installed package equilibria.
from equilibria.interop.hugging_face import EquilibriaConfig, EquilibriaForCausalLM  # noqa: F401
"""


class EquilibriaConfig(PreTrainedConfig):
    """A language model of equilibria, as transformers describes one.

    Args:
        recipe: the `[model]` table of a recipe as plain JSON, the solver of evaluation in it
            (`recipe["depth"]["eval_solver"]`); what is left out has a recipe's defaults.
        vocab_size: tokens.
        max_position_embeddings: tokens that a generated token sees at most, itself among them: the window of
            `equilibria generate`. Positions are relative, so a text that is given may be longer. None for all tokens.
        use_cache: whether a model that can returns the keys and values of what it has read.
        tie_word_embeddings: whether an output layer has the embedding's weight, where the recipe says that it is tied.
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
        kwargs.setdefault("auto_map", auto_map())
        super().__post_init__(**kwargs)

    @classmethod
    def of(cls, model: ModelRecipe, vocabulary_size: int, window: int | None = None) -> EquilibriaConfig:
        """The configuration of a recipe's model.

        Args:
            model: the section.
            vocabulary_size: tokens.
            window: tokens that a generated token sees at most; None for all.
        """
        return cls(recipe=table_of(model), vocab_size=vocabulary_size, max_position_embeddings=window)

    def whole_recipe(self) -> Recipe:
        """A recipe whose model is this one.

        Raises:
            UserError: a key or a value of the table is wrong; the line names it.
        """
        run = table_of(RunRecipe(name=self.model_type))
        return recipe_from({"run": run, **({"model": self.recipe} if self.recipe else {})}, "config.json (recipe)")

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """As transformers does, and the file that `trust_remote_code` reads."""
        super().save_pretrained(save_directory, push_to_hub, **kwargs)
        Path(save_directory, f"{BRIDGE}.py").write_text(_BRIDGE_TEXT, encoding="utf-8")


def auto_map() -> dict[str, str]:
    """Where a folder has the classes for `trust_remote_code`."""
    return {
        "AutoConfig": f"{BRIDGE}.EquilibriaConfig",
        "AutoModelForCausalLM": f"{BRIDGE}.EquilibriaForCausalLM",
    }
