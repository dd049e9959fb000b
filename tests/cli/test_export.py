"""`equilibria export`: a file that PyTorch runs, and errors that overwrite nothing."""

import json
from pathlib import Path

import pytest
import torch

from equilibria.cli.app import main


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.pt2"
    assert main(["export", str(run), "--to", "torch", str(file), "--evaluations", "3", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["file"], figures["part"]) == (str(file), "solve")
    assert "evaluations=3" in figures["depth"]
    tokens = torch.randint(256, (2, 17))
    assert torch.export.load(file).module()(tokens).shape == (2, 17, 256)
    before = file.read_bytes()
    assert main(["export", str(run), "--to", "torch", str(file)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert main(["export", str(run), "--to", "torch", str(tmp_path / "model.onnx")]) == 2
    assert "does not end in .pt2" in capsys.readouterr().err
