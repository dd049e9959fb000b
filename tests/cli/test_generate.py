"""`equilibria generate`."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equilibria.cli.app import main
from equilibria.cli.colours import shade
from equilibria.cli.generate import TextStream
from equilibria.data import ByteTokenizer


def test_the_text_is_printed_after_its_prompt(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = ["--prompt", "the cat", "--max-new-tokens", "9", "--seed", "3", "--top-k", "5"]
    assert main(["generate", str(run), *draw]) == 0
    shown = capsys.readouterr().out
    assert main(["generate", str(run), *draw, "--json"]) == 0
    sample = json.loads(capsys.readouterr().out)
    assert shown == f"the cat{sample['text']}\n"
    assert (sample["prompt"], sample["seed"], sample["top_k"], sample["top_p"]) == ("the cat", 3, 5, None)
    assert sample == json.loads((run / "sample.json").read_text())


def test_without_a_prompt_or_seed_each_text_is_another(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = set()
    for _ in range(3):
        assert main(["generate", str(run), "--max-new-tokens", "20", "--temperature", "2", "--json"]) == 0
        texts.add(json.loads(capsys.readouterr().out)["text"])
    assert len(texts) > 1


@settings(deadline=None)
@given(st.binary(max_size=20) | st.text(max_size=8).map(str.encode), st.data())
def test_pieces_join_to_the_text_and_characters_stay_whole(content: bytes, data: st.DataObject) -> None:
    pieces: list[str] = []
    stream = TextStream(ByteTokenizer(), lambda piece, _: pieces.append(piece))
    left = list(content)
    while left:
        size = data.draw(st.integers(1, len(left)))
        stream.write(left[:size])
        left = left[size:]
    stream.finish()
    text = content.decode("utf-8", "replace")
    assert "".join(pieces) == text == stream.text


def test_half_a_character_is_held_back() -> None:
    pieces: list[str] = []
    stream = TextStream(ByteTokenizer(), lambda piece, _: pieces.append(piece))
    for byte in "aé".encode():
        stream.write([byte])
    assert pieces == ["a", "é"]


def test_evaluations_are_shown_in_colours_with_a_legend(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = ["--prompt", "the cat", "--max-new-tokens", "9", "--seed", "3"]
    assert main(["generate", str(run), *draw]) == 0
    plain = capsys.readouterr().out
    assert main(["generate", str(run), *draw, "--show-evaluations"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(plain)
    assert "evaluations:" in shown.removeprefix(plain)
    assert shade(2) != shade(5) != shade(12) == shade(40)


def test_less_effort_is_seen(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = ["--prompt", "the", "--max-new-tokens", "5", "--show-evaluations"]
    assert main(["generate", str(run), *draw, "--tolerance", "1e-9", "--max-evaluations", "3"]) == 0
    assert " 3  100%" in capsys.readouterr().out
