"""Every recipe of the package can be read and its model built, in the sizes that it stands for."""

from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from equilibria.configuration import Recipe, read_recipe, shipped_recipe, shipped_recipes
from equilibria.configuration.building import build_model
from equilibria.data import Task
from equilibria.models import LanguageModel, LanguageModelRecipe, TokenModel
from equilibria.nn import AdaptiveEmbedding, UntiedEmbedding

NAMES = list(shipped_recipes())
VOCABULARIES = {"ptb": 10_000, "wikitext-103": 267_735, "wikitext-2": 33_278, "english-4m": 4096}

EXACT = {
    "ptb/deq-trellisnet": (24.17e6, 20.16e6),
    "wikitext-103/deq-trellisnet": (181.7e6, 44.3e6),
    "wikitext-103/trellisnet": (181.7e6, 44.3e6),
    "wikitext-103/deq-transformer-medium-adaptive": (97.85e6, None),
    "wikitext-103/deq-transformer-medium-regularised": (97.85e6, None),
    "wikitext-103/deq-transformer-2023": (97.73e6, None),
}
"""Parameters in all and outside the embedding, where sizes are published; to be met within 0.5 %."""

ROUNDED = {
    "ptb/variational-lstm": (66, None),
    "ptb/nas": (54, None),
    "ptb/nas-tuned": (24, 20),
    "ptb/darts": (23, None),
    "ptb/trellisnet": (24, 20),
    "ptb/awd-lstm": (24, 20),
    "wikitext-103/tcn": (150, 34),
    "wikitext-103/gated-convolution": (230, None),
    "wikitext-103/deq-transformer-small": (138, 4.5),
    "wikitext-103/deq-transformer-medium": (172, 43),
    "wikitext-103/transformer-xl-4": (139, 4.9),
    "wikitext-103/transformer-xl-tied-16": (138, 4.5),
    "wikitext-103/transformer-xl-16": (165, 44),
    "wikitext-103/transformer-xl-18-adaptive": (110, 72),
}
"""The same in millions as the tables of arXiv:1909.01377 have them; to be met within 0.5 % or the figure's rounding."""

_WORDS = 267_735

DEVIATING = {
    # 850 units: the embedding with its biases, one matrix of the input and one of the state, and one for each node
    "ptb/darts": (10_000 * 851 + 10 * 850 * 2 * 850, 10 * 850 * 2 * 850),
    # 400, three times 2500, 400 units; candidate and two gates; the first layer sees two tokens
    "wikitext-103/awd-qrnn": (_WORDS * 401 + 46_523_700, 3 * (2500 * (800 + 2 * 2500 + 3) + 400 * 2501)),
    # 512 features, 2500 units: queries, keys and values, five layers, projections in and out
    "wikitext-103/relational-memory": (_WORDS * 513 + 52.6e6, 2500 * (3 * 2500 + 5 * 2501 + 512 + 1 + 512)),
    # 18 layers of width 1024: five square matrices, a feed-forward network of inner width 4096; 20, 20, 160 and 68
    # thousand tokens of 1024, 256, 64 and 16 features, each cluster with a projection, the first with two
    "wikitext-103/transformer-xl-large": (
        18 * (5 + 8) * 1024**2 + (20_000 * 1280 + 160_000 * 64 + 67_735 * 16) + 1024 * (2 * 1024 + 336),
        18 * (5 + 8) * 1024**2,
    ),
}
"""Counts of the sizes that a model's authors publish, where these make others than the table has; within 0.5 %."""

COPY_MEMORY = {"deq-transformer": 14, "tcn": 16, "lstm": 14, "gru": 14}
"""Thousands of parameters."""


def recipe_of(name: str) -> Recipe:
    return read_recipe(name)


def built(name: str) -> TokenModel:
    """The model of a recipe, without memory for its weights."""
    recipe = recipe_of(name)
    if isinstance(recipe.data, Task):
        vocabulary = recipe.data.tokenizer.vocabulary_size
    else:
        vocabulary = VOCABULARIES.get(name.split("/")[0], 1000)
    with torch.device("meta"):
        return build_model(recipe, vocabulary)


def size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def sizes(name: str) -> tuple[int, int]:
    """Parameters in all, and outside the embedding."""
    model = built(name)
    return size(model), size(model) - sum(parameter.numel() for parameter in model.embedding.parameters())


def test_there_are_recipes() -> None:
    assert {"demo", "wikitext-2", "english-4m/default", "reversal", *EXACT, *ROUNDED, *DEVIATING} <= set(NAMES)
    assert {f"copy-memory/{name}" for name in COPY_MEMORY} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_read_and_its_model_built(name: str) -> None:
    recipe, model = recipe_of(name), built(name)
    assert isinstance(model, LanguageModel) == isinstance(recipe.model, LanguageModelRecipe)
    assert recipe.run.name == name.replace("/", "-")


@pytest.mark.parametrize("name", NAMES)
def test_it_names_no_place_of_one_machine(name: str) -> None:
    assert not [place for place in paths(recipe_of(name)) if place.is_absolute()]


def paths(value: Any) -> list[Path]:
    """All that stand anywhere in a part of a recipe."""
    if isinstance(value, Path):
        return [value]
    if isinstance(value, partial):
        return paths(tuple(value.keywords.values()))
    if isinstance(value, tuple):
        return [place for entry in value for place in paths(entry)]
    if is_dataclass(value):
        return [place for entry in fields(value) for place in paths(getattr(value, entry.name))]
    return []


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is(name: str) -> None:
    recipe = shipped_recipe(name)
    assert 15 <= len(recipe.title) <= 72, "a title is the first line, alone"
    text = recipe.file.read_text(encoding="utf-8")
    assert text.startswith(f"# {recipe.title}.\n#\n# ")
    comment = " ".join(text[: text.index("[run]")].replace("#", " ").split())
    assert len(comment) > 60
    if name.startswith(("ptb", "wikitext-103")):
        assert "arXiv:" in comment
        assert "untested at full size" in comment
        assert "deviates" in comment or "Sizes are" in comment


@pytest.mark.parametrize("name", sorted({*EXACT, *DEVIATING}))
def test_published_sizes(name: str) -> None:
    for found, published in zip(sizes(name), (EXACT | DEVIATING)[name], strict=True):
        assert published is None or found == pytest.approx(published, rel=5e-3)


@pytest.mark.parametrize("name", [name for name in EXACT if "medium" in name])
def test_the_published_cell_without_its_injection(name: str) -> None:
    model = built(name)
    assert isinstance(model, LanguageModel)
    assert isinstance(model.cell.inject, torch.nn.Linear)
    assert size(model.cell) - size(model.cell.inject) == pytest.approx(69.75e6, rel=5e-3)


@pytest.mark.parametrize("name", ROUNDED)
def test_sizes_of_the_tables(name: str) -> None:
    for found, published in zip(sizes(name), ROUNDED[name], strict=True):
        if published is None:
            continue
        rounding = 0.5 if isinstance(published, int) else 0.05
        assert abs(found / 1e6 - published) <= max(rounding, 5e-3 * published)


@pytest.mark.parametrize("name", COPY_MEMORY)
def test_sizes_of_copy_memory(name: str) -> None:
    assert round(size(built(f"copy-memory/{name}")), -3) <= 1000 * COPY_MEMORY[name]
    assert name != "deq-transformer" or size(built(f"copy-memory/{name}")) <= 14_000


SMALL = {"d_model": 8, "hidden": 6, "inner": 6, "head_size": 4, "channels": (*[8] * 13, 16), "applications": 13}


def shrunk(recipe: Recipe) -> Recipe:
    """The recipe with everything that makes it large made small, and all that is particular about it left."""
    model = recipe.model
    if not isinstance(model, LanguageModelRecipe):
        known = {entry.name for entry in fields(model)}
        model = replace(model, **{name: size for name, size in SMALL.items() if name in known})
        return replace(recipe, model=replace(model, embedding=narrow(model.embedding)))
    given = model.cell.keywords
    sizes: dict[str, Any] = {"d_model": 2 * given.get("heads", 4), "output_size": None}
    if given.get("columns"):
        sizes["d_model"] = 4 * given["heads"]
    sizes = {name: size for name, size in {**SMALL, **sizes}.items() if name in given or name == "d_model"}
    depth = model.depth
    if getattr(depth, "applications", 0) > SMALL["applications"]:
        depth = replace(depth, applications=SMALL["applications"])  # pyright: ignore[reportArgumentType]
    return replace(
        recipe, model=replace(model, cell=partial(model.cell, **sizes), embedding=narrow(model.embedding), depth=depth)
    )


def narrow(embedding: partial[Any]) -> partial[Any]:
    given = embedding.keywords
    cutoffs = {UntiedEmbedding: (6, 9), AdaptiveEmbedding: (6, 9, 12)}.get(embedding.func, ())
    sizes = {"cutoffs": cutoffs, "div_val": 2, "d_embed": 12}
    return partial(embedding, **{name: size for name, size in sizes.items() if given.get(name)})


@pytest.mark.parametrize("name", NAMES)
def test_a_small_version_of_it_learns(name: str) -> None:
    recipe = shrunk(recipe_of(name))
    torch.manual_seed(0)
    model = build_model(recipe, 16)
    chunk = getattr(recipe.model, "chunk_length", None) or model.columns or 4
    tokens = torch.randint(16, (2, 2 * chunk + 1), generator=torch.Generator().manual_seed(1))
    steps = recipe.training.steps
    for step in {0, steps - 1}:
        depth = model.depth.at(step, steps, 0) if isinstance(model, LanguageModel) else None
        memory = None if recipe.model.reads_source else model(tokens[:, :-1], depth=depth).memory
        output = model(tokens[:, :-1], tokens[:, 1:], memory, depth=depth)
        assert output.loss is not None
        (output.loss + (output.penalty if output.penalty is not None else 0.0)).backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
        assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)
        assert any(bool(gradient.any()) for gradient in gradients if gradient is not None)


def test_equal_sizes_and_equal_tokens_on_english() -> None:
    names = [name for name in NAMES if name.startswith("english-4m/")]
    assert len(names) == 7
    outside = [sizes(name)[1] for name in names]
    assert max(outside) <= 1.02 * min(outside)
    recipes = [recipe_of(name) for name in names]
    read = {
        (r.training.steps, r.training.batch_size, r.training.segment_length, r.training.accumulation) for r in recipes
    }
    assert len(read) == 1
    assert len({(recipe.data, recipe.model.memory_length) for recipe in recipes}) == 1
