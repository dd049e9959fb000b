"""`equilibria bench laboratory`: contenders and variants, with everything that is measured of an equilibrium."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks._laboratory_table import better_twin, draw, ratios, seconds_to
from benchmarks._shuffled_text import shuffled_folder
from benchmarks._solved import token_gain
from benchmarks.laboratory import FEATURES, parse, recipes_of
from equilibria.cli.app import main
from equilibria.configuration.comparing import settings
from equilibria.data import EmbeddedText, FolderText
from equilibria.data.sources.base import Split


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the results go, and with them the shuffled text, which takes longer to make than all the rest."""
    return tmp_path_factory.mktemp("laboratory")


@pytest.fixture(scope="module")
def command(folder: Path) -> list[str]:
    text = folder / "text"
    text.mkdir()
    for split in ("train", "valid"):
        (text / f"{split}.txt").write_text("some words again and again\n" * 200)
    return ["bench", "laboratory", "--proxy", "bytes", "--data-path", str(text), "--steps", "2", "--seeds", "0"]


def test_a_variant_is_the_default_with_other_keys(
    command: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "laboratory.json"
    small = ["model.cell.d_model=8", "model.cell.heads=2", "model.cell.inner=8", "training.batch_size=2"]
    changed = ["model.depth.residual_penalty=0.5", "model.cell.injection_norm=false"]
    picture = tmp_path / "laboratory.svg"
    variants = ["--variant", "light", *small, *changed, "--variant", "longer", *small, *changed, "training.steps=3"]
    assert main([*command, *variants, "--evaluate-tokens", "500", "--out", str(out), "--picture", str(picture)]) == 0
    assert "light (1)" in picture.read_text()
    rows = json.loads(out.read_text())["rows"]
    assert [point["step"] for point in rows["longer"]["seeds"]["0"]["curve"]] == [1, 2, 3]
    assert (rows["light"]["steps"], rows["longer"]["steps"]) == (2, 3)
    found = rows["light"]["seeds"]["0"]
    assert set(found["budgets"]) == {"2", "4", "8", "16", "32", "64"}
    assert found["budgets"]["64"]["residual"] <= found["budgets"]["2"]["residual"]
    assert [point["step"] for point in found["curve"]] == [1, 2]
    assert found["radius"] > 0
    assert 0 <= found["gradient_error"] < 1
    assert "light" in capsys.readouterr().out


def test_another_width_keeps_the_proportions_of_a_row(command: list[str], folder: Path) -> None:
    rows = ["--rows", "default", "stack-equal-parameters", "transformer-xl", "deq-transformer-2023"]
    sizes = ["--width", "256", "--steps", "1000", "--evaluations", "4", "--evaluate-tokens", "500"]
    found = recipes_of(parse([*command[2:], *rows, *sizes, "--out", str(folder / "widths.json")]))
    widths = {name: [settings(found[name]).get(key) for key in FEATURES] for name in rows[1:]}
    assert widths["default"] == [None, 256, 384, 1280]
    assert widths["transformer-xl"] == [256, 120, 256, None]
    assert widths["deq-transformer-2023"] == [256, 256, 800, None]
    assert [row.training.steps for row in found.values()] == [1000, 1025, 621, 171]
    assert [row.training.evaluate_every for row in found.values()] == [250, 256, 155, 42]
    assert {row.training.evaluate_tokens for row in found.values()} == {500}


def test_keys_that_all_rows_get(command: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["--rows", "late", "attractor", "--set", "model.cell.dropout=0.2", "training.steps=7"]
    found = recipes_of(parse([*command[2:], *rows, "--out", str(folder / "set.json")]))
    assert [(settings(row)["model.cell.dropout"], row.training.steps) for row in found.values()] == [(0.2, 7)] * 2
    assert main([*command, "--rows", "late", "--set", "training.steps", "--out", str(folder / "set.json")]) == 2
    assert "--set training.steps: give a key" in capsys.readouterr().err


def test_unknown_rows_and_malformed_variants_are_errors(
    command: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(folder / "errors.json")]
    command = [*command, "--out", str(tmp_path / "new" / "laboratory.json")]
    assert main(command) == 2
    assert "--rows" in capsys.readouterr().err
    assert main([*command, "--rows", "twim"]) == 2
    assert "twim" in capsys.readouterr().err
    assert main([*command, "--variant", "light", "model.cell.inner"]) == 2
    assert "KEY=VALUE" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert main([*command, *out, "--rows", "transformer-xl", "--width", "136"]) == 2
    assert "model.cell.d_model: d_model must be" in capsys.readouterr().err


def test_the_shuffled_text_has_every_passage_of_both_once(tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.mkdir()
    splits: tuple[Split, ...] = ("train", "valid")
    lines_of = {name: [f"{name} passage {n} " + "word " * 40 + "\n" for n in range(2000)] for name in splits}
    for split in splits:
        (path / f"{split}.txt").write_text("".join(lines_of[split]))
    sources = [FolderText(path), EmbeddedText()]
    folder = shuffled_folder(sources, tmp_path / "mixed")
    assert shuffled_folder(sources, tmp_path / "mixed") == folder
    assert shuffled_folder(sources, tmp_path / "again").name == folder.name
    for split in splits:
        lines, lines_of_source = lines_of[split], set(lines_of[split])
        found = (folder / f"{split}.txt").read_text().splitlines(keepends=True)
        assert found == (tmp_path / "again" / folder.name / f"{split}.txt").read_text().splitlines(keepends=True)
        assert sorted(found) == sorted([*lines, *EmbeddedText().pieces(split)])
        places = [place for place, line in enumerate(found) if line in lines_of_source]
        order = [found[place] for place in places]
        assert order != lines
        assert order[order.index(lines[0]) + 1] == lines[1]  # passages of a run stay together
        assert 0.4 < sum(place < len(found) / 2 for place in places) / len(places) < 0.6
    little = shuffled_folder(sources, tmp_path / "mixed", 9000)
    begun, whole = ((one / "train.txt").read_text() for one in (little, folder))
    assert whole.startswith(begun)
    assert 9000 <= len(begun) < 12_000
    assert begun.endswith("\n")
    assert (little / "valid.txt").read_bytes() == (folder / "valid.txt").read_bytes()
    (path / "valid.txt").write_text("other text\n")
    other = shuffled_folder(sources, tmp_path / "mixed")
    assert "other text" in (other / "valid.txt").read_text()
    assert "other text" not in (folder / "valid.txt").read_text()
    assert "embedded" not in shuffled_folder(sources[:1], tmp_path).name


def test_the_better_twin_has_the_least_mean_loss() -> None:
    rows = {name: {"seeds": {"0": {"loss": loss}}} for name, loss in (("twin", 3.0), ("twin-more", 2.0), ("ours", 1.0))}
    assert better_twin({**rows, "twin-none": {"seeds": {}}}) is rows["twin-more"]
    assert better_twin({"ours": rows["ours"]}) == {"seeds": {}}


def test_the_same_result_gives_the_same_picture(tmp_path: Path) -> None:
    curve = [{"step": step, "seconds": 2.0 * step, "loss": 3.0 / step} for step in (1, 2)]
    result = {"data": "some text", "rows": {"ours": {"seeds": {"0": {"curve": curve}}}, "none": {"seeds": {}}}}
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        draw(result, tmp_path / folder / "picture.svg")
        draw(result, tmp_path / folder / "picture.png")
    assert (tmp_path / "here" / "picture.svg").read_bytes() == (tmp_path / "there" / "picture.svg").read_bytes()
    assert (tmp_path / "here" / "picture.png").read_bytes() == (tmp_path / "there" / "picture.png").read_bytes()


def test_the_gain_from_token_to_token_equals_its_closed_form() -> None:
    torch.manual_seed(0)
    own, before = 0.3 * torch.randn(3, 3).double(), torch.randn(3, 3).double()

    def f(z: torch.Tensor) -> torch.Tensor:
        return z @ own.T + torch.nn.functional.pad(z, (0, 0, 1, 0))[:, :-1] @ before.T

    expected = torch.linalg.matrix_norm(torch.linalg.inv(torch.eye(3) - own) @ before, ord=2)
    assert token_gain(f, torch.randn(1, 4, 3).double(), 2) == pytest.approx(float(expected))


def test_time_to_a_loss_is_interpolated_and_compared_seed_by_seed() -> None:
    curve = [{"loss": 4.0, "seconds": 10.0}, {"loss": 2.0, "seconds": 20.0}]
    assert [seconds_to(curve, loss) for loss in (5.0, 3.0, 1.0)] == [10.0, 15.0, None]
    row = {"seeds": {"0": {"loss": 2.0, "curve": curve, "saved_bytes": 1}}}
    twin = {"seeds": {"0": {"loss": 3.0, "training_seconds": 60.0, "saved_bytes": 4}, "1": {}}}
    assert ratios(row, twin) == {
        **{"loss": pytest.approx(2 / 3), "time": 0.25, "saved": 0.25},
        "near": pytest.approx((20.0 - 5.0 * (3.0 * 1.003 - 2.0)) / 60.0),
    }
    assert ratios({"seeds": {}}, twin) == {"loss": None, "time": None, "near": None, "saved": None}
