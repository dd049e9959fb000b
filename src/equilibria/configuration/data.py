"""The `[data]` section of a recipe: the text and how it becomes tokens, or the task that stands in its place."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from equilibria.configuration.options import Options, is_given
from equilibria.configuration.values import Count, Fraction
from equilibria.errors import UserError

TEXT_OPTIONS: Options = {"files": ("valid_fraction", "test_fraction")}
"""Options of the sources that divide a text themselves."""

TASK_OPTIONS: Options = {"copy_memory": ("blanks", "symbols", "held_out"), "reversal": ("symbols", "held_out")}
"""Options of the sources that make their sequences themselves."""


Source = Literal["embedded", "folder", "files", "copy_memory", "reversal"]


@dataclass(frozen=True, kw_only=True)
class TextRecipe:
    """Which text, or which sizes of a task."""

    path: Path | None = None
    """The folder, for source "folder"."""
    files: Annotated[tuple[Path, ...], Parameter(json_list=False)] = ()
    """The text files, for source "files"; as a flag, once per file."""
    valid_fraction: Fraction | None = None
    """For files: share of the text kept for validation; left out: 0.05."""
    test_fraction: Fraction | None = None
    """For files: share of the text kept for the test, or 0 for none; left out: 0.05."""
    blanks: Count | None = None
    """For copy_memory: positions over which symbols must be remembered; left out: 400. A sequence is blanks + 2 symbols
    long."""
    symbols: Count | None = None
    """For copy_memory and reversal: symbols to remember or reverse; left out: 10."""
    held_out: Count | None = None
    """For copy_memory and reversal: sequences kept for validation; left out: 2000."""


@dataclass(frozen=True, kw_only=True)
class DataRecipe(TextRecipe):
    """The text and how it becomes tokens."""

    source: Source = "embedded"
    """Python's own documentation, a folder with train/valid/test.txt[.gz], text files, or a task: copy memory, or, for
    an encoder-decoder, the reversal of symbols."""
    tokenizer: Literal["word", "bpe", "bytes", "file"] = "bpe"
    """A token is a word, a byte-pair unit learned from the training text, a byte, or what a given file says."""
    tokenizer_file: Path | None = None
    """The tokenizer.json of a run or an import, for tokenizer "file"."""
    vocabulary_size: Count | None = None
    """Tokens in the vocabulary, at most; left out: all frequent words, or the usual number of byte pairs."""
    minimum_count: Count = 1
    """How often a word must occur in the training text to have a token of its own."""
    cache: Path = Path(".cache/equilibria")
    """Folder for encoded text; relative paths are relative to the working directory."""


@dataclass(frozen=True, kw_only=True)
class OtherText(TextRecipe):
    """Another text, or other sizes of the task, than a run was trained on; its tokens stay those of the run."""

    source: Source | None = None
    """As in a recipe; left out: "folder" with a path, "files" with files, or else as the run's own."""

    def in_place_of(self, data: DataRecipe) -> DataRecipe:
        """A run's section, about this text.

        Raises:
            UserError: what is given does not go together.
        """
        given = {field.name: value for field in fields(self) if is_given(value := getattr(self, field.name))}
        implied = "folder" if self.path is not None else "files" if self.files else data.source
        given["source"] = self.source or implied
        left_out = {field.name: field.default for field in fields(TextRecipe)}
        other = replace(data, **(given if given["source"] == data.source else left_out | given))
        for problem in data_problems(other):
            raise UserError(f"--{problem}")
        return other


def data_problems(data: DataRecipe) -> Iterator[str]:
    """What is wrong with the section; each line begins with a key."""
    belongs = (
        ("path", "folder", data.path is not None),
        ("files", "files", bool(data.files)),
    )
    for key, source, given in belongs:
        if data.source == source and not given:
            yield f'data.{key} is missing: data.source = "{source}" needs it'
        if data.source != source and given:
            yield f'data.{key} is for data.source = "{source}", which is "{data.source}" here'
    if data.tokenizer == "file":
        if data.tokenizer_file is None:
            yield 'data.tokenizer_file is missing: data.tokenizer = "file" needs it'
        if data.vocabulary_size is not None or data.minimum_count != 1:
            key = "minimum_count" if data.vocabulary_size is None else "vocabulary_size"
            yield f'data.{key} has no use beside data.tokenizer = "file", whose vocabulary is given'
    elif data.tokenizer_file is not None:
        yield f'data.tokenizer_file is for data.tokenizer = "file", which is "{data.tokenizer}" here'
    options = {**TEXT_OPTIONS, **TASK_OPTIONS}
    for key in sorted({key for keys in options.values() for key in keys}):
        if is_given(getattr(data, key)) and key not in options.get(data.source, ()):
            takers = " or ".join(f'"{source}"' for source, keys in options.items() if key in keys)
            yield f'data.{key} is for data.source = {takers}, which is "{data.source}" here'
