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
import tokenizers as rust
from hypothesis import given
from hypothesis import strategies as st

from equilibria.data import tokenizer_training
from equilibria.data.tokenizer_training import (
    TokenizerSpec,
    train_byte_pairs,
    train_tokenizer,
    train_words,
)
from equilibria.data.tokenizers import (
    Tokenizer,
    byte_tokenizer,
    digit_tokenizer,
    id_tokenizer,
    load_tokenizer,
    word_tokenizer,
)
from equilibria.errors import UserError

PASSAGES = ["the cat sat on the mat\n", "the dog <unk> the cat\n", "\n", "a café of cats\n"]
SPECS = [TokenizerSpec("word"), TokenizerSpec("bpe", 300), TokenizerSpec("bytes")]
BYTE_PAIRS = train_byte_pairs(PASSAGES * 3, 300, 1)
WORDS = train_words(PASSAGES, None, 1)


def words_of(tokenizer: Tokenizer) -> list[str]:
    """The vocabulary in the order of the ids."""
    return [tokenizer.stock.id_to_token(index) or "" for index in range(tokenizer.vocabulary_size)]


@pytest.fixture(params=SPECS, ids=lambda spec: spec.kind)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return train_tokenizer(request.param, PASSAGES)


def test_words_are_sorted_by_frequency_with_the_special_ones_among_them() -> None:
    tokenizer = train_words(PASSAGES, vocabulary_size=None, minimum_count=1)
    words = words_of(tokenizer)
    assert words[:4] == ["<eos>", "the", "cat", "<unk>"]  # 4 passages; 4, 2 and 1 times; ties by letter
    assert words[4:] == sorted(["a", "café", "cats", "dog", "mat", "of", "on", "sat"])
    assert tokenizer.decode([tokenizer.eos]) == "\n"


def test_rare_words_count_as_unknown() -> None:
    tokenizer = train_words(PASSAGES, vocabulary_size=None, minimum_count=2)
    assert words_of(tokenizer) == ["<unk>", "<eos>", "the", "cat"]  # nine unknown: eight left out and one that was so
    assert tokenizer.encode("the zebra  sat\n") == [2, 0, 0, 1]


def test_vocabulary_size_counts_the_special_words() -> None:
    tokenizer = train_words(PASSAGES, vocabulary_size=3, minimum_count=1)
    assert set(words_of(tokenizer)) == {"<unk>", "<eos>", "the"}


def test_word_decoding_puts_each_passage_on_a_line() -> None:
    tokenizer = train_words(PASSAGES, None, 1)
    end = tokenizer.eos
    ids = [*tokenizer.encode("the cat"), end, end, *tokenizer.encode("a dog"), end]
    assert tokenizer.decode(ids) == "the cat\n\na dog\n"


@given(st.lists(st.sampled_from(["the", "cat", "dog", "of", "<unk>"])))
def test_known_words_survive_a_round_trip(words: list[str]) -> None:
    tokenizer = train_words(PASSAGES, None, 1)
    assert tokenizer.decode(tokenizer.encode("  ".join(words))) == " ".join(words)


@given(st.text())
def test_byte_pairs_and_bytes_are_lossless(text: str) -> None:
    for tokenizer in (BYTE_PAIRS, byte_tokenizer()):
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
    for tokenizer in (train_words(PASSAGES, None, 1), BYTE_PAIRS, byte_tokenizer()):
        assert tokenizer.encode(text) == tokenizer.encode_pieces(pieces).tolist()


def test_byte_pairs_merge_and_end_in_the_last_id() -> None:
    assert BYTE_PAIRS.eos == BYTE_PAIRS.vocabulary_size - 1 < 300
    assert len(BYTE_PAIRS.encode("the cat sat")) < len("the cat sat")
    assert train_byte_pairs([], 300, 1).encode("the") == ByteOrder.of("the")


class ByteOrder:
    """Ids of single characters in a byte-pair vocabulary without merges."""

    @staticmethod
    def of(text: str) -> list[int]:
        tokenizer = train_byte_pairs([], 257, 1)
        return [index for character in text for index in tokenizer.encode(character)]


def test_byte_pair_training_is_deterministic(tmp_path: Path) -> None:
    for name in ("one", "two"):
        train_tokenizer(TokenizerSpec("bpe", 320), PASSAGES * 5).save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@given(st.lists(st.text(), max_size=4))
def test_pieces_are_encoded_as_they_are_one_by_one(lines: list[str]) -> None:
    pieces = [line.replace("\n", " ") + "\n" for line in lines] + ["a part of", " a passage"]
    for tokenizer in (train_words(PASSAGES, None, 1), BYTE_PAIRS, byte_tokenizer()):
        expected = [
            index
            for piece in pieces
            for index in [*tokenizer.encode(piece.removesuffix("\n")), *[tokenizer.eos] * piece.endswith("\n")]
        ]
        assert tokenizer.encode_pieces(pieces).tolist() == expected


def test_byte_pairs_are_learned_from_blocks_all_over_a_large_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_training, "_BLOCK", 10)
    monkeypatch.setattr(tokenizer_training, "_MOST_TEXT", 100)
    pieces = [f"line {number:03}\n" for number in range(60)]
    size = sum(map(len, pieces))
    used = list(tokenizer_training._sampled(pieces, size))
    assert 80 <= sum(map(len, used)) <= 120
    assert used[0] == "line 000\n"
    assert used[-1] > "line 050"
    assert list(tokenizer_training._sampled(pieces, 100)) == pieces


def test_bytes_that_are_no_text_survive() -> None:
    raw = bytes(range(256))
    text = raw.decode("utf-8", "surrogateescape")
    assert byte_tokenizer().encode(text) == list(raw)
    assert byte_tokenizer().encode("\ud800") == list(b"?")  # no byte: nothing that was read


def test_bytes_end_in_the_newline() -> None:
    tokenizer = byte_tokenizer()
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
    for name in ("vocabulary_size", "eos", "unknown", "is_bytes"):
        assert getattr(loaded, name) == getattr(tokenizer, name)
    for text in [*PASSAGES, "unheard-of — words"]:
        assert loaded.encode(text) == tokenizer.encode(text)
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_ids_are_numbers(tmp_path: Path) -> None:
    ids = id_tokenizer(300)
    assert (ids.encode(" 7\n0  299 "), ids.eos, ids.vocabulary_size) == ([7, 0, 299], 0, 300)
    assert ids.decode([7, 0, 299]) == "7 0 299"
    ids.save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded.vocabulary_size == 300
    assert ids.encode("0" * 5000 + "7") == [7]
    for text, message in (
        ("7 300", "'7 300' has a word outside the vocabulary of 300"),
        ("7 x", "outside the vocabulary"),
        ("-1", "outside the vocabulary"),
        ("9" * 5000, "outside the vocabulary"),
    ):
        with pytest.raises(UserError, match=message):
            ids.encode(text)
    with pytest.raises(UserError, match="token id 300 is outside"):
        ids.decode([300])
    with pytest.raises(UserError, match="a vocabulary of 0 ids"):
        id_tokenizer(0)


def test_digits_need_no_space_between_them() -> None:
    digits = digit_tokenizer()
    assert (digits.encode(" 10 4\n7"), digits.decode([1, 0, 4, 7]), digits.eos) == ([1, 0, 4, 7], "1047", 0)
    for text in ("1a", "٣", "-1"):
        with pytest.raises(UserError, match="outside the vocabulary of 10"):
            digits.encode(text)


TEXTS = st.text() | st.lists(st.sampled_from(["the", "<eos>", "<unk>", "\n", " ", "\x1c", "\x85", "é", "Ċ"])).map(
    "".join
)


@given(TEXTS, st.data())
def test_the_library_itself_reads_a_file_the_same(text: str, data: st.DataObject) -> None:
    """Words and bytes take a way of our own."""
    for tokenizer in (WORDS, BYTE_PAIRS, byte_tokenizer()):
        library = rust.Tokenizer.from_str(tokenizer.stock.to_str())
        assert library.encode(text).ids == tokenizer.encode(text)
        ids = data.draw(st.lists(st.integers(0, tokenizer.vocabulary_size - 1) | st.just(tokenizer.eos)))
        assert library.decode(ids, skip_special_tokens=False) == tokenizer.decode(ids)


def test_another_tokenizer_of_words_is_read_by_the_library(tmp_path: Path) -> None:
    library = rust.Tokenizer.from_str(WORDS.stock.to_str())
    library.normalizer = rust.normalizers.Sequence([rust.normalizers.Lowercase(), library.normalizer])
    library.enable_truncation(2)
    library.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path / "tokenizer.json").encode("The CAT sat\n") == WORDS.encode("the cat sat\n")


def test_a_tokenizer_from_a_file_is_that_one(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name in ("one.json", "same.json"):
        tokenizer.save(tmp_path / name)
    found = train_tokenizer(TokenizerSpec("file", path=tmp_path / "one.json"), ["other text"])
    assert all(found.encode(text) == tokenizer.encode(text) for text in PASSAGES)
    id_tokenizer(5).save(tmp_path / "other.json")
    one, same, other = (
        TokenizerSpec("file", path=tmp_path / f"{name}.json").identity() for name in ("one", "same", "other")
    )
    assert one == same != other


def test_a_truncated_file_is_an_error_at_every_length(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    content = path.read_bytes()
    for length in range(0, len(content), max(1, len(content) // 20)):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"tokenizer\.json is damaged"):
            load_tokenizer(path)


def edited(tokenizer: Tokenizer, old: str, new: str) -> object:
    """The content of its file with something else in it."""
    return json.loads(tokenizer.stock.to_str().replace(old, new))


@pytest.mark.parametrize(
    ("words", "message"), [(["a", "b"], "lacks <eos>"), (["<eos>", "b", "b"], "lists 'b' 2 times")]
)
def test_impossible_vocabularies_are_errors(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        word_tokenizer(words)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "it is a list, expected an object"),
        ({"kind": "word", "words": ["a"]}, "not a tokenizer that works here"),
        (edited(word_tokenizer(["<eos>", "a"]), "<eos>", "<end>"), "no word '<eos>' to end a passage"),
        (edited(word_tokenizer(["<eos>", "a"]), '"a":1', '"a":7'), "the ids of its 2 tokens are not 0 to 1"),
        (edited(word_tokenizer(["<eos>", "a"]), '"a":1', '"a":"b"'), "not a tokenizer that works here"),
    ],
)
def test_a_file_of_another_format_is_an_error(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        load_tokenizer(path)


def test_a_panic_of_the_library_s_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    train_byte_pairs(["the cat sat on the mat"], 260, 1).save(path)
    content = json.loads(path.read_text())
    content["model"]["continuing_subword_prefix"] = "longer than a token"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="not a tokenizer that works here"):
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
        (("word", None, 0), "minimum_count must be at least 1, found 0"),
        (("letters",), "no tokenizer is called 'letters'"),
        (("file",), 'kind "file" needs a path'),
        (("bytes", None, 1, Path("tokenizer.json")), 'kind "bytes" takes no path'),
        (("file", 300, 1, Path("tokenizer.json")), "the vocabulary of a file is given"),
    ],
)
def test_impossible_specifications_are_errors(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenizerSpec(*arguments)


def test_byte_pairs_are_learned_from_bounded_parts() -> None:
    spaced, unspaced, line = "some words " * 500, "x" * 2500, "short"
    for piece in (spaced, unspaced, " " * 2500 + "x", line, ""):
        parts = list(tokenizer_training._bounded(piece))
        assert "".join(parts) == piece
        assert max(map(len, parts)) <= 1000
    assert all(part.startswith((" ", "some")) for part in tokenizer_training._bounded(spaced)), "words stay whole"


def test_a_long_text_without_spaces_is_learned_from() -> None:
    text = "".join(random.Random(1).choices(["ab", "cd", "efg", "h"], k=30_000))
    tokenizer = train_byte_pairs([text + "\n"], 400, 1)
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
        train_byte_pairs(islice(pieces(), 50_000), 300, 1)
