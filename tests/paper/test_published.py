"""The published tables: each of their rows can be run, at every scale."""

from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch

from equilibria.cli.reproduce import reproduce
from equilibria.configuration import Recipe
from equilibria.configuration.building import build_model
from equilibria.configuration.comparing import settings
from equilibria.configuration.shipped import shipped_recipes
from equilibria.data import FolderText
from equilibria.depths import Equilibrium, Stack, UnrolledDepth
from equilibria.measuring.size import size_without_weights
from equilibria.models import LanguageModelRecipe
from equilibria.paper import published
from equilibria.paper.runs import recipe_of
from equilibria.paper.tables import Contest, Row, Scale, TrainedTable

DEPTH = tuple(f"model.depth.{key}" for key in ("kind", "applications", "layers"))
SCALES: tuple[Scale, ...] = get_args(Scale)
ROWS = [(table, row) for table in published.TRAINED.values() for row in table.rows]
CONTESTS = [contest for table in published.MEASURED.values() for contest in table.contests]


def named(value: object) -> str | None:
    """For the names of tests."""
    if isinstance(value, Contest):
        return f"{value.table.name}-{value.rows[-1].name}"
    return value.name if isinstance(value, TrainedTable | Row) else None


def scaled(table: TrainedTable, row: Row, scale: Scale) -> Recipe:
    return recipe_of(table, row, scale, 5, Path("runs"))


def inner(table: TrainedTable, row: Row, scale: Scale) -> int:
    recipe = scaled(table, row, scale)
    return size_without_weights(lambda: build_model(recipe, table.vocabulary_of(recipe))).inner


def test_the_command_knows_the_tables() -> None:
    names = get_args(get_type_hints(reproduce)["table"])
    assert list(names) == [*published.TRAINED, *published.MEASURED]


def test_rows_have_names_of_their_own() -> None:
    for table in published.TRAINED.values():
        assert len({row.name for row in table.rows}) == len(table.rows)
        assert all(set(row.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for row in table.rows)


def test_all_recipes_of_the_tables_are_rows() -> None:
    names = {name for name in shipped_recipes() if name.split("/")[0] in published.TRAINED}
    later = {"wikitext-103/deq-transformer-medium-regularised"}  # a model of the paper of 2021
    assert {f"{table.name}/{row.recipe}" for table, row in ROWS} == names - later


@pytest.mark.parametrize(("table", "row"), ROWS, ids=named)
@pytest.mark.parametrize("scale", SCALES)
def test_a_row_can_be_run(table: TrainedTable, row: Row, scale: Scale) -> None:
    recipe = scaled(table, row, scale)
    with torch.device("meta"):
        model = build_model(recipe, table.vocabulary_of(recipe))
    assert model.embedding.vocabulary_size <= table.vocabulary_size
    assert recipe.run.folder == Path("runs", table.name, f"{row.name}-{scale}-5")
    assert recipe.training.seed == 5
    said = settings(recipe)
    warmup = said.get("model.depth.schedule.warmup_steps") or 0
    assert isinstance(warmup, int)
    assert warmup <= recipe.training.steps / 3
    assert isinstance(recipe.data, FolderText) == bool(table.data)
    if scale != "full":
        whole = scaled(table, row, "full")
        assert recipe.training.steps < whole.training.steps
        kept = settings(whole)
        assert all(said.get(key) == kept.get(key) for key in DEPTH)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("contest", CONTESTS, ids=named)
def test_a_contest_is_between_equals(contest: Contest, scale: Scale) -> None:
    """As equal as the paper's own."""
    first, *others = (inner(contest.table, row, scale) for row in contest.rows)
    assert others == pytest.approx([first] * len(others), rel=0.1)


@pytest.mark.parametrize("contest", CONTESTS, ids=named)
def test_the_measure_is_explicit_and_keeps_everything(contest: Contest) -> None:
    models = [scaled(contest.table, row, "tiny").model for row in contest.rows]
    depths = [model.depth for model in models if isinstance(model, LanguageModelRecipe)]
    assert isinstance(depths[0], UnrolledDepth | Stack)
    assert isinstance(depths[-1], Equilibrium)
    checkpointed = [getattr(depth, "checkpoint", False) for depth in depths]
    assert checkpointed == ["checkpointed" in row.name for row in contest.rows]


@pytest.mark.parametrize("scale", ["tiny", "small"])
def test_rows_of_a_size_in_the_paper_are_of_a_size_at_every_scale(scale: Scale) -> None:
    sizes: dict[tuple[str, float], list[int]] = {}
    for table, row in ROWS:
        if row.inner is not None:
            sizes.setdefault((table.name, row.inner), []).append(inner(table, row, scale))
    assert max(map(len, sizes.values())) > 2
    for found in sizes.values():
        assert found == pytest.approx([found[0]] * len(found), rel=0.1)
