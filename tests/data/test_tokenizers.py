"""Tokenizers: round trips, vocabularies as documented, files that read back equal or say why not."""

import json
import os
import random
import signal
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from threading import Event, Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equilibria.data import tokenizer_spec, tokenizers
from equilibria.data.tokenizer_spec import TokenizerFile, TokenizerSpec, train_tokenizer
from equilibria.data.tokenizers import (
    BytePairTokenizer,
    ByteTokenizer,
    IdTokenizer,
    Tokenizer,
    WordTokenizer,
    load_tokenizer,
)
from equilibria.errors import UserError

PASSAGES = ["the cat sat on the mat\n", "the dog <unk> the cat\n", "\n", "a café of cats\n"]
SPECS = [TokenizerSpec("word"), TokenizerSpec("bpe", 300), TokenizerSpec("bytes")]
BYTE_PAIRS = BytePairTokenizer.train(PASSAGES * 3, 300, 1)


@pytest.fixture(params=SPECS, ids=lambda spec: spec.kind)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return train_tokenizer(request.param, PASSAGES)


def test_words_are_sorted_by_frequency_with_the_special_ones_among_them() -> None:
    tokenizer = WordTokenizer.train(PASSAGES, vocabulary_size=None, minimum_count=1)
    assert tokenizer.words[:4] == (
        "<eos>",
        "the",
        "cat",
        "<unk>",
    )  # 4 passages; 4, 2 and 1 times; ties by letter
    assert tokenizer.words[4:] == tuple(sorted(["a", "café", "cats", "dog", "mat", "of", "on", "sat"]))
    assert tokenizer.decode([tokenizer.eos]) == "\n"


def test_rare_words_count_as_unknown() -> None:
    tokenizer = WordTokenizer.train(PASSAGES, vocabulary_size=None, minimum_count=2)
    assert tokenizer.words == (
        "<unk>",
        "<eos>",
        "the",
        "cat",
    )  # nine unknown: eight left out and one that was so
    assert tokenizer.encode("the zebra  sat\n") == [2, 0, 0, 1]


def test_vocabulary_size_counts_the_special_words() -> None:
    tokenizer = WordTokenizer.train(PASSAGES, vocabulary_size=3, minimum_count=1)
    assert set(tokenizer.words) == {"<unk>", "<eos>", "the"}


def test_word_decoding_puts_each_passage_on_a_line() -> None:
    tokenizer = WordTokenizer.train(PASSAGES, None, 1)
    end = tokenizer.eos
    ids = [*tokenizer.encode("the cat"), end, end, *tokenizer.encode("a dog"), end]
    assert tokenizer.decode(ids) == "the cat\n\na dog\n"


@given(st.lists(st.sampled_from(["the", "cat", "dog", "of", "<unk>"])))
def test_known_words_survive_a_round_trip(words: list[str]) -> None:
    tokenizer = WordTokenizer.train(PASSAGES, None, 1)
    assert tokenizer.decode(tokenizer.encode("  ".join(words))) == " ".join(words)


@given(st.text())
def test_byte_pairs_and_bytes_are_lossless(text: str) -> None:
    for tokenizer in (BYTE_PAIRS, ByteTokenizer()):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= index < tokenizer.vocabulary_size for index in ids)


@given(st.lists(st.sampled_from(["<eos>", "<unk>", " the cat", "\n", "é"])))
def test_only_a_newline_becomes_the_end_of_a_byte_pair_passage(pieces: list[str]) -> None:
    ids = BYTE_PAIRS.encode("".join(pieces))
    assert ids.count(BYTE_PAIRS.eos) == pieces.count("\n")
    assert BYTE_PAIRS.decode([*ids, BYTE_PAIRS.eos, *ids]) == "\n".join(["".join(pieces)] * 2)


@given(st.lists(st.sampled_from(["the cat", " sat", "\n", "\r", "\f", "é", " "])))
def test_a_prompt_is_encoded_as_the_text_that_is_trained_on(parts: list[str]) -> None:
    text = "".join(parts)
    lines = text.split("\n")
    pieces = [*(line + "\n" for line in lines[:-1]), lines[-1]]
    for tokenizer in (WordTokenizer.train(PASSAGES, None, 1), BYTE_PAIRS, ByteTokenizer()):
        assert tokenizer.encode(text) == tokenizer.encode_pieces(pieces).tolist()


def test_byte_pairs_merge_and_end_in_the_last_id() -> None:
    assert BYTE_PAIRS.eos == BYTE_PAIRS.vocabulary_size - 1 < 300
    assert len(BYTE_PAIRS.encode("the cat sat")) < len("the cat sat")
    assert BytePairTokenizer.train([], 300, 1).encode("the") == ByteOrder.of("the")


class ByteOrder:
    """Ids of single characters in a byte-pair vocabulary without merges."""

    @staticmethod
    def of(text: str) -> list[int]:
        tokenizer = BytePairTokenizer.train([], 257, 1)
        return [index for character in text for index in tokenizer.encode(character)]


def test_byte_pair_training_is_deterministic(tmp_path: Path) -> None:
    for name in ("one", "two"):
        train_tokenizer(TokenizerSpec("bpe", 320), PASSAGES * 5).save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@given(st.lists(st.text(), max_size=4))
def test_pieces_are_encoded_as_they_are_one_by_one(lines: list[str]) -> None:
    pieces = [line.replace("\n", " ") + "\n" for line in lines] + ["a part of", " a passage"]
    for tokenizer in (WordTokenizer.train(PASSAGES, None, 1), BYTE_PAIRS, ByteTokenizer()):
        expected = [
            index
            for piece in pieces
            for index in [*tokenizer.encode(piece.removesuffix("\n")), *[tokenizer.eos] * piece.endswith("\n")]
        ]
        assert tokenizer.encode_pieces(pieces).tolist() == expected


def test_byte_pairs_are_learned_from_blocks_all_over_a_large_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_spec, "_BLOCK", 10)
    monkeypatch.setattr(tokenizer_spec, "_MOST_TEXT", 100)
    pieces = [f"line {number:03}\n" for number in range(60)]
    size = sum(map(len, pieces))
    used = list(tokenizer_spec._spread(pieces, size))
    assert 80 <= sum(map(len, used)) <= 120
    assert used[0] == "line 000\n"
    assert used[-1] > "line 050"
    assert list(tokenizer_spec._spread(pieces, 100)) == pieces


def test_bytes_that_are_no_text_survive() -> None:
    raw = bytes(range(256))
    text = raw.decode("utf-8", "surrogateescape")
    assert ByteTokenizer().encode(text) == list(raw)
    assert ByteTokenizer().encode("\ud800") == list(b"?")  # no byte: nothing that was read


def test_bytes_end_in_the_newline() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.vocabulary_size == 256
    assert tokenizer.decode([104, 105, tokenizer.eos]) == "hi\n"
    assert tokenizer.decode([0xC3]) == "\ufffd"  # half a character


def test_an_error_of_the_text_passes_through_byte_pair_training() -> None:
    def pieces():
        yield "some text\n"
        raise UserError("the file is damaged")

    with pytest.raises(UserError, match="the file is damaged"):
        train_tokenizer(TokenizerSpec("bpe", 300), pieces())


def test_saved_tokenizers_read_back_equal(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    loaded = load_tokenizer(path)
    assert type(loaded) is type(tokenizer)
    assert (loaded.vocabulary_size, loaded.eos) == (tokenizer.vocabulary_size, tokenizer.eos)
    for text in [*PASSAGES, "unheard-of — words"]:
        assert loaded.encode(text) == tokenizer.encode(text)


def test_ids_are_numbers(tmp_path: Path) -> None:
    ids = IdTokenizer(300)
    assert (ids.encode(" 7\n0  299 "), ids.eos, ids.vocabulary_size) == ([7, 0, 299], 0, 300)
    assert ids.decode([7, 0, 299]) == "7 0 299"
    ids.save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert isinstance(loaded, IdTokenizer)
    assert loaded.vocabulary_size == 300
    assert ids.encode("0" * 5000 + "7") == [7]
    for text, message in (
        ("7 300", "token id 300 is outside"),
        ("7 x", "'x' is not a token id"),
        ("-1", "'-1' is"),
        ("9" * 5000, "is not a token id"),
    ):
        with pytest.raises(UserError, match=message):
            ids.encode(text)
    with pytest.raises(UserError, match="token id 300 is outside"):
        ids.decode([300])
    with pytest.raises(UserError, match="a vocabulary of 0 ids"):
        IdTokenizer(0)


def test_a_tokenizer_from_a_file_is_that_one(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name in ("one.json", "same.json"):
        tokenizer.save(tmp_path / name)
    found = train_tokenizer(TokenizerFile(tmp_path / "one.json"), ["other text"])
    assert all(found.encode(text) == tokenizer.encode(text) for text in PASSAGES)
    IdTokenizer(5).save(tmp_path / "other.json")
    one, same, other = (TokenizerFile(tmp_path / f"{name}.json").identity() for name in ("one", "same", "other"))
    assert one == same != other


def test_a_truncated_file_is_an_error_at_every_length(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    content = path.read_bytes()
    for length in range(0, len(content), max(1, len(content) // 20)):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"tokenizer\.json is damaged"):
            load_tokenizer(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "it is a list, expected an object"),
        ({"kind": "letters"}, "not a tokenizer of equilibria"),
        ({"kind": "word", "words": ["a", 3]}, "not a tokenizer of equilibria"),
        ({"kind": "word", "words": ["a", "b"]}, "lacks <eos>"),
        ({"kind": "word", "words": ["<unk>", "<eos>", "b", "b"]}, "lists 'b' 2 times"),
        ({"kind": "bpe", "tokenizer": {"model": 1}}, "not a tokenizer of equilibria"),
    ],
)
def test_a_file_of_another_format_is_an_error(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        load_tokenizer(path)


def test_a_panic_of_the_library_s_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    BytePairTokenizer.train(["the cat sat on the mat"], 260, 1).save(path)
    content = json.loads(path.read_text())
    content["tokenizer"]["model"]["continuing_subword_prefix"] = "longer than a token"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="not a tokenizer of equilibria"):
        load_tokenizer(path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing"):
        load_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("offset", [0, 7, -1_000_000])
def test_ids_outside_the_vocabulary_are_named(tokenizer: Tokenizer, offset: int) -> None:
    index = tokenizer.vocabulary_size + offset if offset >= 0 else -1
    with pytest.raises(UserError, match=f"token id {index} is outside the vocabulary"):
        tokenizer.decode([0, index])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("word", 2), "too small"),
        (("bpe", 256), "give 257 or more"),
        (("bytes", 300), "has 256 ids"),
        (("word", None, 0), "minimum_count is 0"),
        (("letters",), "no tokenizer is called 'letters'"),
    ],
)
def test_impossible_specifications_are_errors(arguments: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TokenizerSpec(*arguments)


def test_byte_pairs_are_learned_from_bounded_parts() -> None:
    spaced, unspaced, line = "some words " * 500, "x" * 2500, "short"
    for piece in (spaced, unspaced, " " * 2500 + "x", line, ""):
        parts = list(tokenizers._within_reach(piece))
        assert "".join(parts) == piece
        assert max(map(len, parts)) <= 1000
    assert all(part.startswith((" ", "some")) for part in tokenizers._within_reach(spaced)), "words stay whole"


def test_a_long_text_without_spaces_is_learned_from() -> None:
    text = "".join(random.Random(1).choices(["ab", "cd", "efg", "h"], k=30_000))
    tokenizer = BytePairTokenizer.train([text + "\n"], 400, 1)
    assert tokenizer.vocabulary_size == 400
    assert len(tokenizer.encode(text)) < len(text) / 4


def test_learning_hears_an_interruption() -> None:
    begun = Event()

    def pieces() -> Iterator[str]:
        begun.set()
        yield from (f"{number} " * 20 for number in count())  # for ever

    def interrupt() -> None:
        begun.wait()
        os.kill(os.getpid(), signal.SIGINT)

    Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        BytePairTokenizer.train(islice(pieces(), 50_000), 300, 1)
