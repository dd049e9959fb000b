"""What an import leaves on disk, the vocabulary it counts, and errors that name the tensor or the file."""

import gzip
import json
import os
import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import equilibria
from equilibria.cli.app import main
from equilibria.configuration import Recipe
from equilibria.data import Tokenizer
from equilibria.errors import UserError
from equilibria.inference import load_run
from equilibria.interop import imported
from equilibria.interop.published import PublishedOptions, import_torchdeq_lm, import_torchdeq_seq, published_vocabulary
from equilibria.interop.state_dict import StateDict, read_state_dict, read_tensor_file
from equilibria.runs.folder import RunFolder
from plain_published import Published, Weights, random_weights

LM = Published("torchdeq-lm", vocabulary_size=12, cutoffs=(5, 9))
SEQ = Published("torchdeq-seq")
WORDS = ["b", "a", "a", "c", "<unk>", "c", "d", "e", "f", "g", "h", "i", "j"]


def saved(weights: Weights, folder: Path) -> Path:
    torch.save(weights, folder / "weights.pth")
    return folder / "weights.pth"


def write_text(folder: Path, name: str = "train.txt", compress: bool = False) -> Path:
    """Twelve kinds of word, the ends of lines counted; `a` and `c` are twice in it and `a` comes first."""
    folder.mkdir(exist_ok=True)
    lines = [" ".join(WORDS[:6]), "", " ".join(WORDS[6:]) + " <eos>"]
    content = "\n".join(lines).encode()
    if compress:
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    else:
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", ["train.txt", "wiki.train.tokens"])
@pytest.mark.parametrize("compress", [False, True])
def test_the_vocabulary_is_in_the_published_order(name: str, compress: bool, tmp_path: Path) -> None:
    tokenizer = published_vocabulary(write_text(tmp_path / "text", name, compress))
    assert tokenizer.decode(range(1, 12)) == "a c b <unk> d e f g h i j"
    assert tokenizer.eos == 0
    assert tokenizer.encode("a zebra") == [1, 4]


def test_a_vocabulary_without_unknown_words(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("y x y\n")
    tokenizer = published_vocabulary(tmp_path)
    assert (tokenizer.decode([0, 1, 2]), tokenizer.vocabulary_size) == ("\ny x", 3)
    with pytest.raises(UserError, match=r"'z' has a word outside the vocabulary of 3 .*, which has no <unk>"):
        tokenizer.encode("x z")


def test_a_vocabulary_without_a_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no train\.txt"):
        published_vocabulary(write_text(tmp_path / "text", "valid.txt"))


def test_a_run_with_a_vocabulary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, run = write_text(tmp_path / "text"), tmp_path / "run"
    write_text(text, "valid.txt")
    file = saved(random_weights(LM), tmp_path)
    assert main(["import", "torchdeq-lm", str(file), "--vocabulary", str(text), "--out", str(run), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["vocabulary_size"] == 12
    assert figures["left_out"] == ["pos_emb.inv_freq, which is computed"]
    loaded = load_run(run)
    assert figures["parameters"] == sum(parameter.numel() for parameter in loaded.model.parameters())
    moved = run.rename(tmp_path / "moved")
    config = moved / "config.toml"
    cached = config.read_text(encoding="utf-8").replace(".cache/equilibria", str(tmp_path / "cache"))
    config.write_text(cached, encoding="utf-8")
    assert main(["eval", str(moved), "--batch-size", "1", "--json"]) == 2
    assert "it was edited, or is damaged; restore it, or delete its first line" in capsys.readouterr().err
    config.write_text(cached.partition("\n")[2], encoding="utf-8")
    assert main(["eval", str(moved), "--batch-size", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    stream = torch.tensor([loaded.tokenizer.encode(" <eos> ".join((text / "valid.txt").read_text().split("\n")))])
    stream = torch.cat([stream, torch.tensor([[0]])], dim=1)
    wanted = loaded.model(stream[:, :-1], targets=stream[:, 1:]).loss
    assert found["loss"] == pytest.approx(wanted.item(), abs=1e-5)
    assert main(["generate", str(moved), "--prompt", "a c", "--max-new-tokens", "3", "--json"]) == 0


def test_a_run_on_token_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["import", "torchdeq-lm", str(saved(random_weights(LM), tmp_path)), "--out", str(run)]) == 0
    assert main(["generate", str(run), "--prompt", "3 11", "--max-new-tokens", "4", "--json", "--seed", "1"]) == 0
    text = json.loads(capsys.readouterr().out.splitlines()[-1])["text"]
    assert len(text.split()) == 4
    assert all(0 <= int(word) < 12 for word in text.split())
    assert main(["generate", str(run), "--prompt", "3 12"]) == 2
    assert "'3 12' has a word outside the vocabulary of 12" in capsys.readouterr().err
    assert main(["generate", str(run), "--prompt", "the"]) == 2
    assert "'the' has a word outside" in capsys.readouterr().err


def test_a_vocabulary_of_another_size_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, file = write_text(tmp_path / "text"), saved(random_weights(Published("torchdeq-lm")), tmp_path)
    run = tmp_path / "run"
    assert main(["import", "torchdeq-lm", str(file), "--vocabulary", str(text), "--out", str(run)]) == 2
    assert "has 40 tokens and the vocabulary 12" in capsys.readouterr().err
    assert not run.exists()


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, run = saved(random_weights(LM), tmp_path), tmp_path / "run"
    run.mkdir()
    (run / "thesis.txt").write_text("years of work")
    assert main(["import", "torchdeq-lm", str(file), "--out", str(run)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (run / "thesis.txt").read_text() == "years of work"


def test_of_two_imports_at_once_the_slower_one_is_told_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, run = saved(random_weights(LM), tmp_path), tmp_path / "run"
    furnish = imported.furnish_run

    def overtaken(folder: RunFolder, recipe: Recipe, tokenizer: Tokenizer) -> None:
        monkeypatch.setattr(imported, "furnish_run", furnish)
        assert main(["import", "torchdeq-lm", str(file), "--out", str(run)]) == 0
        furnish(folder, recipe, tokenizer)

    monkeypatch.setattr(imported, "furnish_run", overtaken)
    assert main(["import", "torchdeq-lm", str(file), "--out", str(run)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["generate", str(run), "--max-new-tokens", "2"]) == 0


def test_a_full_disk_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, run = saved(random_weights(LM), tmp_path), tmp_path / "runs" / "run"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, before[1]))  # the weights take more, everything else less
    try:
        assert main(["import", "torchdeq-lm", str(file), "--out", str(run)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "cannot be written" in capsys.readouterr().err
    assert list(run.parent.iterdir()) == []
    assert main(["import", "torchdeq-lm", str(file), "--out", str(run)]) == 0


def renamed(weights: Weights, before: str, after: str) -> Weights:
    return {name.replace(before, after): tensor for name, tensor in weights.items()}


def replaced(weights: Weights, name: str, tensor: Any) -> Weights:
    assert name in weights
    return weights | {name: tensor}


def without(weights: Weights, name: str) -> Weights:
    return {key: tensor for key, tensor in weights.items() if key != name}


FAULTS: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "an unknown key": (
        lambda w: w | {"func.dec_attn.0.gate": torch.zeros(3)},
        r"a torchdeq-lm has no func\.dec_attn\.0\.gate",
    ),
    "a block too many": (lambda w: w | {"func.pos_ff.2.ln.weight": torch.zeros(12)}, r"has no func\.pos_ff\.2\.ln"),
    "a gap in the blocks": (lambda w: renamed(w, "func.dec_attn.1.", "func.dec_attn.2."), r"has no func\.\w+\.[12]\."),
    "a missing bias": (lambda w: without(w, "func.pos_ff.1.ff2_net.bias"), r"no func\.pos_ff\.1\.ff2_net\.bias"),
    "a missing norm": (lambda w: without(w, "func.dec_attn.0.ln2.bias"), r"no func\.dec_attn\.0\.ln2\.bias"),
    "a missing direction": (
        lambda w: without(w, "func.dec_attn.1.o_net.weight_v"),
        r"no func\.dec_attn\.1\.o_net\.weight ",
    ),
    "a missing scale": (lambda w: without(w, "func.dec_attn.1.o_net.weight_g"), r"o_net\.weight_g"),
    "a missing projection": (
        lambda w: without(w, "crit.out_projs.2.weight"),
        r"no crit\.out_projs\.2\.weight",
    ),
    "a missing softmax": (lambda w: without(w, "crit.cluster_bias"), r"no crit\.cluster_bias"),
    "a missing table": (lambda w: without(w, "word_emb.emb_layers.1.weight"), r"cluster|emb_layers\.2"),
    "another width": (
        lambda w: replaced(w, "func.pos_ff.0.ff2_net.weight_v", torch.zeros(12, 9)),
        r"func\.pos_ff\.0\.ff2_net\.weight_v is 12 × 9; the other tensors ask for 12 × 10",
    ),
    "another scale": (
        lambda w: replaced(w, "func.pos_ff.0.ff2_net.weight_g", torch.zeros(1)),
        r"ff2_net\.weight_g is 1; the other tensors ask for 12 × 1",
    ),
    "another injection": (lambda w: replaced(w, "injection.weight", torch.zeros(24, 12)), r"injection\.weight is 24"),
    "another softmax": (lambda w: replaced(w, "crit.out_layers.2.bias", torch.zeros(4)), r"out_layers\.2\.bias is 4"),
    "other frequencies": (lambda w: replaced(w, "pos_emb.inv_freq", torch.ones(6)), r"pos_emb\.inv_freq holds other"),
    "numbers of another kind": (
        lambda w: replaced(w, "crit.cluster_bias", torch.zeros(2, dtype=torch.int64)),
        r"crit\.cluster_bias is torch\.int64",
    ),
    "no tensor": (lambda w: replaced(w, "crit.cluster_bias", 3), r"'crit\.cluster_bias' is a int, not a tensor"),
    "heads that do not share the width": (
        lambda w: replaced(w, "func.dec_attn.0.r_w_bias", torch.zeros(5, 2)),
        r"a width of 12 is not a multiple of 5 heads",
    ),
    "the other kind's file": (lambda w: random_weights(SEQ), r"has no func\.dec_attn\.0\.qkv_net\.weight"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_tensor_that_does_not_fit_is_named(fault: str, tmp_path: Path) -> None:
    change, message = FAULTS[fault]
    with pytest.raises(UserError, match=message):
        import_torchdeq_lm(read_state_dict(saved(change(random_weights(LM)), tmp_path)), PublishedOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PublishedOptions(heads=4), r"has 3 heads, as func\.dec_attn\.r_w_bias says; found --heads 4"),
        (PublishedOptions(cutoffs=(10, 23)), r"clusters that begin at \(10, 22\); found --cutoffs \(10, 23\)"),
    ],
)
def test_an_option_that_the_file_contradicts(options: PublishedOptions, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        import_torchdeq_seq(read_state_dict(saved(random_weights(SEQ), tmp_path)), options)


def test_cutoffs_that_nothing_says(tmp_path: Path) -> None:
    weights = random_weights(Published("torchdeq-seq", div_val=1))
    for cutoffs in (None, (10,), (22, 10), (10, 40)):
        with pytest.raises(UserError, match="3 clusters in one table of 40 tokens"):
            import_torchdeq_seq(read_state_dict(saved(weights, tmp_path)), PublishedOptions(cutoffs=cutoffs))


def test_files_that_hold_no_state_dictionary(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with pytest.raises(UserError, match="does not exist"):
        read_state_dict(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"weights\.pth (cannot be read|holds more than tensors)"):
        read_state_dict(path)
    torch.save({"options": Path("data")}, path)
    with pytest.raises(UserError, match=r"holds more than tensors, .* save model\.state_dict\(\)"):
        read_state_dict(path)
    torch.save({"model": {"weight": torch.zeros(1)}}, path)
    with pytest.raises(UserError, match="'model' is a dict, not a tensor; give a bare state dictionary"):
        read_state_dict(path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(UserError, match="holds a list; expected the state dictionary"):
        read_state_dict(path)
    torch.save(random_weights(LM), path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match=r"weights\.pth cannot be read"):
        read_state_dict(path)


def test_every_tensor_is_taken_once() -> None:
    state = StateDict({"a": torch.zeros(2), "b": torch.zeros(1)}, Path("file"))
    assert torch.equal(state.take("a", 2), torch.zeros(2))
    with pytest.raises(UserError, match="file has no a"):
        state.take("a", 2)
    with pytest.raises(UserError, match="a thing has no b"):
        state.finish("thing")


def test_the_file_may_be_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    weights: dict[str, Tensor] = {name: tensor.clone() for name, tensor in random_weights(LM).items()}
    save_file(weights, tmp_path / "weights.safetensors")
    for name in ("weights.safetensors", "weights.pth"):
        torch.save(random_weights(LM), tmp_path / "weights.pth")
        assert main(["import", "torchdeq-lm", str(tmp_path / name), "--out", str(tmp_path / name[-3:])]) == 0
    one, other = (equilibria.load(tmp_path / end).state_dict() for end in ("ors", "pth"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_flipped_bit_in_an_archive_is_noticed(tmp_path: Path) -> None:
    """PyTorch reads such a file without a word: it leaves the checksums in it unread."""
    weights, draw = random_weights(LM), random.Random(1)
    file = saved(weights, tmp_path)
    whole, refused = file.read_bytes(), 0
    for _ in range(50):
        place = draw.randrange(8 * len(whole))
        file.write_bytes(whole[: place // 8] + bytes([whole[place // 8] ^ 1 << place % 8]) + whole[place // 8 + 1 :])
        try:
            found = read_tensor_file(file)
        except UserError:
            refused += 1
        else:  # between the records there is padding
            assert all(torch.equal(tensor, found[name]) for name, tensor in weights.items())  # pyright: ignore[reportArgumentType]
    assert refused > 25


def test_a_file_without_checksums_says_so(tmp_path: Path) -> None:
    torch.save(random_weights(LM), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.warns(UserWarning, match=r"old\.pth has no checksums \(PyTorch before 1\.6"):
        read_state_dict(tmp_path / "old.pth")
