"""Prepared text: encoded once, counted as documented, and encoded anew when the cache is damaged."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from equilibria.data import FolderText, Split, prepared
from equilibria.data.prepared import Corpus, prepare
from equilibria.data.sources import reading
from equilibria.data.tokenizer_training import TokenizerSpec
from equilibria.errors import UserError
from watching import Watcher

SHARED = Path(__file__).parents[3] / "shared" / "data"
TRAIN = "the cat sat\n\n on the café mat\n"
VALID = "the dog sat\n"


@pytest.fixture
def source(tmp_path: Path) -> FolderText:
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "train.txt").write_text(TRAIN, encoding="utf-8")
    (folder / "valid.txt").write_text(VALID, encoding="utf-8")
    return FolderText(folder)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "caches" / "cache"


class Unreadable(FolderText):
    """A source whose fingerprint can be taken but whose text must not be read."""

    def pieces(self, split: Split, as_bytes: bool = False) -> Iterator[str]:
        raise AssertionError(f"the {split} split was read again")


class Edited(FolderText):
    """A source whose training text is saved anew while it is read."""

    def pieces(self, split: Split, as_bytes: bool = False) -> Iterator[str]:
        yield from super().pieces(split, as_bytes)
        (self.path / "train.txt").write_text("another text\n", encoding="utf-8")


class Wordless(FolderText):
    """A source without any text."""

    def pieces(self, split: Split, as_bytes: bool = False) -> Iterator[str]:
        return iter(())


def test_tokens_are_the_passages_each_ended(source: FolderText, cache: Path) -> None:
    corpus = prepare(source, TokenizerSpec("word"), cache)
    end = corpus.tokenizer.eos
    expected = [
        *corpus.tokenizer.encode("the cat sat"),
        end,
        end,
        *corpus.tokenizer.encode("on the café mat"),
        end,
    ]
    train, valid = corpus.split("train"), corpus.split("valid")
    assert train.tokens.tolist() == expected
    assert (train.words, train.bytes) == (10, len(TRAIN.encode()))
    assert isinstance(train.tokens, np.memmap)
    assert train.tokens.dtype == np.uint8
    assert not train.tokens.flags.writeable
    assert corpus.tokenizer.decode(valid.tokens.tolist()) == "the <unk> sat\n"  # the vocabulary is of train alone
    assert (corpus.name, corpus.directory) == ("text", cache / corpus.fingerprint)


def test_bytes_are_the_file_itself(source: FolderText, cache: Path) -> None:
    split = prepare(source, TokenizerSpec("bytes"), cache).split("train")
    assert bytes(split.tokens.tolist()).decode() == TRAIN
    assert split.bytes == len(split.tokens)


def test_chunks_do_not_change_what_is_written(
    source: FolderText, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare(source, TokenizerSpec("bytes"), cache).split("train")
    monkeypatch.setattr(prepared, "_CHUNK", 3)
    pieces = prepare(source, TokenizerSpec("bytes"), tmp_path / "other").split("train")
    assert pieces.tokens.tolist() == whole.tokens.tolist()
    assert (pieces.words, pieces.bytes) == (whole.words, whole.bytes)


@pytest.mark.parametrize(
    ("distinct", "dtype"), [(254, np.uint8), (255, np.uint16), (65_534, np.uint16), (65_535, np.int32)]
)
def test_larger_vocabularies_take_wider_ids(source: FolderText, cache: Path, distinct: int, dtype: type) -> None:
    words = " ".join(f"w{number}" for number in range(distinct))  # and <unk> and <eos>
    (source.path / "train.txt").write_text(words)
    corpus = prepare(source, TokenizerSpec("word"), cache)
    tokens = corpus.split("train").tokens
    assert tokens.dtype == dtype
    assert corpus.tokenizer.decode(tokens.tolist()) == words + "\n"


def test_progress_reaches_its_end(source: FolderText, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "_CHUNK", 10)
    watcher = Watcher()
    prepare(source, TokenizerSpec("word"), cache, watcher)
    assert [(total, sum(done)) for _, total, done in watcher.bars] == [
        (len(text.encode()), len(text.encode())) for text in (TRAIN, TRAIN, VALID)
    ]
    assert len(watcher.bars[0][2]) > 1


def test_a_long_line_is_one_passage(source: FolderText, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(f"word{number % 7}" for number in range(500))
    (source.path / "train.txt").write_text(text + "\n" + text + "\n")
    for spec in (TokenizerSpec("word"), TokenizerSpec("bpe", 270), TokenizerSpec("bytes")):
        whole = prepare(source, spec, cache / "whole").split("train")
        with monkeypatch.context() as patch:
            patch.setattr(reading, "_LONGEST", 64)
            corpus = prepare(source, spec, cache / "parts")
        parts = corpus.split("train")
        assert parts.tokens.tolist() == whole.tokens.tolist()
        assert (parts.words, parts.bytes) == (whole.words, whole.bytes) == (1002, 2 * len(text) + 2)
        assert corpus.tokenizer.decode(parts.tokens.tolist()) == f"{text}\n{text}\n"


def test_a_folder_read_as_bytes_is_itself(source: FolderText, cache: Path) -> None:
    content = b"\xff caf\xc3" + TRAIN.encode() + b"\r\nno end"
    (source.path / "train.txt").write_bytes(content)
    split = prepare(source, TokenizerSpec("bytes"), cache).split("train")
    assert bytes(split.tokens.tolist()) == content
    assert (len(split.tokens), split.bytes) == (len(content), len(content))


def test_what_a_killed_process_left_goes(source: FolderText, cache: Path) -> None:
    corpus = prepare(source, TokenizerSpec("word"), cache)
    left = cache / f"preparing-{corpus.fingerprint}"
    corpus.directory.rename(left)  # killed a moment before the end
    (left / "manifest.json").unlink()
    again = prepare(source, TokenizerSpec("word"), cache)
    assert again.split("valid").tokens.tolist() == [*again.tokenizer.encode("the dog sat"), again.tokenizer.eos]
    assert not left.exists()


def test_a_killed_process_leaves_no_text(source: FolderText, cache: Path) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from equilibria.data import FolderText, TokenizerSpec, prepare\n"
        "class Slow(FolderText):\n"
        "    def pieces(self, split, as_bytes=False):\n"
        "        yield from super().pieces(split, as_bytes)\n"
        "        print(split, flush=True)\n"
        "        time.sleep(600 if split == 'valid' else 0)\n"
        "prepare(Slow(Path(sys.argv[1])), TokenizerSpec('word'), Path(sys.argv[2]))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    command = [sys.executable, "-c", program, str(source.path), str(cache)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while process.stdout.readline() not in ("valid\n", ""):
            pass
        process.kill()
    (left,) = cache.glob("[!.]*")
    assert left.name.startswith("preparing-")
    corpus = prepare(source, TokenizerSpec("word"), cache)
    assert [path.name for path in cache.glob("[!.]*")] == [corpus.fingerprint]
    assert len(corpus.split("train").tokens) == 10


def test_a_full_disk_leaves_no_text(source: FolderText, cache: Path) -> None:
    (source.path / "train.txt").write_text(TRAIN * 10_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(UserError, match=r"cache cannot be written \(File too large\)"):
            prepare(source, TokenizerSpec("bytes"), cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(cache.glob("[!.]*")) == []
    assert len(prepare(source, TokenizerSpec("bytes"), cache).split("train").tokens) == 10_000 * len(TRAIN.encode())


def test_one_of_several_prepares_and_the_others_wait(source: FolderText, cache: Path) -> None:
    read: list[Split] = []

    class Counting(FolderText):
        def pieces(self, split: Split, as_bytes: bool = False) -> Iterator[str]:
            read.append(split)
            time.sleep(0.1)
            return super().pieces(split, as_bytes)

    with ThreadPoolExecutor(4) as pool:
        orders = [pool.submit(prepare, Counting(source.path), TokenizerSpec("word"), cache) for _ in range(4)]
    assert read == ["train", "train", "valid"]
    assert len({order.result().directory for order in orders}) == 1


def test_the_manifest_has_the_digest_of_the_source(source: FolderText, cache: Path) -> None:
    corpus = prepare(source, TokenizerSpec("word"), cache)
    assert json.loads((corpus.directory / "manifest.json").read_text())["source"] == source.fingerprint()


def test_a_second_call_does_not_read_the_text(source: FolderText, cache: Path) -> None:
    watcher = Watcher()
    first = prepare(source, TokenizerSpec("bpe", 270), cache, watcher)
    assert len(watcher.bars) == 3
    second = prepare(Unreadable(source.path), TokenizerSpec("bpe", 270), cache, watcher)
    assert len(watcher.bars) == 3
    assert second.fingerprint == first.fingerprint
    assert second.split("train").tokens.tolist() == first.split("train").tokens.tolist()
    with pytest.raises(AssertionError, match="read again"):
        prepare(Unreadable(source.path), TokenizerSpec("bpe", 271), cache)


def test_another_text_or_tokenizer_has_another_folder(source: FolderText, cache: Path) -> None:
    directories = {
        prepare(source, spec, cache).directory
        for spec in (TokenizerSpec("word"), TokenizerSpec("word", minimum_count=2), TokenizerSpec("bytes"))
    }
    (source.path / "valid.txt").write_text("other words")
    directories.add(prepare(source, TokenizerSpec("word"), cache).directory)
    assert len(directories) == 4
    assert {path.name for path in cache.glob("[!.]*")} == {path.name for path in directories}  # nothing temporary left


def truncate_tokens(directory: Path) -> None:
    path = directory / "train.bin"
    path.write_bytes(path.read_bytes()[:-2])


def flip_a_token(directory: Path) -> None:
    path = directory / "valid.bin"
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


def remove_the_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()


def truncate_the_manifest(directory: Path) -> None:
    path = directory / "manifest.json"
    path.write_bytes(path.read_bytes()[:-10])


def empty_the_manifest(directory: Path) -> None:
    (directory / "manifest.json").write_text("[]")


def change_a_count(directory: Path) -> None:
    """As a bit that flips: the perplexity of a word would be another."""
    path = directory / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"words": 1', '"words": 3', 1))
    assert path.read_text() != text


@pytest.mark.parametrize(
    "damage",
    [truncate_tokens, flip_a_token, remove_the_tokenizer, truncate_the_manifest, empty_the_manifest, change_a_count],
)
def test_a_damaged_cache_is_encoded_anew(source: FolderText, cache: Path, damage) -> None:
    first = prepare(source, TokenizerSpec("word"), cache)
    expected = {split: first.split(split).tokens.tolist() for split in ("train", "valid")}
    damage(first.directory)
    watcher = Watcher()
    again = prepare(source, TokenizerSpec("word"), cache, watcher)
    assert watcher.bars
    assert {split: again.split(split).tokens.tolist() for split in ("train", "valid")} == expected


def test_a_split_that_is_missing_is_named(source: FolderText, cache: Path) -> None:
    corpus = prepare(source, TokenizerSpec("bytes"), cache)
    with pytest.raises(UserError, match="text has no test split; it has train, valid"):
        corpus.split("test")
    with pytest.raises(UserError, match="no longer a prepared text"):
        Corpus("text", cache / "elsewhere").split("train")


@pytest.mark.parametrize("kind", ["word", "bpe", "bytes"])
@pytest.mark.parametrize("file", ["train.txt", "valid.txt"])
def test_an_empty_text_is_named_and_leaves_nothing(source: FolderText, cache: Path, kind, file: str) -> None:
    (source.path / file).write_text("\n\n")
    with pytest.raises(UserError, match=f"{file} holds no text"):
        prepare(source, TokenizerSpec(kind), cache)
    assert list(cache.glob("[!.]*")) == []


def test_a_source_without_passages_is_an_error(source: FolderText, cache: Path) -> None:
    with pytest.raises(UserError, match="text: the train split has 0 tokens"):
        prepare(Wordless(source.path), TokenizerSpec("bytes"), cache)


@pytest.mark.parametrize("kind", ["word", "bytes"])
def test_a_text_that_changes_while_it_is_read_is_not_kept(source: FolderText, cache: Path, kind) -> None:
    with pytest.raises(UserError, match="text changed while it was read; run the command again"):
        prepare(Edited(source.path), TokenizerSpec(kind), cache)
    assert list(cache.glob("[!.]*")) == []
    (source.path / "train.txt").write_text(TRAIN, encoding="utf-8")
    corpus = prepare(source, TokenizerSpec(kind), cache)
    assert corpus.tokenizer.decode(corpus.split("train").tokens.tolist()).split() == TRAIN.split()


def test_a_cache_that_cannot_be_written_is_named(source: FolderText, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match=r"the cache .*taken cannot be written .*choose another data\.cache"):
        prepare(source, TokenizerSpec("bytes"), tmp_path / "taken")


def test_the_first_of_two_processes_wins(source: FolderText, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = prepare(source, TokenizerSpec("bytes"), cache).directory
    written = cache / "written"
    written.mkdir()
    (written / "other file").touch()
    monkeypatch.setattr(prepared.shutil, "rmtree", lambda path: None)  # as if `other` appeared after the check
    prepared._put_in_place(written, other)
    assert json.loads((other / "manifest.json").read_text())["name"] == "text"


@pytest.mark.skipif(not (SHARED / "english-4m").is_dir(), reason="../shared/data/english-4m is absent")
def test_english_4m_has_its_documented_size(cache: Path) -> None:
    corpus = prepare(FolderText(SHARED / "english-4m"), TokenizerSpec("word"), cache)
    assert corpus.tokenizer.vocabulary_size == 41_302  # 41,300 words, <unk> and <eos>
    train, valid = corpus.split("train"), corpus.split("valid")
    assert round(len(train.tokens) / 1e6, 1) == 3.7
    assert round(len(valid.tokens) / 1e6, 2) == 0.21
    assert train.words == len(train.tokens)
