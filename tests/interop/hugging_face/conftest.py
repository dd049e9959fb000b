"""What the tests of Hugging Face's libraries share: quiet, offline, and a trained run."""

import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

# Before the libraries are imported, which read them then.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import pytest

import tiny

if find_spec("transformers") is None:  # without the extra hf there is nothing to test
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def alphabet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on lines of letters in their order, which it has learned to write on from any of them."""
    recipe = tiny.tiny_recipe(tmp_path_factory.mktemp("alphabet"))
    recipe = replace(recipe, training=replace(recipe.training, steps=150, evaluate_every=150, checkpoint_every=150))
    for split in ("train", "valid", "test"):
        place = recipe.run.folder.parents[1] / "text" / f"{split}.txt"
        place.write_text("abcdefgh\n" * 400, encoding="utf-8")
    tiny.tiny_trainer(recipe).run()
    return recipe.run.folder


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on bytes, trained until its predictions are no chance."""
    recipe = tiny.tiny_recipe(tmp_path_factory.mktemp("run"))
    recipe = replace(recipe, training=replace(recipe.training, steps=60, evaluate_every=60, checkpoint_every=60))
    tiny.tiny_trainer(recipe).run()
    return recipe.run.folder
