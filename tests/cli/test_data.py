"""`equilibria data`: texts from a real server on loopback, and recipes that then run as they are."""

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import tiny
from equilibria.cli.app import main
from equilibria.configuration import read_recipe, recipe_from
from equilibria.data.prepared import opened
from loopback import Loopback, serving
from watching import Watcher


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    with serving() as server:
        yield server


def served(server: Loopback) -> list[str]:
    """Flags that fetch the Penn Treebank from a mirror that has another text."""
    text = tiny.write_text(Path("elsewhere"))
    names = {split: f"/ptb.{split}.txt" for split in ("train", "valid", "test")}
    urls = [server.serve(name, (text / f"{split}.txt").read_bytes()) for split, name in names.items()]
    return [part for url in urls for part in ("--url", url)]


def test_a_recipe_runs_without_further_flags(server: Loopback, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "ptb", *served(server), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["folder"] == "data/ptb"
    assert found["new"]
    assert [source["verified"] for source in found["sources"]] == [False] * 3
    assert found["splits"]["valid"]["tokens"] == found["splits"]["valid"]["words"] > 100
    watcher = Watcher()
    task = opened(read_recipe("ptb/deq-trellisnet").data, watcher)
    assert watcher.bars == []  # it was prepared as the recipe has it
    assert task.tokenizer.vocabulary_size == found["vocabulary_size"]


def test_a_person_is_told_what_was_trusted(server: Loopback, capsys: pytest.CaptureFixture[str]) -> None:
    urls = served(server)
    assert main(["data", "ptb", *urls]) == 0
    shown = capsys.readouterr().out
    assert "fetching http://127.0.0.1" in shown
    assert "encoding the train split of ptb" in shown
    assert "trusted this first time: no digest is published" in shown
    assert 'path = "data/ptb"' in shown
    server.requests.clear()
    assert main(["data", "ptb", *urls, "--offline"]) == 0
    assert "as it was fetched" in capsys.readouterr().out
    assert server.requests == []


def test_the_recipe_that_is_printed_is_what_was_prepared(server: Loopback, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--vocabulary-size", "12", "--minimum-count", "2", "--cache", "encoded"]
    assert main(["data", "ptb", *served(server), *asked]) == 0
    shown = capsys.readouterr().out.partition("In a recipe:\n")[2]
    recipe = recipe_from({"run": {"name": "x"}, **tomllib.loads(shown)}, "shown")
    watcher = Watcher()
    assert opened(recipe.data, watcher).tokenizer.vocabulary_size == 12
    assert watcher.bars == []


def test_a_digest_is_checked(server: Loopback, capsys: pytest.CaptureFixture[str]) -> None:
    urls = served(server)
    digests = ["--digest", "sha256:" + "0" * 64] * 3
    assert main(["data", "ptb", *urls, *digests]) == 2
    assert "expected sha256:000000" in capsys.readouterr().err
    assert not Path("data/ptb").exists()
    assert main(["data", "ptb", "--digest", "sha256:12"]) == 2
    assert capsys.readouterr().err.startswith("error: 1 digests for 0 URLs")


def test_bytes_are_the_files_themselves(server: Loopback, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "ptb", *served(server), "--tokenizer", "bytes", "--out", "texts", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    train = Path("texts/train.txt").read_bytes()
    assert Path(found["tokens"], "train.bin").read_bytes() == train
    assert found["splits"]["train"] == {"tokens": len(train), "words": len(train.split()) + 100, "bytes": len(train)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ptbs"], 'did you mean "ptb"?'),
        (["ptb", "--offline"], "data/ptb does not hold this text yet"),
        (["ptb", "--url", "ftp://host/ptb.train.txt"], "not an HTTP(S) URL"),
        (["hf"], "NAME"),
        (["hf", "someone/texts", "--held-out", "1"], "held-out"),
        (["wikitext-2", "--offline", "--tokenizer", "words"], 'expected one of "word"'),
    ],
)
def test_errors_are_one_line(
    server: Loopback, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert server.requests == []
