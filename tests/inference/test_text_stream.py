"""Text as its tokens come: against decoding and searching all of it at once."""

from __future__ import annotations

import codecs
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equilibria.data.tokenizer_training import train_byte_pairs
from equilibria.data.tokenizers import Tokenizer, byte_tokenizer, id_tokenizer, word_tokenizer
from equilibria.inference import text_stream
from equilibria.inference.text_stream import TextStream

TOKENIZERS: list[Tokenizer] = [
    byte_tokenizer(),
    id_tokenizer(12),
    word_tokenizer(["<eos>", "a", "b", "ab", "ba", "<unk>"]),
    train_byte_pairs(["abab äöü ab\n", "aab bba ü€𝄞 aaa\n"] * 3, 290, 1),
]
BROKEN = b"\xff", b"\x82", b"\xe2\x82", b"\xf0\x9f", b"\xed\xa0"
SHORT = st.text("ab \nü€", min_size=1, max_size=4)


def cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """What stands before the stop string that is complete first, of those the longest."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def after(tokenizer: Tokenizer, tokens: list[int], prompt: int) -> str:
    """The text after a prompt: with a character that the prompt begins, without what begins none."""
    begun = 0
    while begun < prompt and tokenizer.decode(tokens[: prompt - begun]).endswith("\ufffd"):
        begun += 1
    if begun >= 4:
        return tokenizer.decode(tokens[prompt:])
    return tokenizer.decode(tokens)[len(tokenizer.decode(tokens[:prompt]).rstrip("\ufffd")) :]


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(TOKENIZERS), st.lists(SHORT, max_size=3), st.booleans(), st.data())
def test_pieces_are_the_text_before_the_first_stop(
    tokenizer: Tokenizer, stops: list[str], readable: bool, data: st.DataObject
) -> None:
    if readable and tokenizer in (TOKENIZERS[0], TOKENIZERS[-1]):  # bytes and byte pairs, which any text has
        tokens = tokenizer.encode(data.draw(st.text("ab \nü€𝄞\ufffd", max_size=20)))
    else:
        tokens = data.draw(st.lists(st.integers(0, tokenizer.vocabulary_size - 1), max_size=16))
    prompt = data.draw(st.integers(0, len(tokens)))
    whole = after(tokenizer, tokens, prompt)
    expected, stopped = cut(whole, stops)
    stream, pieces = TextStream(tokenizer, tokens[:prompt], stops), []
    for token in tokens[prompt:]:
        pieces.append(stream.write(token))
        said = "".join(pieces)
        assert expected.startswith(said)
        if stream.stopped is not None:
            break
    pieces.append(stream.finish())
    assert ("".join(pieces), stream.stopped) == (expected, stopped)
    assert stream.text == expected


def test_half_a_character_and_half_a_stop_string_are_held_back() -> None:
    stream = TextStream(byte_tokenizer(), stop=["abc"])
    pieces = [stream.write(byte) for byte in "aéababx".encode()]
    assert pieces == ["", "", "aé", "", "", "ab", "", "abx"]


def test_a_character_that_the_prompt_begins_is_of_the_text() -> None:
    for prompt in range(1, 4):
        tokens = list("a\U0001d11eb".encode())
        stream = TextStream(byte_tokenizer(), tokens[: 1 + prompt])
        assert "".join(stream.write(token) for token in tokens[1 + prompt :]) + stream.finish() == "\U0001d11eb"


def test_stops_cost_the_same_per_character_however_many_have_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, longer = 0, text_stream._longer

    def counted(*what: Any) -> int:
        nonlocal steps
        steps += 1
        return longer(*what)

    monkeypatch.setattr(text_stream, "_longer", counted)
    stops, before = ["a" * 255 + chr(98 + n) for n in range(16)], 0
    for _ in range(3):  # prepared once, for all texts
        stream, before = TextStream(byte_tokenizer(), stop=stops), steps
        for byte in b"a" * 1000 + b"c":
            stream.write(byte)
        assert stream.stopped == stops[1]
        assert stream.text == "a" * 745
    assert steps - before == 16 * 1001
    assert steps <= 3 * 16 * 1001 + 16 * 255


def test_a_stream_knows_where_a_character_ends() -> None:
    stream = TextStream(byte_tokenizer(), stop=["é€"])
    found = [(stream.write(byte), stream.whole)[1] for byte in "né€".encode()]
    assert found == [True, False, True, False, False, True]


def places(text: bytes) -> list[int]:
    """Of each byte, the number of the character that it is part of; what is no character is one."""
    broken: dict[int, int] = {}

    def replaced(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeDecodeError)
        broken[error.start] = error.end - error.start
        return "\ufffd", error.end

    codecs.register_error("places", replaced)
    found: list[int] = []
    for number, character in enumerate(text.decode(errors="places")):
        found += [number] * broken.get(len(found), len(character.encode()))
    return found


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.sampled_from(["a", "ü", "€", "𝄞", b"\xff", b"\xe2\x82", b"\xf0\x9f", b"\x82", b"\xed\xa0"])), st.text()
)
def test_a_token_begins_where_its_character_does(pieces: list[str | bytes], stop: str) -> None:
    text = b"".join(piece.encode() if isinstance(piece, str) else piece for piece in pieces)
    stream, offsets = TextStream(byte_tokenizer(), stop=[stop] if stop else []), []
    for byte in text:
        stream.write(byte)
        offsets.append(stream.offset)
    if stream.stopped is None:
        assert offsets == places(text)
