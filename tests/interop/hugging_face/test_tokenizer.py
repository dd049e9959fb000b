"""Stock tokenizers give the ids that a text is trained on, and text as ours do."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from equilibria.data import Tokenizer, byte_tokenizer, word_tokenizer
from equilibria.data.tokenizer_training import train_byte_pairs, train_words
from equilibria.data.tokenizers import digit_tokenizer, id_tokenizer
from equilibria.interop.hugging_face import EquilibriaConfig
from equilibria.interop.hugging_face.exporting import END_OF_TEXT, stock_tokenizer

TEXTS = ["the cat sat\n", " on  the <unk> mat\tand\x1chere\x85x\xa0y\u2003z\n", "a<eos>b <eos> Ċ\n", "日本 \x00😀\n"]
OURS: dict[str, Tokenizer] = {
    "words": train_words(TEXTS, None, 1),
    "few words": word_tokenizer(["the", "<unk>", "<eos>"]),
    "byte pairs": train_byte_pairs(TEXTS * 5, 300, 2),
    "bytes": byte_tokenizer(),
}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreTrainedTokenizerBase]:
    """Saved and loaded by `AutoTokenizer`."""
    folder, loaded = tmp_path_factory.mktemp("tokenizers"), {}
    for kind, tokenizer in OURS.items():
        stock = stock_tokenizer(tokenizer, 24)
        stock.save_pretrained(folder / kind)
        loaded[kind] = AutoTokenizer.from_pretrained(folder / kind)
    return loaded


@pytest.mark.parametrize("kind", OURS)
@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(TEXTS) | st.text("ab <>\n\t é", max_size=9).map(lambda line: line.replace("\n", "") + "\n")
    )
)
def test_ids_of_a_text(theirs: dict[str, PreTrainedTokenizerBase], kind: str, pieces: list[str]) -> None:
    for last in ("", "the cat"):
        every = [*pieces, *filter(None, [last])]
        assert theirs[kind]("".join(every))["input_ids"] == OURS[kind].encode_pieces(every).tolist()


@pytest.mark.parametrize("kind", OURS)
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_text_of_ids(theirs: dict[str, PreTrainedTokenizerBase], kind: str, data: st.DataObject) -> None:
    size = OURS[kind].vocabulary_size
    named = theirs[kind].all_special_ids
    ids = data.draw(st.lists(st.integers(0, size - 1) | st.just(OURS[kind].eos)))
    shown = [index for index in ids if index not in named]
    assert theirs[kind].decode(shown) == OURS[kind].decode(shown)
    assert theirs[kind].decode(ids, skip_special_tokens=True) == theirs[kind].decode(shown)


@pytest.mark.parametrize("kind", OURS)
def test_what_stands_around_a_text(theirs: dict[str, PreTrainedTokenizerBase], kind: str) -> None:
    one = theirs[kind]
    assert len(one) == OURS[kind].vocabulary_size
    bytes_of = {"bytes": 255, "byte pairs": OURS["byte pairs"].stock.token_to_id("\u00ff")}
    assert one.pad_token_id == bytes_of.get(kind, OURS[kind].unknown)
    assert one.eos_token == (END_OF_TEXT if kind in bytes_of else None)
    assert OURS[kind].eos not in one.all_special_ids
    batch = one(["the cat sat", "the"], padding=True)
    assert batch["input_ids"][1][0] == one.pad_token_id
    assert batch["attention_mask"][1][0] == 0
    assert batch["attention_mask"][1][-1] == 1
    assert len(one("the " * 50, truncation=True)["input_ids"]) == one.model_max_length == 24


@pytest.mark.parametrize("tokenizer", [*OURS.values(), digit_tokenizer(), id_tokenizer(30)])
def test_a_file_loads_without_us(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    stock = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    text = tokenizer.decode([*range(min(7, tokenizer.vocabulary_size)), tokenizer.eos])
    assert stock(text)["input_ids"] == tokenizer.encode(text)
    assert stock.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text))


@pytest.mark.parametrize("tokenizer", [digit_tokenizer(), id_tokenizer(30)])
def test_numbers(tokenizer: Tokenizer) -> None:
    stock = stock_tokenizer(tokenizer)
    assert stock("0 1 007")["input_ids"] == tokenizer.encode("0 1 007")
    assert stock.decode([7, 0, 1]) == tokenizer.decode([7, 0, 1])
    assert stock.all_special_ids == []
    with pytest.raises(ValueError, match="does not have a padding token"):
        stock(["1 2", "3"], padding=True)


@pytest.mark.parametrize("kind", OURS)
def test_a_collator_leaves_the_ends_of_passages_to_be_learned(
    theirs: dict[str, PreTrainedTokenizerBase], kind: str
) -> None:
    one, texts = theirs[kind], ["the cat\nthe\n", "the\n"]
    batch = DataCollatorForLanguageModeling(one, mlm=False)([one(text) for text in texts])
    for row, text in enumerate(texts):
        learned = [index for index in OURS[kind].encode(text) if index != OURS[kind].unknown]
        assert [index for index in batch["labels"][row].tolist() if index >= 0] == learned
        assert learned.count(OURS[kind].eos) == text.count("\n")


def test_it_loads_alone_without_a_question(tmp_path: Path) -> None:
    """In a process of its own, where the model's code may not run and nobody answers."""
    stock_tokenizer(byte_tokenizer()).save_pretrained(tmp_path)
    EquilibriaConfig().save_pretrained(tmp_path)
    code = (
        "import sys; from transformers import PreTrainedTokenizerFast as T; "
        f"print(T.from_pretrained({str(tmp_path)!r})('a\\n')['input_ids'], 'equilibria' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[97, 10] False"]
