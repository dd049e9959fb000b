"""Whether a model fits its data: what it would see too much of, and what too little."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from equilibria.configuration import Recipe, checked, read_recipe, table_of
from equilibria.configuration.building import build_model
from equilibria.errors import UserError
from equilibria.models import LanguageModelRecipe


def read(folder: Path, text: str, flags: Sequence[str] = ()) -> Recipe:
    path = folder / "recipe.toml"
    path.write_text('[run]\nname = "x"\n' + text, encoding="utf-8")
    return read_recipe(path, flags)


SAMPLE = '[model.depth.solver]\nscope = "sample"\n[model.depth.eval_solver]\nscope = "sample"\n'
GRID = '[model.cell]\ncausal = false\npositions = "grid"\ncolumns = 4\n'
CROSS = '[data]\nsource = "own_kinds:CrossParity"\ncolumns = 4\n'


def test_a_grid_is_read_with_a_cell_without_direction(tmp_path: Path) -> None:
    found = read(tmp_path, CROSS + GRID + SAMPLE)
    assert isinstance(found.model, LanguageModelRecipe)
    assert found.model.cell.keywords.items() >= {"causal": False, "positions": "grid", "columns": 4}.items()
    assert table_of(checked(found)) == table_of(found)


@pytest.mark.parametrize("cell", ["", '[model.cell]\nkind = "trellis"\n'])
def test_a_causal_model_of_a_task_without_direction_is_warned_of(tmp_path: Path, cell: str) -> None:
    said = r"each answer of cross parity may rest on all inputs, .* model\.cell\.causal = false"
    with pytest.warns(UserWarning, match=said):
        found = read(tmp_path, CROSS + cell)
    with pytest.warns(UserWarning, match=said):
        build_model(found, 2)


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        (CROSS + GRID, [], 'model: depth.solver.scope and depth.eval_solver.scope = "prefix": .* give "sample"'),
        (
            CROSS + GRID + SAMPLE,
            ["--model.depth.eval_solver.scope", "prefix"],
            '--model.depth.eval_solver.scope: depth.eval_solver.scope = "prefix"',
        ),
        (GRID + SAMPLE, [], "model.cell.causal = false: tokens would see the answers of .*; give causal = true"),
        (
            '[data]\nsource = "copy_memory"\n' + GRID + SAMPLE,
            [],
            "model.cell.causal = false: tokens would see the answers of copy memory",
        ),
        (
            CROSS + GRID + SAMPLE,
            ["--data.columns", "3"],
            "model.cell.columns = 4: the grid of cross parity has 3 columns",
        ),
        (CROSS + GRID + SAMPLE, ["--model.memory_length", "8"], "memory_length = 8: .* give 0, and no chunk_length"),
        (
            CROSS + GRID + SAMPLE,
            ["--model.cell.positions", "none"],
            "go together; found positions = .none., columns = 4",
        ),
        (CROSS + GRID + SAMPLE, ["--model.cell.causal", "true"], 'positions = "grid" needs causal = false'),
    ],
)
def test_what_a_cell_without_direction_cannot_do_is_said(
    tmp_path: Path, text: str, flags: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, text, flags)
