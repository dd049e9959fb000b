"""Text encoded once: token files under a folder named by the fingerprint of text and tokenizer."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from equilibria.data.batches import EvaluationStream, TrainingStream, check_tokens
from equilibria.data.progress import UNWATCHED, Progress
from equilibria.data.sources.base import Source, Split
from equilibria.data.sources.reading import text_digest
from equilibria.data.tasks.base import Task
from equilibria.data.tokenizer_training import TokenizerSpec, train_tokenizer
from equilibria.data.tokenizers import Tokenizer, load_tokenizer, utf_8
from equilibria.data.yardsticks import trigram_perplexity, unigram_perplexity
from equilibria.errors import UserError, unwritable
from equilibria.files.durable import flush_folder, rename_durably
from equilibria.files.manifest import check_manifest, read_manifest, write_manifest

_FORMAT = 3  # raise it when what is stored changes, or how text becomes tokens
_TOKENIZER = "tokenizer.json"
_DTYPES = ("uint8", "uint16", "int32")
_CHUNK = 1 << 20  # characters that are encoded at once


@dataclass(frozen=True)
class EncodedSplit:
    """One split as token ids.

    Attributes:
        tokens: (N,) uint8, uint16 or int32, memory-mapped, read-only; every passage ends in `eos`.
        words: whitespace-separated words plus one per passage, as WikiText counts them.
        bytes: of the text in UTF-8, including the newlines that end passages.
    """

    tokens: np.ndarray
    words: int
    bytes: int

    def segments(self, batch_size: int, segment_length: int, max_tokens: int | None = None) -> EvaluationStream:
        """The text, or its first `max_tokens` tokens, with every token but the first as a target."""
        return EvaluationStream(self.tokens[:max_tokens], batch_size, segment_length)


@dataclass(frozen=True)
class Corpus(Task):
    """A prepared text, as a task."""

    source: str
    """Its name."""
    directory: Path
    """Holds its tokenizer and its encoded splits; named by its fingerprint."""

    @property
    def name(self) -> str:
        return self.source

    @property
    def fingerprint(self) -> str:
        return self.directory.name

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Raises a UserError if its file is gone or damaged."""
        return load_tokenizer(self.directory / _TOKENIZER)

    @property
    def vocabulary_size(self) -> int:
        return self.tokenizer.vocabulary_size

    def splits(self) -> tuple[Split, ...]:
        return tuple(self._manifest()["splits"])

    def split(self, name: Split) -> EncodedSplit:
        """Opens a split; raises a UserError if there is none, or its file is gone."""
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
        return TrainingStream(self.split("train").tokens, batch_size, segment_length)

    def yardsticks(self, name: Split) -> dict[str, float]:
        """Perplexities per token of n-gram models counted on the training text."""
        text = self.split("train").tokens, self.split(name).tokens, self.tokenizer.vocabulary_size
        return {"unigram_perplexity": unigram_perplexity(*text), "trigram_perplexity": trigram_perplexity(*text)}

    def check(self, vocabulary_size: int) -> None:
        """Raises a UserError that names the first training or validation token outside a model's vocabulary."""
        for name in ("train", "valid"):
            check_tokens(self.split(name).tokens, vocabulary_size)

    def _manifest(self) -> dict[str, Any]:
        try:
            return read_manifest(self.directory)
        except UserError as problem:
            message = f"{self.directory} is no longer a prepared text ({problem}); run the command again"
            raise UserError(message) from problem


def opened(data: Source | Task, progress: Progress = UNWATCHED) -> Task:
    """The task of a recipe's data, or its text, prepared; errors as for `prepare`."""
    return data if isinstance(data, Task) else prepare(data, data.tokenizer, data.cache, progress)


def fingerprint_of(data: Source | Task) -> str:
    """That of the task that `opened` gives, before a text is prepared; a UserError where it cannot be read."""
    return data.fingerprint if isinstance(data, Task) else _fingerprint(data.fingerprint(), data.tokenizer)


def _fingerprint(text: str, spec: TokenizerSpec) -> str:
    return text_digest([str(_FORMAT), text, json.dumps(spec.identity(), sort_keys=True)])


def prepare(source: Source, spec: TokenizerSpec, cache: Path, progress: Progress = UNWATCHED) -> Corpus:
    """Encodes a text, or opens what an earlier call with the same text and tokenizer left in `cache`.

    The text is streamed, once to learn the vocabulary and once to encode it: memory does not grow with its length. The
    folder is renamed into place when complete; one that differs from its manifest is written again. Of several
    processes, one writes and the others wait.

    Args:
        spec: the tokenizer to learn from the training split, or the file that holds it.
        cache: the folder of prepared texts; created if needed.

    Raises:
        UserError: the text cannot be read or is empty, or the cache cannot be written.
    """
    text = source.fingerprint()
    fingerprint = _fingerprint(text, spec)
    directory = cache / fingerprint
    if not _is_whole(directory):
        with _alone(cache, fingerprint):
            if not _is_whole(directory):
                with _unfinished(cache / f"preparing-{fingerprint}") as written:
                    _write(source, text, spec, written, progress)
                    _put_in_place(written, directory)
    return Corpus(source.name, directory)


@contextmanager
def _alone(cache: Path, fingerprint: str) -> Iterator[None]:
    """Keeps other processes from preparing the same text; raises a UserError if the cache cannot be written."""
    locks = cache / ".locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / fingerprint):
            yield
    except OSError as problem:
        raise unwritable(f"the cache {cache}", problem, "choose another data.cache") from problem


@contextmanager
def _unfinished(directory: Path) -> Iterator[Path]:
    """An empty folder to write into, removed at the end, as is one that a killed process left."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def encode_text(pieces: Iterable[str], tokenizer: Tokenizer, path: Path) -> EncodedSplit:
    """Encodes a text into a file that the result maps; a UserError for fewer than two tokens or an unwritable file."""
    dtype = _narrowest(tokenizer.vocabulary_size)
    try:
        counts = _encode(pieces, tokenizer, path, dtype)
    except OSError as problem:
        raise unwritable(f"the encoded text {path}", problem, "set TMPDIR to another folder") from problem
    _check_length(counts["tokens"], "the text")
    return EncodedSplit(np.memmap(path, dtype, mode="r"), counts["words"], counts["bytes"])


def _check_length(tokens: int, name: str) -> None:
    if tokens < 2:
        raise UserError(f"{name} has {tokens} tokens; give at least 2, to have one to predict")


def _write(source: Source, fingerprint: str, spec: TokenizerSpec, directory: Path, progress: Progress) -> None:
    """Encodes a text into a folder; raises a UserError if it no longer has that fingerprint."""
    if remark := source.remark():
        progress.say(remark)
    tokenizer = _tokenizer(source, spec, directory, progress)
    tokenizer.save(directory / _TOKENIZER)
    dtype = _narrowest(tokenizer.vocabulary_size)
    splits = {}
    for split in source.splits():
        with progress.bar(f"encoding the {split} split of {source.name}", source.size(split)) as advance:
            pieces = told(source.pieces(split, tokenizer.is_bytes), advance)
            splits[split] = _encode(pieces, tokenizer, directory / f"{split}.bin", dtype)
        _check_length(splits[split]["tokens"], f"{source.name}: the {split} split")
    if source.fingerprint() != fingerprint:
        raise UserError(f"{source.name} changed while it was read; run the command again")
    about = {"name": source.name, "source": fingerprint, "spec": spec.identity()}
    write_manifest(directory, more={**about, "dtype": dtype.name, "splits": splits})


def _tokenizer(source: Source, spec: TokenizerSpec, scratch: Path, progress: Progress) -> Tokenizer:
    if spec.kind in ("bytes", "file"):
        return train_tokenizer(spec, ())
    size = source.size("train")
    with progress.bar(f"learning the {spec.kind} vocabulary of {source.name}", size) as advance:
        return train_tokenizer(spec, told(source.pieces("train"), advance), size, scratch)


def _narrowest(vocabulary_size: int) -> np.dtype:
    """The smallest type that holds every id."""
    return np.dtype(np.uint8 if vocabulary_size <= 1 << 8 else np.uint16 if vocabulary_size <= 1 << 16 else np.int32)


def _encode(pieces: Iterable[str], tokenizer: Tokenizer, path: Path, dtype: np.dtype) -> dict[str, int]:
    """Writes the tokens of a split; returns its numbers of tokens, words and bytes."""
    tokens = words = size = 0
    with path.open("wb") as file:
        for batch in _batches(pieces):
            ids = tokenizer.encode_pieces(batch)
            file.write(ids.astype(dtype).data)
            text = "".join(batch)
            tokens += len(ids)
            words += len(text.split()) + sum(piece.endswith("\n") for piece in batch)
            size += len(utf_8(text))
    return {"tokens": tokens, "words": words, "bytes": size}


def _batches(pieces: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    length = 0
    for piece in pieces:
        batch.append(piece)
        length += len(piece)
        if length >= _CHUNK:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def told(pieces: Iterable[str], advance: Callable[[int], None]) -> Iterator[str]:
    """The same pieces; reports their bytes in large steps: a report per line would cost more than encoding it."""
    for batch in _batches(pieces):
        yield from batch
        advance(sum(len(utf_8(piece)) for piece in batch))


def _put_in_place(written: Path, directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)
    try:
        flush_folder(written)
        rename_durably(written, directory)
    except OSError:
        if not _is_whole(directory):  # else another process prepared the same text first
            raise


def _is_whole(directory: Path) -> bool:
    """Whether its manifest lists all files and they are unchanged."""
    try:
        manifest = check_manifest(directory)
    except UserError:
        return False
    is_known = {"splits", "dtype"} <= manifest.keys() and manifest["dtype"] in _DTYPES
    return is_known and manifest["files"].keys() >= {_TOKENIZER, "train.bin", "valid.bin"}
