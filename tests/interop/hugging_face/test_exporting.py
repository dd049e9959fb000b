"""`equilibria export --to hf`: a folder that transformers loads, writes our text with, whole or not there."""

import json
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers.dynamic_module_utils
from transformers import AutoTokenizer, pipeline

import equilibria as eq
import tiny
from equilibria.cli.app import main
from equilibria.configuration import table_of
from equilibria.errors import UserError
from equilibria.inference import generate, load_run
from equilibria.interop.hugging_face import EquilibriaForCausalLM
from equilibria.interop.hugging_face.exporting import export_folder
from equilibria.models.sampling import Sampling
from own_kinds import Counting
from wrapped_kinds import loaded

PROMPT = "12 the cat"


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, exported by the command."""
    out = tmp_path_factory.mktemp("exported") / "bytes"
    assert main(["export", str(run), str(out), "--to", "hf"]) == 0
    return out


def test_the_text_is_our_own(run: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = loaded(folder), AutoTokenizer.from_pretrained(folder)
    for prompt in (PROMPT, "", f"two\nlines and {PROMPT}", "a line\n"):
        flags = ["--prompt", prompt, "--temperature", "0", "--max-new-tokens", "40", "--json"]
        assert main(["generate", str(run), *flags]) == 0
        ours = json.loads(capsys.readouterr().out)["text"]
        inputs = tokenizer(prompt, return_tensors="pt") if prompt else {}
        (ids,) = model.generate(**inputs, max_new_tokens=40, do_sample=False)
        assert tokenizer.decode(ids) == (prompt or "\n") + ours


def test_a_pipeline_keeps_passages_apart(alphabet: Path, tmp_path: Path) -> None:
    assert main(["export", str(alphabet), str(tmp_path / "out"), "--to", "hf"]) == 0
    model, tokenizer = loaded(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    write = pipeline("text-generation", model=model, tokenizer=tokenizer)
    prompts = ["ab", "abcdefgh\nabcd"]
    for batch_size in (1, 2):
        written = write(prompts, max_new_tokens=20, do_sample=False, batch_size=batch_size)
        for [text], prompt in zip(written, prompts, strict=True):
            [ours] = generate(load_run(alphabet), prompt, max_new_tokens=20, sampling=Sampling(temperature=0))
            assert ours.text.count("\n") >= 2
            assert text["generated_text"] == prompt + ours.text


def test_what_is_in_the_folder(run: Path, folder: Path) -> None:
    names = {"config.json", "generation_config.json", "model.safetensors", "modeling_equilibria.py", "README.md"}
    assert {path.name for path in folder.iterdir()} == names | {"tokenizer.json", "tokenizer_config.json"}
    model, ours_run = loaded(folder), load_run(run)
    ours = ours_run.model.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in model.model.state_dict().items())
    assert model.config.max_position_embeddings == 24
    assert table_of(model.config.whole_recipe().model) == table_of(ours_run.recipe.model)
    assert f"{model.num_parameters():,} parameters" in (folder / "README.md").read_text()


def test_the_card_has_a_loss_where_it_is_that_of_the_recipe(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for number, flags in enumerate(([], ["--max-evaluations", "1"], ["--tolerance", "0.1"])):
        assert main(["eval", str(copy), "--json", *flags]) == 0
        loss = json.loads(capsys.readouterr().out.splitlines()[-1])["loss"]
        folder = tmp_path / str(number)
        assert main(["export", str(copy), str(folder), "--to", "hf"]) == 0
        capsys.readouterr()
        card = (folder / "README.md").read_text()
        assert (f"{loss:.4g} nats per token" in card) == (not flags)
        assert ("nats per token" in card) == (not flags)


def test_our_own_loading_reads_the_folder(run: Path, folder: Path, tmp_path: Path) -> None:
    expected = eq.load(run).state_dict()
    loaded(folder).save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for place in (folder, tmp_path / "shards"):
        model = eq.load(place)
        assert not model.training
        torch.testing.assert_close(model.state_dict(), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "damaged"),
        ("[]", "expected an object"),
        ('{"model_type": "gpt2"}', "is of a gpt2 model"),
        ('{"model_type": "equilibria", "vocab_size": "many"}', "vocab_size"),
        ('{"model_type": "equilibria", "vocab_size": 9, "tie_word_embeddings": false}', "output layer of its own"),
        ('{"model_type": "equilibria", "vocab_size": 9, "recipe": {"cell": {"kind": "cube"}}}', "cube"),
        ('{"model_type": "equilibria", "vocab_size": 9}', "another shape"),
    ],
)
def test_a_folder_that_does_not_load_says_why(folder: Path, tmp_path: Path, config: str, message: str) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "config.json").write_text(config)
    with pytest.raises(UserError, match=message):
        eq.load(tmp_path / "copy")


def test_no_import_is_needed_with_trust(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path))
    remote = transformers.dynamic_module_utils.get_class_from_dynamic_module
    found = remote(json.loads((folder / "config.json").read_text())["auto_map"]["AutoModelForCausalLM"], str(folder))
    assert found is EquilibriaForCausalLM


def test_nothing_is_overwritten(run: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert main(["export", str(run), str(folder), "--to", "hf"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert main(["export", str(run), str(folder / "new"), "--to", "hf", "--evaluations", "3"]) == 2
    assert "are for programs" in capsys.readouterr().err


def test_a_failure_leaves_nothing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No file may grow beyond what the weights take, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        assert main(["export", str(run), str(tmp_path / "out"), "--to", "hf"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot be written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_tokens_that_are_numbers(tmp_path: Path) -> None:
    recipe = replace(tiny.tiny_task_recipe(tmp_path), data=Counting())
    recipe = replace(recipe, training=replace(recipe.training, steps=4, evaluate_every=4, checkpoint_every=4))
    tiny.tiny_trainer(recipe).run()
    export_folder(load_run(recipe.run.folder), tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("1 0 2")["input_ids"] == [1, 0, 2]
    assert 'tokenizer("0",' in (tmp_path / "out" / "README.md").read_text()
    model = loaded(tmp_path / "out")
    assert model.generate(max_new_tokens=3).shape == (1, 4)
    [sample] = generate(load_run(recipe.run.folder), "1 2 3", max_new_tokens=5, sampling=Sampling(temperature=0))
    assert all(token.isdecimal() for token in sample.text.split())
    assert len(sample.text.split()) == 5
