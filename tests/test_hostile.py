"""Every reader of a file, with files that are changed in any way: it reads them, or says in a sentence why not."""

import gzip
import io
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from equilibria.configuration import read_recipe, recipe_from, write_recipe
from equilibria.configuration.building import build_model
from equilibria.data.fetching.archives import unpack
from equilibria.data.fetching.folder import WebText, fetch_text
from equilibria.data.fetching.published import PUBLISHED
from equilibria.data.tokenizer_training import train_byte_pairs
from equilibria.data.tokenizers import load_tokenizer, word_tokenizer
from equilibria.errors import UserError
from equilibria.files.manifest import check_manifest
from equilibria.files.seal import sealed_json
from equilibria.inference.loading import load_exported
from equilibria.interop.gpt2 import import_gpt2, import_tokenizer
from equilibria.interop.published import PublishedOptions, import_torchdeq_lm
from equilibria.interop.state_dict import read_state_dict
from equilibria.report.gather import gather
from equilibria.runs.checkpoints import Checkpoint, read_checkpoint, save_checkpoint
from equilibria.runs.folder import RunFolder
from equilibria.runs.metrics import read_metrics
from equilibria.runs.weights import distinct_state
from equilibria.serving.errors import ApiError
from equilibria.serving.fields import parse_json
from hostile import as_safetensors, edited, saved, tarred, with_other_values, zipped
from plain_gpt2 import random_weights as gpt2_weights
from plain_gpt2 import save as save_gpt2
from plain_published import Published, random_weights
from tiny import tiny_recipe

TEXTS = {"text/train.txt": b"the cat sat\n" * 50, "text/valid.txt": b"the dog\n" * 9, "README": b"about it"}
RECIPE = {"cell": {"d_model": 16, "heads": 2, "inner": 16, "blocks": 1}, "memory_length": 4, "prelude_layers": 1}
PTB = WebText(next(text for text in PUBLISHED if text.name == "ptb"))


@dataclass(frozen=True)
class Reader:
    """What reads a file.

    Attributes:
        good: the file as it should be.
        read: reads it, with what belongs to it.
        weight: share of the examples of the long test; less where one takes long.
    """

    good: Path
    read: Callable[[], object]
    weight: float = 1.0


def _unpacked(path: Path) -> None:
    """All that is in an archive."""

    def take(name: str, stream: io.BufferedIOBase) -> None:
        while stream.read(1 << 16):
            pass

    unpack(path, path.name, take)  # pyright: ignore[reportArgumentType]


def _write(path: Path, content: bytes | str | dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _of_runs(base: Path) -> Iterator[tuple[str, Reader]]:
    recipe = tiny_recipe(base)
    folder = RunFolder(base / "run")
    folder.checkpoints.mkdir(parents=True)
    write_recipe(recipe, folder.config)
    yield "recipe", Reader(folder.config, lambda: read_recipe(folder.config), 0.2)
    word_tokenizer(["<eos>", "<unk>", "cat", "sat"]).save(folder.tokenizer)
    yield "words", Reader(folder.tokenizer, lambda: load_tokenizer(folder.tokenizer))
    pairs = base / "pairs.json"
    train_byte_pairs(["the cat sat on the mat"] * 3, 270, 1).save(pairs)
    yield "byte pairs", Reader(pairs, lambda: load_tokenizer(pairs), 0.3)
    lines = [{"kind": kind, "step": 3, "loss": 2.5, "time": 1.0} for kind in ("train", "valid", "event")]
    _write(folder.metrics, "".join(json.dumps(line) + "\n" for line in lines))
    yield "metrics", Reader(folder.metrics, lambda: read_metrics(folder.metrics))
    checkpoint = Checkpoint({"weights.a": torch.ones(3, 2), "step": torch.tensor(3)}, {"best_step": 3, "seconds": 1.5})
    save_checkpoint(folder, 3, {"a": torch.ones(3, 2)}, checkpoint, best=True)
    path = folder.checkpoint("last")
    yield "index", Reader(folder.index_file, lambda: (folder.checkpoint("best"), folder.best_step()))
    yield "manifest", Reader(path / "manifest.json", lambda: check_manifest(path))
    yield "scalars", Reader(path / "trainer.json", lambda: read_checkpoint(path), 0.3)
    yield "trainer", Reader(next((path / "trainer").glob("*.safetensors")), lambda: read_checkpoint(path), 0.3)
    _write(folder.evaluation, {"split": "valid", "loss": 2.5, "step": 3, "checkpoint": "step-3"})
    yield "evaluation", Reader(folder.evaluation, lambda: gather(folder.path).departures(), 0.1)


def _of_models(base: Path) -> Iterator[tuple[str, Reader]]:
    exported = base / "exported"
    model = build_model(recipe_from({"run": {"name": "x"}, "model": RECIPE}, "here"), 30)
    tensors = {f"model.{name}": tensor.detach() for name, tensor in distinct_state(model).items()}
    _write(exported / "config.json", {"model_type": "equilibria", "vocab_size": 30, "recipe": RECIPE})
    _write(exported / "model.safetensors", as_safetensors(tensors))
    index = _write(
        exported / "model.safetensors.index.json", {"weight_map": dict.fromkeys(tensors, "model.safetensors")}
    )
    for path in (exported / "config.json", exported / "model.safetensors", index):
        yield f"exported {path.name}", Reader(path, lambda: load_exported(exported), 0.1)
    decoder = save_gpt2(base / "decoder", gpt2_weights())
    tokenizer = json.loads((base / "pairs.json").read_text()) if (base / "pairs.json").exists() else {}
    _write(decoder / "tokenizer.json", tokenizer)
    for name in ("config.json", "model.safetensors"):
        yield f"decoder's {name}", Reader(decoder / name, lambda: import_gpt2(decoder), 0.3)
    yield "decoder's tokenizer", Reader(decoder / "tokenizer.json", lambda: import_tokenizer(decoder, 30), 0.3)
    weights = random_weights(Published("torchdeq-lm"))
    legacy = io.BytesIO()
    torch.save(weights, legacy, _use_new_zipfile_serialization=False)
    for name, content in {
        "new.pth": saved(weights),
        "old.pth": legacy.getvalue(),
        "weights.safetensors": as_safetensors(weights),
    }.items():
        path = _write(base / name, content)
        yield name, Reader(path, lambda path=path: import_torchdeq_lm(read_state_dict(path), PublishedOptions()), 0.5)


def _of_texts(base: Path) -> Iterator[tuple[str, Reader]]:
    for name, content in {
        "text.zip": zipped(TEXTS),
        "text.tar": tarred(TEXTS, "w"),
        "text.tar.gz": tarred(TEXTS),
        "text.tar.xz": tarred(TEXTS, "w:xz"),
        "text.tar.bz2": tarred(TEXTS, "w:bz2"),
        "train.txt.gz": gzip.compress(TEXTS["text/train.txt"]),
        "nested.zip": zipped({"train.txt.gz": gzip.compress(TEXTS["text/train.txt"])}),
    }.items():
        path = _write(base / name, content)
        yield name, Reader(path, lambda path=path: _unpacked(path))
    source = {"url": "http://127.0.0.1:9/x", "size": 3, "sha256": "0" * 64, "verified": False}
    manifest = {"format": 1, "request": PTB.request(), "sources": [source], "files": {}}
    path = _write(base / "ptb" / "manifest.json", sealed_json(manifest))
    yield "fetched", Reader(path, lambda: fetch_text(PTB, base / "ptb", offline=True), 0.3)


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    base = tmp_path_factory.mktemp("hostile")
    return {name: reader for made in (_of_runs, _of_models, _of_texts) for name, reader in made(base)}


NAMES = (
    *("recipe", "words", "byte pairs", "metrics", "index", "manifest", "scalars", "trainer", "evaluation"),
    *("exported config.json", "exported model.safetensors", "exported model.safetensors.index.json"),
    *("decoder's config.json", "decoder's model.safetensors", "decoder's tokenizer"),
    *("new.pth", "old.pth", "weights.safetensors"),
    *("text.zip", "text.tar", "text.tar.gz", "text.tar.xz", "text.tar.bz2", "train.txt.gz", "nested.zip", "fetched"),
)


def try_changes(reader: Reader, examples: int) -> None:
    """Reads the file as it is, and then changed in so many ways, the same ones each time."""
    good = reader.good.read_bytes()
    reader.read()
    changes = edited()
    if reader.good.suffix == ".json":
        changes |= with_other_values()

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(changes)
    def try_one(change: Callable[[bytes], bytes]) -> None:
        reader.good.write_bytes(change(good))
        with suppress(UserError):
            reader.read()

    try:
        try_one()
    finally:
        reader.good.write_bytes(good)


def test_every_reader_is_named(readers: dict[str, Reader]) -> None:
    assert tuple(readers) == NAMES


UNHEARD = pytest.mark.filterwarnings("ignore:.*(by what is there|has no checksums)")


@UNHEARD
@pytest.mark.parametrize("name", NAMES)
def test_a_changed_file_is_read_or_a_sentence(name: str, readers: dict[str, Reader]) -> None:
    try_changes(readers[name], 12)


@pytest.mark.slow
@UNHEARD
@pytest.mark.parametrize("name", NAMES)
def test_many_changed_files_are_read_or_sentences(name: str, readers: dict[str, Reader]) -> None:
    try_changes(readers[name], int(2000 * readers[name].weight))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(edited())
def test_a_changed_request_is_read_or_an_answer(change: Callable[[bytes], bytes]) -> None:
    with suppress(ApiError):
        parse_json(change(b'{"prompt": "a", "max_tokens": 3, "stop": ["x"]}'))
