"""A bit that flips in a file that decides a result, and a file that is cut short, emptied or lost: never unnoticed."""

import random
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from equilibria.cli.app import main
from equilibria.configuration import Recipe, table_of
from equilibria.data import TokenizerSpec
from equilibria.errors import UserError
from equilibria.inference.loading import load_run
from equilibria.runs.folder import RunFolder
from plain_published import Published, random_weights
from tiny import TRAINING, tiny_recipe, tiny_trainer, with_data

FLIPS = 12

Seen = tuple[Recipe, list[str], dict[str, Tensor], Path]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = tiny_recipe(tmp_path_factory.mktemp("trained"), replace(TRAINING, checkpoints_kept=3, checkpoint_every=2))
    recipe = with_data(recipe, tokenizer=TokenizerSpec("word"))
    tiny_trainer(recipe).run()
    return recipe.run.folder


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("imported")
    torch.save(random_weights(Published("torchdeq-lm", vocabulary_size=12, cutoffs=(5, 9))), base / "weights.pth")
    assert main(["import", "torchdeq-lm", str(base / "weights.pth"), "--out", str(base / "run")]) == 0
    return base / "run"


@pytest.fixture(params=["trained", "imported"])
def copy(request: pytest.FixtureRequest, tmp_path: Path) -> RunFolder:
    run: Path = request.getfixturevalue(request.param)
    shutil.copytree(run, tmp_path / "copy")
    return RunFolder(tmp_path / "copy")


def seen(run: Path) -> Seen:
    """All that a command makes of a run."""
    loaded = load_run(run)
    words = [loaded.tokenizer.decode([number]) for number in range(loaded.tokenizer.vocabulary_size)]
    return loaded.recipe, words, dict(loaded.model.state_dict()), loaded.checkpoint


def same(one: Seen, other: Seen) -> bool:
    weights = all(torch.equal(tensor, other[2][name]) for name, tensor in one[2].items())
    return weights and table_of(one[0]) == table_of(other[0]) and one[1] == other[1] and one[3] == other[3]


def flipped(content: bytes, draw: random.Random) -> bytes:
    """With one bit inverted."""
    place = draw.randrange(8 * len(content))
    return content[: place // 8] + bytes([content[place // 8] ^ 1 << place % 8]) + content[place // 8 + 1 :]


def damages(draw: random.Random) -> list[Callable[[bytes], bytes | None]]:
    """From what a file holds to what is left of it; None where it is gone."""
    cut: Callable[[bytes], bytes] = lambda content: content[: -draw.randint(3, len(content) // 2)]  # noqa: E731
    return [*[lambda content: flipped(content, draw)] * FLIPS, cut, lambda _: b"", lambda _: None]


FILES: dict[str, Callable[[RunFolder], Path]] = {
    "recipe": lambda run: run.config,
    "tokenizer": lambda run: run.tokenizer,
    "manifest": lambda run: run.manifest,
    "weights": lambda run: run.checkpoint("best") / "model.safetensors",
    "manifest of the checkpoint": lambda run: run.checkpoint("best") / "manifest.json",
}


@pytest.mark.parametrize("file", FILES)
def test_damage_is_an_error(copy: RunFolder, file: str) -> None:
    path, draw = FILES[file](copy), random.Random(1)
    whole = path.read_bytes()
    for damage in damages(draw):
        left = damage(whole)
        if left is None:
            path.unlink()
        else:
            path.write_bytes(left)
        with pytest.raises(UserError):
            load_run(copy.path)
    path.write_bytes(whole)
    load_run(copy.path)


def test_a_damaged_index_is_rebuilt_and_that_is_said(copy: RunFolder) -> None:
    wanted, whole, draw = seen(copy.path), copy.index_file.read_bytes(), random.Random(1)
    for damage in damages(draw):
        left = damage(whole)
        if left is None:
            copy.index_file.unlink()
        else:
            copy.index_file.write_bytes(left)
        with pytest.warns(UserWarning, match=r"index\.json is (damaged|missing)"):
            assert same(seen(copy.path), wanted)
    copy.index_file.write_bytes(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(seen(copy.path), wanted)


@pytest.mark.parametrize(
    ("file", "way_out"),
    [
        ("recipe", ["delete its first line to take it as it is"] * 2),
        ("tokenizer", ["--resume`", "import the model again"]),
        ("manifest", ["--resume`", "import the model again"]),
        ("weights", ["take another checkpoint (step-10, step-8)", "import the model again"]),
        ("manifest of the checkpoint", ["take another checkpoint (step-10, step-8)", "import the model again"]),
    ],
)
@pytest.mark.parametrize("command", ["eval", "generate", "export", "serve"])
def test_every_command_names_the_way_out(
    copy: RunFolder, file: str, way_out: list[str], command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = FILES[file](copy)
    path.write_bytes(flipped(path.read_bytes(), random.Random(2)))
    more = [str(tmp_path / "model.pt2"), "--to", "torch"] if command == "export" else []
    assert main([command, str(copy.path), *more]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert path.name in said
    assert way_out[copy.imported] in said


@pytest.mark.filterwarnings("default")
def test_a_command_says_in_a_line_that_the_index_is_lost(copy: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    copy.index_file.unlink()
    assert main(["generate", str(copy.path), "--max-new-tokens", "2"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"warning: {copy.index_file} is missing; by what is there, step-")
