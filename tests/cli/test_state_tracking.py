"""`equilibria demo state-tracking`, after a few steps of training."""

import json
from pathlib import Path

import numpy as np
import pytest

from equilibria.cli import state_tracking
from equilibria.cli.app import main


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(state_tracking, "_LENGTH", 40)
    return ["demo", "state-tracking", "--training.steps", "2", "--model.cell.hidden", "4", "--model.cell.d_model", "8"]


@pytest.mark.filterwarnings("ignore::equilibria.ConvergenceWarning")
def test_both_models_are_trained_read_and_drawn(short: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(short) == 0
    shown = capsys.readouterr().out
    for expected in ("1 to 16 (as in training)", "equilibrium", "24 applications", "whole words", "accuracy.svg"):
        assert expected in shown
    assert Path("runs/state-tracking-1/accuracy.svg").read_text().startswith("<?xml")
    assert main([*short, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert Path(figures["folder"]) == Path("runs/state-tracking-2")
    assert figures["equilibrium"]["evaluations"]["mean"] > 1
    assert figures["24 applications"]["evaluations"] is None
    for name in ("equilibrium", "24 applications"):
        assert 0 <= figures[name]["last_accuracy"] <= 1


@pytest.mark.filterwarnings("ignore:ignoring data.valid_length")
def test_another_task_is_refused(short: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*short, "--data.source", "copy_memory"]) == 2
    assert "is about words of a group" in capsys.readouterr().err


def test_what_is_followed_is_counted(short: list[str], tmp_path: Path) -> None:
    """Beside the words themselves, and a model that always answers with the first element of the group."""
    import torch

    from equilibria.cells import Memory
    from equilibria.data import WordProblem
    from equilibria.models.base import Output, TokenModel
    from equilibria.nn import TiedEmbedding

    words = next(iter(WordProblem(valid_length=12, held_out=8).split("valid").segments(8)))

    class Constant(TokenModel):
        """Says 0, whatever it reads."""

        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.memory_length = TiedEmbedding(6, 1), 0
            with torch.no_grad():
                next(self.embedding.parameters()).copy_(torch.tensor([[1.0], *[[0.0]] * 5]))

        def forward(self, tokens_BL, targets=None, memory=None, *, depth=None, memory_length=None) -> Output:
            raise NotImplementedError

        def prefill(self, tokens_BL, padding_B=None, limit=None, chunk_length=None, *, depth=None):
            from equilibria.models.decoding import Step

            return Step(torch.ones(len(tokens_BL), 1, 1), self.embedding, Memory(()))

        def decode(self, tokens_BL, cache, *, depth=None):
            return self.prefill(tokens_BL.unsqueeze(1))

    followed = state_tracking.follow(Constant(), words)
    assert np.array_equal(followed.right_BL, (words.targets == 0).numpy())
    assert not followed.evaluations_L.size
