"""`equilibria generate`."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from equilibria.cli.app import main
from equilibria.inference.loading import load_run
from equilibria.runs.index import MODEL_FILE
from equilibria.runs.weights import read_tensors


def test_the_text_is_printed_after_its_prompt(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = ["--prompt", "the cat", "--max-new-tokens", "9", "--seed", "3", "--top-k", "5"]
    assert main(["generate", str(run), *draw]) == 0
    shown = capsys.readouterr().out
    assert main(["generate", str(run), *draw, "--json"]) == 0
    sample = json.loads(capsys.readouterr().out)
    assert shown == f"the cat{sample['text']}\n"
    assert (sample["prompt"], sample["seed"], sample["top_k"], sample["top_p"]) == ("the cat", 3, 5, None)
    assert sample == json.loads((run / "sample.json").read_text())


@pytest.mark.filterwarnings("ignore::equilibria.ConvergenceWarning")
def test_without_a_prompt_or_seed_each_text_is_another(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = set()
    for _ in range(3):
        assert main(["generate", str(run), "--max-new-tokens", "20", "--temperature", "2", "--json"]) == 0
        texts.add(json.loads(capsys.readouterr().out)["text"])
    assert len(texts) > 1


@pytest.mark.filterwarnings("ignore::equilibria.ConvergenceWarning")
def test_several_texts_come_in_their_order_and_as_they_would_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("a fixed\n\nnobody\n", encoding="utf-8")
    draw = ["--prompt", "the cat", "--prompts-file", str(tmp_path / "prompts.txt"), "--samples", "2"]
    shared = ["--max-new-tokens", "9", "--min-p", "0.05", "--repetition-penalty", "1.2", "--stop", "q", "--stop", "zz"]
    assert main(["generate", str(run), *draw, *shared, "--seed", "5", "--json"]) == 0
    texts = json.loads(capsys.readouterr().out)["texts"]
    assert [text["prompt"] for text in texts] == ["the cat"] * 2 + ["a fixed"] * 2 + ["nobody"] * 2
    assert main(["generate", str(run), *draw, *shared, "--seed", "5"]) == 0
    assert capsys.readouterr().out == "\n---\n".join(text["prompt"] + text["text"] for text in texts) + "\n"
    for number, text in enumerate(texts):
        assert text["seed"] == 5 + number
        alone = ["--prompt", text["prompt"], *shared, "--seed", str(text["seed"]), "--json"]
        assert main(["generate", str(run), *alone]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["text"], found["finish_reason"]) == (text["text"], text["finish_reason"])


def test_an_empty_stop_string_is_an_error(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(run), "--stop", ""]) == 2
    assert "--stop must have at least 1 character" in capsys.readouterr().err


def test_a_text_ends_before_a_stop_string(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = ["--prompt", "the cat", "--max-new-tokens", "40", "--seed", "1", "--json"]
    found = []
    for stop in ([], ["--stop", "?"], ["--stop-at-end"]):
        more = [found[0]["text"][20:22] if word == "?" else word for word in stop]
        assert main(["generate", str(run), *draw, *more]) == 0
        found.append(json.loads(capsys.readouterr().out))
    plain, stopped, ended = found
    assert plain["finish_reason"] == "length"
    before = plain["text"].split(plain["text"][20:22])[0]
    assert (stopped["text"], stopped["finish_reason"]) == (before, "stop")
    passage, newline, _ = plain["text"].partition("\n")
    assert (ended["text"], ended["finish_reason"]) == (passage, "end" if newline else "length")


def test_prompts_that_cannot_be_read_are_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    for name, reason in (("empty.txt", "holds no prompt"), ("missing.txt", "there is no file")):
        assert main(["generate", str(run), "--prompts-file", str(tmp_path / name)]) == 2
        assert reason in capsys.readouterr().err


def test_evaluations_are_shown_in_colours_with_a_legend(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = ["--prompt", "the cat", "--max-new-tokens", "9", "--seed", "3"]
    assert main(["generate", str(run), *draw]) == 0
    plain = capsys.readouterr().out
    assert main(["generate", str(run), *draw, "--show-evaluations"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(plain)
    assert "evaluations:" in shown.removeprefix(plain)


@pytest.mark.filterwarnings("always::equilibria.ConvergenceWarning")
def test_less_effort_is_seen(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = ["--prompt", "the", "--max-new-tokens", "5", "--show-evaluations"]
    assert main(["generate", str(run), *draw, "--tolerance", "1e-9", "--max-evaluations", "3"]) == 0
    printed = capsys.readouterr()
    assert " 4  100%" in printed.out
    assert printed.err == (
        "warning: 5 of 5 tokens were drawn after solves that did not converge; allow more evaluations or a larger "
        "tolerance\n"
    )
    assert json.loads((run / "sample.json").read_text())["unconverged"] == 5


def test_weights_that_are_not_finite_end_it_in_a_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = read_tensors(load_run(run).checkpoint / MODEL_FILE)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[0] = torch.nan
    save_file(tensors, tmp_path / "nan.safetensors")
    for file in ("config.toml", "tokenizer.json"):
        shutil.copy(run / file, tmp_path / file)
    assert main(["generate", str(tmp_path / "nan.safetensors"), "--prompt", "the"]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path / 'nan.safetensors'} has 1 of {tensors[name].numel()} numbers in {name} that are not "
        f"finite, so that the model says nothing; choose an earlier checkpoint, or restore the file\n"
    )


def test_a_prompt_that_is_not_utf_8_is_an_error(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(run), "--prompt", os.fsdecode(b"caf\xe9")]) == 2
    assert "is not UTF-8 text" in capsys.readouterr().err


def test_only_a_new_line_ends_a_prompt_of_a_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.txt").write_bytes("a\fcat\u2028sat\r\nthe".encode())
    flags = ["--prompts-file", str(tmp_path / "prompts.txt"), "--max-new-tokens", "1", "--json"]
    assert main(["generate", str(run), *flags]) == 0
    texts = json.loads(capsys.readouterr().out)["texts"]
    assert [text["prompt"] for text in texts] == ["a\fcat\u2028sat", "the"]


@pytest.mark.filterwarnings("always:could not save")
def test_a_text_that_cannot_be_kept_is_printed_all_the_same(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("sample.json"))
    (copy / "sample.json").mkdir()
    assert main(["generate", str(copy), "--prompt", "the", "--max-new-tokens", "2", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["prompt"] == "the"
    assert printed.err.startswith("warning: could not save sample.json: ")


def test_a_reader_that_has_read_enough_ends_it_quietly(run: Path) -> None:
    command = [sys.executable, "-m", "equilibria", "generate", str(run), "--max-new-tokens", "400"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as writing:
        assert writing.stdout is not None
        assert writing.stderr is not None
        writing.stdout.read(2)
        writing.stdout.close()
        assert writing.wait() == 128 + signal.SIGPIPE
        assert writing.stderr.read() == b""


def test_a_byte_order_mark_is_no_part_of_a_prompt(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_bytes(b"\xef\xbb\xbfthe cat\n")
    capsys.readouterr()
    flags = ["--prompts-file", str(tmp_path / "prompts.txt"), "--max-new-tokens", "1", "--json"]
    assert main(["generate", str(run), *flags]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "the cat"


def test_short_names_and_a_device(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for prompt, tokens in (("-p", "-n"), ("--prompt", "--max-new-tokens")):
        assert main(["generate", str(run), prompt, "the cat", tokens, "4", "--seed", "1", "--device", "cpu"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != ""


def test_help_says_the_same_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for _ in range(2):
        assert main(["generate", "--help"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


@pytest.mark.parametrize("command", ["generate", "serve", "eval"])
def test_a_device_that_is_not_here_is_a_sentence(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main([command, "run", "--device", "cuda"]) == 2
    assert capsys.readouterr().err == (
        'error: the device is to be "cuda", and there are no CUDA devices for 1 process; use "cpu" or "auto"\n'
    )


def test_colours_of_what_is_not_printed_or_does_not_solve_are_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(run), "--show-evaluations", "--json"]) == 2
    assert "omit one of them" in capsys.readouterr().err
