"""A model in the layout of Hugging Face, read without its libraries: `config.json`, and safetensors, sharded or not."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from equilibria.configuration import build_model, recipe_from
from equilibria.errors import UserError
from equilibria.inference.weights import distinct_state, fill, read_tensors
from equilibria.models import TokenModel

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
    config = _object(folder / CONFIG)
    if config.get("model_type") != _KIND:
        raise UserError(f"{folder / CONFIG} is of a {config.get('model_type')} model; expected {_KIND}")
    if config.get("tie_word_embeddings") is False:
        raise UserError(f"{folder} has an output layer of its own (tie_word_embeddings); load it with transformers")
    size, table = config.get("vocab_size"), config.get("recipe")
    if not isinstance(size, int) or not isinstance(table, dict | None):
        raise UserError(f"{folder / CONFIG} is damaged: it needs a number vocab_size and a table recipe")
    content: dict[str, object] = {"run": {"name": _KIND}}
    if table:
        content["model"] = table
    model = build_model(recipe_from(content, f"{folder / CONFIG} (recipe)"), size)
    fill(distinct_state(model), _tensors(folder), folder)
    return model.eval()


def _tensors(folder: Path) -> dict[str, Tensor]:
    """The model's own tensors, under its own names; an output layer tied to the embedding is not among them."""
    names = [WEIGHTS]
    if (folder / INDEX).is_file():
        shards = _object(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict):
            raise UserError(f"{folder / INDEX} is damaged: it has no table weight_map")
        names = sorted(set(map(str, shards.values())))
    tensors = {name: tensor for file in names for name, tensor in read_tensors(folder / file).items()}
    return {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)}


def _object(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise UserError(f"{path} is damaged ({problem}); export the model again") from problem
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it has no JSON object; export the model again")
    return content
