"""lm-evaluation-harness, offline, on an exported run: its figure is that of `equilibria eval`."""

import json
import random
from pathlib import Path

import pytest

import tiny
from equilibria.cli.app import main
from equilibria.data import TokenizerSpec

pytest.importorskip("lm_eval", reason="the extra eval is not installed")

WINDOW = 24


@pytest.mark.filterwarnings("ignore")
def test_both_evaluations_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Words, of a text that is as long as some windows, so that none sees more of it here than there."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    recipe = tiny.tiny_recipe(tmp_path)
    words = (tmp_path / "text" / "train.txt").read_text(encoding="utf-8").split()
    lines = random.Random(0).choices(words, k=20 * WINDOW - 40)
    body = "".join(word + ("\n" if number % 11 == 10 else " ") for number, word in enumerate(lines))
    (tmp_path / "text" / "valid.txt").write_text("\n" + body + "\n", encoding="utf-8")
    recipe = tiny.with_data(recipe, tokenizer=TokenizerSpec("word"))
    tiny.tiny_trainer(recipe).run()
    run = recipe.run.folder
    reading = ["--batch-size", "1", "--segment-length", str(WINDOW), "--memory-length", "0"]
    assert main(["eval", str(run), *reading, "--json"]) == 0
    ours = json.loads(capsys.readouterr().out)
    assert main(["bench", "lm_evaluation", str(run), "--windows", str(ours["tokens"] // WINDOW), "--json"]) == 0
    both = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert ours["tokens"] - both["tokens"] < WINDOW
    assert both["lm_eval"]["loss"] == pytest.approx(ours["loss"], abs=1e-2)
    assert both["difference"]["nats"] < 1e-5
    assert both["difference"]["perplexity"] < 1e-5
    assert both["difference"]["bits_per_byte"] < 1e-5
