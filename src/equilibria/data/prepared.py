"""Text encoded once: token files under a folder named by the fingerprint of text and tokenizer."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from equilibria.data.batching import EvaluationStream, TrainingStream, check_tokens
from equilibria.data.corpus import SPLITS, Source, Split
from equilibria.data.ngram import trigram_perplexity, unigram_perplexity
from equilibria.data.reading import file_digest, text_digest
from equilibria.data.tokenizers import Tokenizer, TokenizerFile, TokenizerSpec, load_tokenizer, train_tokenizer
from equilibria.errors import UserError

_FORMAT = 1  # raise it when what is stored, or how text becomes tokens, changes
_MANIFEST = "manifest.json"
_TOKENIZER = "tokenizer.json"
_CHUNK = 1 << 20  # tokens held in memory before they are written


@dataclass(frozen=True)
class EncodedSplit:
    """One split as token ids.

    Attributes:
        tokens: (N,) uint16 or int32, memory-mapped, read-only; every passage ends in `eos`.
        words: whitespace-separated words plus one per passage, as WikiText counts them.
        bytes: UTF-8 bytes of the passages plus one (the newline) per passage.
    """

    tokens: np.ndarray
    words: int
    bytes: int

    def segments(self, batch_size: int, segment_length: int, max_tokens: int | None = None) -> EvaluationStream:
        """The text, or its first `max_tokens` tokens, with every token but the first as a target."""
        return EvaluationStream(self.tokens[:max_tokens], batch_size, segment_length)


@dataclass(frozen=True)
class Corpus:
    """A prepared text: its tokenizer and the folder with its encoded splits."""

    name: str
    tokenizer: Tokenizer
    directory: Path
    fingerprint: str

    def splits(self) -> tuple[Split, ...]:
        """The splits that there are.

        Raises:
            UserError: the folder is gone.
        """
        return tuple(self._manifest()["splits"])

    def split(self, name: Split) -> EncodedSplit:
        """Opens a split.

        Raises:
            UserError: the text has no such split, or its file is gone.
        """
        manifest = self._manifest()
        if name not in manifest["splits"]:
            raise UserError(f"{self.name} has no {name} split; it has {', '.join(manifest['splits'])}")
        counts = manifest["splits"][name]
        try:
            tokens = np.memmap(self.directory / f"{name}.bin", np.dtype(manifest["dtype"]), mode="r")
        except (OSError, ValueError) as error:
            raise UserError(f"{self.directory / name}.bin cannot be opened ({error}); run the command again") from error
        return EncodedSplit(tokens, counts["words"], counts["bytes"])

    def training(self, batch_size: int, segment_length: int) -> TrainingStream:
        """Rows that read the training text side by side.

        Raises:
            UserError: it is too short for them.
        """
        return TrainingStream(self.split("train").tokens, batch_size, segment_length)

    def yardsticks(self, name: Split) -> dict[str, float]:
        """Perplexities per token of n-gram models counted on the training text."""
        text = self.split("train").tokens, self.split(name).tokens, self.tokenizer.vocabulary_size
        return {"unigram_perplexity": unigram_perplexity(*text), "trigram_perplexity": trigram_perplexity(*text)}

    def check(self, vocabulary_size: int) -> None:
        """Checks that all training and validation text is in a model's vocabulary.

        Raises:
            UserError: names the first token that is not.
        """
        for name in ("train", "valid"):
            check_tokens(self.split(name).tokens, vocabulary_size)

    def _manifest(self) -> dict[str, Any]:
        manifest = _read_manifest(self.directory)
        if manifest is None:
            raise UserError(f"{self.directory} is no longer a prepared text; run the command again")
        return manifest


def prepare(
    source: Source,
    spec: TokenizerSpec | TokenizerFile,
    cache: Path,
    on_progress: Callable[[str], None] | None = None,
) -> Corpus:
    """Encodes a text, or opens what an earlier call with the same text and tokenizer left in `cache`.

    The folder is written under another name and renamed when complete; one whose files do not have the sizes
    and digests of its manifest is written anew. Passages are streamed: memory does not grow with the text.

    Args:
        source: the text.
        spec: the tokenizer, built from the training split alone, or the file that it is in.
        cache: the folder that holds prepared texts; created if needed.
        on_progress: called with a short sentence as each stage begins.

    Raises:
        UserError: the text cannot be read or is empty, or the cache cannot be written.
    """
    say = on_progress or (lambda _: None)
    fingerprint = text_digest([str(_FORMAT), source.fingerprint(), json.dumps(spec.identity(), sort_keys=True)])
    directory = cache / fingerprint
    if not _is_whole(directory):
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="preparing-", dir=cache) as temporary:
                _write(source, spec, Path(temporary, fingerprint), say)
                _put_in_place(Path(temporary, fingerprint), directory)
        except OSError as error:
            raise UserError(
                f"the cache {cache} cannot be written ({error.strerror or error}); choose another data.cache"
            ) from error
    return Corpus(source.name, load_tokenizer(directory / _TOKENIZER), directory, fingerprint)


def _write(source: Source, spec: TokenizerSpec | TokenizerFile, directory: Path, say: Callable[[str], None]) -> None:
    directory.mkdir()
    if isinstance(spec, TokenizerSpec):
        say(f"building the {spec.kind} vocabulary of {source.name}")
    tokenizer = train_tokenizer(spec, source.passages("train"))
    tokenizer.save(directory / _TOKENIZER)
    dtype = np.dtype(np.uint16 if tokenizer.vocabulary_size <= 1 << 16 else np.int32)
    splits = {}
    for split in SPLITS:
        if split not in source.splits():
            continue
        say(f"encoding the {split} split of {source.name}")
        splits[split] = _encode(source.passages(split), tokenizer, directory / f"{split}.bin", dtype)
        if splits[split]["tokens"] < 2:
            raise UserError(f"{source.name}: the {split} split is empty; there must be something to predict")
    files = {
        path.name: {"size": path.stat().st_size, "digest": file_digest(path)} for path in sorted(directory.iterdir())
    }
    manifest = {
        "name": source.name,
        "spec": spec.identity(),
        "dtype": dtype.name,
        "splits": splits,
        "files": files,
    }
    (directory / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _encode(passages: Iterator[str], tokenizer: Tokenizer, path: Path, dtype: np.dtype) -> dict[str, int]:
    """Writes the tokens of a split; returns how many tokens, words and bytes it has."""
    tokens = words = size = 0
    chunk: list[int] = []
    with path.open("wb") as file:
        for passage in passages:
            chunk += tokenizer.encode(passage)
            chunk.append(tokenizer.eos)
            words += len(passage.split()) + 1
            size += len(passage.encode("utf-8", "replace")) + 1
            if len(chunk) >= _CHUNK:
                np.array(chunk, dtype).tofile(file)
                tokens += len(chunk)
                chunk.clear()
        np.array(chunk, dtype).tofile(file)
    return {"tokens": tokens + len(chunk), "words": words, "bytes": size}


def _put_in_place(written: Path, directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)
    try:
        os.rename(written, directory)
    except OSError:
        # Another process that prepared the same text was first; its folder is as good.
        if not _is_whole(directory):
            raise


def _read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest, or None where there is none that can be read."""
    try:
        manifest = json.loads((directory / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_complete = isinstance(manifest, dict) and {"files", "splits", "dtype"} <= manifest.keys()
    return manifest if is_complete else None


def _is_whole(directory: Path) -> bool:
    manifest = _read_manifest(directory)
    if manifest is None or not manifest["files"].keys() >= {_TOKENIZER, "train.bin", "valid.bin"}:
        return False
    for name, expected in manifest["files"].items():
        path = directory / name
        if not path.is_file() or path.stat().st_size != expected["size"] or file_digest(path) != expected["digest"]:
            return False
    return True
