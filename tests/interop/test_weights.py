"""A folder that was given away is the run's model, in float32 to the bit and in bfloat16 within its rounding."""

import json
from pathlib import Path

import pytest
import torch

import equilibria as eq
from equilibria.cli.app import main
from equilibria.configuration import recipe_text
from equilibria.inference.loading import load_run
from tiny import tiny_recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = tiny_recipe(tmp_path_factory.mktemp("weights"))
    eq.train(recipe)
    return recipe.run.folder


@pytest.mark.parametrize(("flags", "tolerance"), [([], 0.0), (["--dtype", "bfloat16"], 2**-8)])
def test_weights_given_away_are_loaded_from_their_folder(
    run: Path, tmp_path: Path, flags: list[str], tolerance: float
) -> None:
    folder = tmp_path / "given"
    assert main(["export", str(run), str(folder), "--to", "equilibria", *flags]) == 0
    found, wanted = load_run(folder), load_run(run)
    assert found.model.state_dict().keys() == wanted.model.state_dict().keys()
    for name, tensor in found.model.state_dict().items():
        assert tensor.dtype == wanted.model.state_dict()[name].dtype
        torch.testing.assert_close(tensor, wanted.model.state_dict()[name], rtol=tolerance, atol=0)
    assert recipe_text(found.recipe) == recipe_text(wanted.recipe)
    assert (folder / "model.safetensors").stat().st_size < (0.6 if flags else 1.1) * wanted.checkpoint.joinpath(
        "model.safetensors"
    ).stat().st_size


def test_a_folder_is_evaluated_and_keeps_its_figures(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "given"
    assert main(["export", str(run), str(folder), "--to", "equilibria"]) == 0
    capsys.readouterr()
    assert main(["eval", str(folder), "--json"]) == 0
    given = json.loads(capsys.readouterr().out)
    assert main(["eval", str(run), "--json"]) == 0
    assert given["loss"] == json.loads(capsys.readouterr().out)["loss"]
    assert json.loads((folder / "evaluation.json").read_text())["loss"] == given["loss"]


def test_a_flipped_byte_is_found(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "given"
    assert main(["export", str(run), str(folder), "--to", "equilibria"]) == 0
    for name in ("model.safetensors", "tokenizer.json", "config.toml"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:])
        with pytest.raises(eq.UserError, match=rf"{name} is not what was saved.*export the run again"):
            load_run(folder)
        (folder / name).write_bytes(whole)
    assert load_run(folder).model.causal


def test_a_run_with_a_stray_file_of_weights_stays_a_run(run: Path) -> None:
    stray = run / "model.safetensors"
    stray.write_bytes(b"no weights")
    try:
        assert load_run(run).step is not None
    finally:
        stray.unlink()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--to", "equilibria", "--part", "solve"], "--part and --evaluations are for programs"),
        (["--to", "torch", "--dtype", "bfloat16"], "--dtype is for folders of this package"),
    ],
)
def test_options_of_other_exports_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main(["export", str(run), str(tmp_path / "out"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kept").write_text("mine")
    assert main(["export", str(run), str(tmp_path), "--to", "equilibria"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
