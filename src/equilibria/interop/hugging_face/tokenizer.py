"""Our tokenizers as those of transformers: the same ids for the same text, and the same text for the same ids.

A newline is `eos`, as where a text is encoded to train on: it ends a passage. It is declared as transformers' token for
the beginning, the end and padding, so decoding with `skip_special_tokens=True`, which is not the default, leaves
newlines out.
"""

from __future__ import annotations

import tokenizers as rust
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from equilibria.data import BytePairTokenizer, ByteTokenizer, Tokenizer, WordTokenizer
from equilibria.data.tokenizers import END, UNKNOWN

_NEWLINE = "\n"
_WHITE_SPACE = r"[\s\x1c-\x1f\x85]+"  # what Python's str.split parts words at


def stock_tokenizer(tokenizer: Tokenizer, window: int | None = None) -> PreTrainedTokenizerFast | None:
    """A tokenizer that `AutoTokenizer` loads without our package; None where tokens are numbers and no text.

    Args:
        tokenizer: of words, byte pairs or bytes.
        window: tokens that a prompt is truncated to, from the left, where truncation is asked for; None for no limit.
    """
    match tokenizer:
        case WordTokenizer():
            inner, eos = _words(tokenizer), END
        case BytePairTokenizer():
            inner, eos = rust.Tokenizer.from_str(tokenizer.inner.to_str()), _NEWLINE
        case ByteTokenizer():
            inner, eos = _bytes(), _NEWLINE
        case _:
            return None
    token = AddedToken(eos, normalized=eos == END, single_word=eos == END, special=True)
    inner.add_special_tokens([token])
    assert inner.token_to_id(eos) == tokenizer.eos
    assert inner.get_vocab_size() == tokenizer.vocabulary_size
    limit = {} if window is None else {"model_max_length": window}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=token,
        eos_token=token,
        pad_token=token,
        padding_side="left",
        truncation_side="left",
        clean_up_tokenization_spaces=False,
        **limit,
    )


def _words(tokenizer: WordTokenizer) -> rust.Tokenizer:
    """Words between white space; a newline is the word `<eos>`, and becomes one again."""
    vocabulary = {word: number for number, word in enumerate(tokenizer.words)}
    inner = rust.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    inner.normalizer = normalizers.Replace(_NEWLINE, f" {END} ")
    inner.pre_tokenizer = pre_tokenizers.Split(rust.Regex(_WHITE_SPACE), "removed")
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace(rust.Regex(f"^{END}$"), _NEWLINE),
            decoders.WordPiece(prefix=" ", cleanup=False),  # no word begins with a space: all are parted by one
            decoders.Fuse(),
            decoders.Replace(" \n", _NEWLINE),
            decoders.Replace("\n ", _NEWLINE),
        ]
    )
    return inner


def _bytes() -> rust.Tokenizer:
    """The letters that a byte-level tokenizer writes bytes with, numbered by their bytes; no pair is merged."""
    vocabulary = {letter: byte for byte, letter in enumerate(_byte_letters())}
    vocabulary[_NEWLINE] = vocabulary.pop(_byte_letters()[ord(_NEWLINE)])
    inner = rust.Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return inner


def _byte_letters() -> list[str]:
    """The letter of each byte: itself where that can be seen, else the next from 256 on (GPT-2's byte-level BPE)."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]
