"""A decoder's block as a cell: its first evaluation is the decoder with that block alone, by a plain implementation."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import equilibria
from equilibria.cli.app import main
from equilibria.data import Tokenizer, TokenizerSpec, train_tokenizer
from equilibria.depths import UnrolledDepth
from equilibria.errors import UserError
from equilibria.inference import load_run
from equilibria.interop.gpt2 import import_gpt2, import_tokenizer
from equilibria.models import LanguageModel
from plain_gpt2 import CONFIG, mean_block, one_block_logits, random_weights, save

TOKENS = torch.randint(30, (2, 9), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def first_evaluation(folder: Path, run: Path, *flags: str) -> Tensor:
    """The logits after one evaluation of the imported model, which knows nothing of positions."""
    assert main(["import", "gpt2", str(folder), "--positions", "none", "--out", str(run), *flags]) == 0
    model = equilibria.load(run)
    assert isinstance(model, LanguageModel)
    model.depth = UnrolledDepth(1)
    return model(TOKENS).logits


def test_a_block_is_that_block(tmp_path: Path) -> None:
    weights = random_weights()
    folder = save(tmp_path / "decoder", weights)
    for block in range(3):
        found = first_evaluation(folder, tmp_path / str(block), "--block", str(block))
        torch.testing.assert_close(found, one_block_logits(weights, block, TOKENS), rtol=1e-4, atol=1e-4)


def test_without_a_choice_it_is_the_mean_of_all(tmp_path: Path) -> None:
    weights = random_weights()
    found = first_evaluation(save(tmp_path / "decoder", weights), tmp_path / "run")
    wanted = one_block_logits(weights | mean_block(weights), 0, TOKENS)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_an_output_layer_of_its_own(tmp_path: Path) -> None:
    weights = random_weights() | {"lm_head.weight": torch.randn(30, 12)}
    found = first_evaluation(save(tmp_path / "decoder", weights), tmp_path / "run", "--block", "1")
    torch.testing.assert_close(found, one_block_logits(weights, 1, TOKENS), rtol=1e-4, atol=1e-4)


def test_the_run_has_the_whole_name_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path / "gpt2-1.5b", random_weights())
    for place, source in ((tmp_path, "gpt2-1.5b"), (folder, ".")):
        monkeypatch.chdir(place)
        assert main(["import", "gpt2", source]) == 0
        assert (place / "runs" / "gpt2-1.5b" / "config.toml").is_file()


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = random_weights(attention_biases=True)
    save(tmp_path / "decoder", weights, activation_function="gelu_new", layer_norm_epsilon=1e-6)
    first_evaluation(tmp_path / "decoder", tmp_path / "run", "--block", "1", "--json")
    lines = json.loads(capsys.readouterr().out)["left_out"]
    for number, word in enumerate(("wpe", "c_attn.bias", "gelu_new", "1e-06", "but 1", "no tokenizer.json")):
        assert word in lines[number]


def write_tokenizer(folder: Path, last: str) -> Tokenizer:
    """Byte pairs in the layout of transformers, with a last token of this name; returns ours, of the same pairs."""
    ours = train_tokenizer(TokenizerSpec("bpe", 270), ["the cat sat on the mat and the cat ate"] * 5)
    ours.save(folder / "ours.json")
    theirs = json.loads((folder / "ours.json").read_text(encoding="utf-8"))
    theirs["model"]["vocab"][last] = ours.eos
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    theirs["added_tokens"] = [{"id": ours.eos, "content": last, "special": True, **flags}]
    (folder / "tokenizer.json").write_text(json.dumps(theirs), encoding="utf-8")
    return ours


def test_the_tokenizer_of_the_folder(tmp_path: Path) -> None:
    ours = write_tokenizer(tmp_path, "<|endoftext|>")
    end = ours.eos
    found, missing = import_tokenizer(tmp_path, end + 1)
    assert missing is None
    assert (found.vocabulary_size, found.eos) == (ours.vocabulary_size, end)
    assert found.encode("the cat <|endoftext|> mat") == ours.encode("the cat <|endoftext|> mat")
    found, missing = import_tokenizer(tmp_path, end + 7)
    assert "does not fit" in str(missing)
    assert found.decode([3, 4]) == "3 4"


def test_a_last_token_that_does_not_end_a_text(tmp_path: Path) -> None:
    folder = save(tmp_path / "decoder", random_weights())
    end = write_tokenizer(folder, "[PAD]").eos
    found, missing = import_tokenizer(folder, end + 1)
    assert f"its last token, {end}, is not the end of text): tokens are numbers" in str(missing)
    assert found.decode([3, end]) == f"3 {end}"
    save(folder, random_weights(), eos_token_id=end)
    found, missing = import_tokenizer(folder, end + 1)
    assert (missing, found.eos) == (None, end)


def test_training_starts_from_it(tmp_path: Path) -> None:
    save(tmp_path / "decoder", random_weights())
    (tmp_path / "text").mkdir()
    for split in ("train", "valid"):
        lines = (" ".join(str((7 * i + j) % 30) for j in range(12)) for i in range(30))
        (tmp_path / "text" / f"{split}.txt").write_text("\n".join(lines), encoding="utf-8")
    run = tmp_path / "imported"
    assert main(["import", "gpt2", str(tmp_path / "decoder"), "--text", str(tmp_path / "text"), "--out", str(run)]) == 0
    flags = {
        "run.name": "trained",
        "data.cache": str(tmp_path / "cache"),
        "training.initial_weights": str(run),
        "training.steps": "1",
        "training.learning_rate": "1e-9",
        "training.batch_size": "2",
        "training.segment_length": "8",
    }
    options = [part for name, value in flags.items() for part in (f"--{name}", value)]
    assert main(["train", str(run / "config.toml"), *options]) == 0
    before, after = load_run(run).model.state_dict(), load_run(tmp_path / "trained").model.state_dict()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "llama"}, 'model_type is "llama"'),
        ({"n_head": "three"}, r'n_head is "three"; expected a whole number'),
        ({"activation_function": "silu"}, 'activation_function is "silu"'),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is true"),
        ({"n_layer": 4}, r"no h\.3\.ln_1\.weight"),
        ({"n_layer": 2}, r"a gpt2 has no h\.2\."),
        ({"vocab_size": 31}, r"wte\.weight is 30 × 12"),
    ],
)
def test_another_decoder_is_an_error(config: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        import_gpt2(save(tmp_path / "decoder", random_weights(), **config))


def test_errors_name_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json is missing"):
        import_gpt2(tmp_path)
    folder = save(tmp_path / "decoder", random_weights())
    with pytest.raises(UserError, match="blocks 0 to 2; found --block 3"):
        import_gpt2(folder, block=3)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"pytorch_model\.bin does not exist"):
        import_gpt2(folder)


def test_a_folder_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    names = ("n_embd", "n_layer", "n_head", "n_inner", "n_positions", "vocab_size", "activation_function")
    torch.manual_seed(0)
    decoder = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{name: CONFIG[name] for name in names}))
    decoder.save_pretrained(tmp_path / "decoder")
    with torch.no_grad():
        decoder.transformer.wpe.weight.zero_()
        decoder.transformer.h = decoder.transformer.h[1:2]
        wanted = decoder.eval()(TOKENS, use_cache=False).logits
    found = first_evaluation(tmp_path / "decoder", tmp_path / "run", "--block", "1")
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "[]", "it is a list, expected an object"),
        ("model.safetensors.index.json", "{}", "has no table weight_map"),
        ("model.safetensors.index.json", '{"weight_map": [', "is damaged"),
    ],
)
def test_damaged_tables_are_named(
    name: str, content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(tmp_path / "decoder", random_weights())
    (folder / name).write_text(content)
    assert main(["import", "gpt2", str(folder), "--out", str(tmp_path / "run")]) == 2
    printed = capsys.readouterr().err
    assert name in printed
    assert message in printed
