"""`equilibria export`: a file that PyTorch or an ONNX runtime runs, and errors that overwrite nothing."""

import json
import sys
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


@pytest.mark.filterwarnings("ignore")
def test_a_file_for_onnx(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    flags = ["--evaluations", "3", "--json"]
    for to, name in (("torch", "model.pt2"), ("onnx", "model.onnx")):
        assert main(["export", str(run), "--to", to, str(tmp_path / name), *flags]) == 0
    tokens = torch.randint(256, (2, 17))
    (found,) = runtime.InferenceSession(str(tmp_path / "model.onnx")).run(None, {"tokens": tokens.numpy()})
    expected = torch.export.load(tmp_path / "model.pt2").module()(tokens)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)


def test_onnx_needs_its_extra(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", str(run), "--to", "onnx", str(tmp_path / "model.onnx")]) == 2
    assert "pip install 'equilibria[onnx]'" in capsys.readouterr().err
