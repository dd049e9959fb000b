"""lm-evaluation-harness, offline, on an exported run: its figure is that of `equilibria eval`, its text that of
`generate`, whatever the size of its batches."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

import tiny
from equilibria.cli.app import main
from equilibria.data import TokenizerSpec
from equilibria.inference import generate
from equilibria.models.sampling import Sampling

lm_eval: Any = pytest.importorskip("lm_eval", reason="the extra eval is not installed")

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


@pytest.mark.filterwarnings("ignore")
def test_an_answer_ends_with_its_line_in_any_batch(
    alphabet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    prompts = ["abc", "fg", "abcdefgh\na", "d"]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps({"text": prompt}) + "\n" for prompt in prompts))
    task = {
        "task": "answers",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "asked.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "",
        "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 30},
        "metric_list": [{"metric": "exact_match"}],
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "answers.yaml").write_text(json.dumps(task))
    assert main(["export", str(alphabet), str(tmp_path / "model"), "--to", "hf"]) == 0
    expected = [
        sample.text.split("\n")[0]
        for sample in generate(alphabet, prompts, max_new_tokens=30, sampling=Sampling(temperature=0))
    ]
    assert expected == ["defgh", "h", "bcdefgh", "efgh"]
    for batch_size in (1, 4):
        result = lm_eval.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(tmp_path / "model"), "trust_remote_code": True, "max_length": 80},
            tasks=["answers"],
            task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
            device="cpu",
            batch_size=batch_size,
            log_samples=True,
            bootstrap_iters=0,
        )
        samples = sorted(result["samples"]["answers"], key=lambda sample: sample["doc_id"])
        assert [sample["resps"][0][0] for sample in samples] == expected
