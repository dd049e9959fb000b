"""A model in the layout of Hugging Face, read without its libraries: `config.json`, and safetensors, sharded or not."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from equilibria.configuration import recipe_from
from equilibria.configuration.building import build_model
from equilibria.errors import UserError
from equilibria.files.formats import read_json
from equilibria.models import TokenModel
from equilibria.runs.weights import build_filled, read_tensors, shards, united

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_KIND = "equilibria"
_PREFIX = "model."


def is_exported(folder: Path) -> bool:
    """Whether a folder has a model in that layout."""
    return (folder / CONFIG).is_file()


def load_exported(folder: Path) -> TokenModel:
    """The model of a folder that `equilibria export RUN DIR --to hf` or `save_pretrained` wrote, in evaluation mode.

    Raises:
        UserError: it is another kind of model, or something is missing or damaged.
    """
    config = read_json(folder / CONFIG, dict, "export the model again")
    if config.get("model_type") != _KIND:
        raise UserError(f"{folder / CONFIG} is of a {config.get('model_type')} model; expected {_KIND}")
    if config.get("tie_word_embeddings") is False:
        raise UserError(f"{folder} has an output layer of its own (tie_word_embeddings); load it with transformers")
    size, table = config.get("vocab_size"), config.get("recipe")
    if type(size) is not int or size < 1 or not isinstance(table, dict | None):
        raise UserError(f"{folder / CONFIG} is damaged: it needs a number vocab_size and a table recipe")
    content: dict[str, object] = {"run": {"name": _KIND}}
    if table:
        content["model"] = table
    recipe = recipe_from(content, f"{folder / CONFIG} (recipe)")
    return build_filled(lambda: build_model(recipe, size), _tensors(folder), folder).eval()


def _tensors(folder: Path) -> dict[str, Tensor]:
    """The model's own tensors, under its own names; an output layer tied to the embedding is not among them."""
    files = [folder / name for name in (shards(folder / INDEX) if (folder / INDEX).exists() else [WEIGHTS])]
    tensors = united((file, read_tensors(file)) for file in files)
    return {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)}
