"""`equilibria import`: another project's model as a run"""

import json as json_format
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from equilibria.cells.transformer_xl import NormPosition
from equilibria.cli.settings import Count, Natural
from equilibria.data import Tokenizer, id_tokenizer
from equilibria.interop.gpt2 import import_gpt2, import_tokenizer
from equilibria.interop.imported import Imported, write_run
from equilibria.interop.published import (
    MOST_ITERATIONS,
    PUBLISHED_ITERATIONS,
    PublishedOptions,
    import_torchdeq_lm,
    import_torchdeq_seq,
    published_vocabulary,
)
from equilibria.interop.state_dict import read_state_dict
from equilibria.nn.attention import TextPositions

command = App(
    name="import", usage="Usage: equilibria import KIND FILE [OPTIONS]", help="Make a run of another project's model."
)


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a published checkpoint does not say, and where the run goes."""

    out: Path | None = None
    """Folder of the run, which must not exist; default: runs/NAME-OF-THE-FILE."""
    vocabulary: Path | None = None
    """Folder of the text, such as WikiText-103, that the vocabulary is counted from; default: tokens are numbers."""
    text: Path | None = None
    """Folder of the text that `eval` reads, of numbers without a vocabulary; default: the vocabulary's."""
    heads: Count | None = None
    """Attention heads; default: as the file says, or 10 where it does not."""
    memory_length: Natural = PublishedOptions.memory_length
    """Tokens of earlier segments that are attended to."""
    window: Count = PublishedOptions.window
    """Tokens that a token sees at most, itself included."""
    cutoffs: Annotated[tuple[Count, ...], Parameter(consume_multiple=True)] = ()
    """First token of each cluster but the first, where one table has all; default: those for WikiText-103."""
    json: bool = False
    """Print what was made as one JSON object."""

    @property
    def options(self) -> PublishedOptions:
        """The importers' own."""
        return PublishedOptions(
            heads=self.heads, memory_length=self.memory_length, window=self.window, cutoffs=self.cutoffs or None
        )


Settings = Annotated[Published | None, Parameter(name="*")]


@command.command(name="torchdeq-lm", usage="Usage: equilibria import torchdeq-lm FILE [OPTIONS]")
def torchdeq_lm(file: Path, /, *, iterations: Count = PUBLISHED_ITERATIONS, settings: Settings = None) -> int:
    """A language model of TorchDEQ's deq-lm.

    Args:
        file: its state dictionary.
        iterations: applications of the cell.
        settings: what the file does not say.
    """
    settings = settings or Published()
    return _finish(import_torchdeq_lm(read_state_dict(file), settings.options, iterations), settings)


@command.command(name="torchdeq-seq", usage="Usage: equilibria import torchdeq-seq FILE [OPTIONS]")
def torchdeq_seq(
    file: Path,
    /,
    *,
    iterations: Count = MOST_ITERATIONS,
    norm_position: NormPosition = "post",
    settings: Settings = None,
) -> int:
    """A language model of TorchDEQ's deq-seq or of locuslab/deq (2021).

    Args:
        file: its state dictionary.
        iterations: most evaluations of the cell; the solve ends earlier at a residual of 1e-6.
        norm_position: norms after or before attention and feed-forward layer; "pre" is TorchDEQ's.
        settings: what the file does not say.
    """
    settings = settings or Published()
    imported = import_torchdeq_seq(read_state_dict(file), settings.options, iterations, norm_position)
    return _finish(imported, settings)


@command.command(name="gpt2", usage="Usage: equilibria import gpt2 FOLDER [OPTIONS]")
def gpt2(
    folder: Path,
    /,
    *,
    block: Natural | None = None,
    positions: TextPositions = "rotary",
    memory_length: Natural = 0,
    text: Path | None = None,
    out: Path | None = None,
    json: bool = False,
) -> int:
    """A GPT-2 decoder as a cell to start training from.

    Args:
        folder: what `save_pretrained` wrote.
        block: the block to take as the cell, counted from 0; default: the mean of all.
        positions: how the cell encodes positions; it cannot take the decoder's own.
        memory_length: tokens of earlier segments that are attended to.
        text: folder of the text to train and evaluate on.
        out: folder of the run, which must not exist; default: runs/NAME-OF-THE-FOLDER.
        json: print what was made as one JSON object.
    """
    imported = import_gpt2(folder, block, positions, memory_length)
    tokenizer, missing = import_tokenizer(folder, imported.vocabulary_size)
    if missing is not None:
        imported = replace(imported, left_out=(*imported.left_out, missing))
    return _write(imported, tokenizer, out, json, text)


def _finish(imported: Imported, settings: Published) -> int:
    folder = settings.vocabulary
    tokenizer = id_tokenizer(imported.vocabulary_size) if folder is None else published_vocabulary(folder)
    return _write(imported, tokenizer, settings.out, settings.json, settings.text or folder)


def _write(imported: Imported, tokenizer: Tokenizer, out: Path | None, json: bool, text: Path | None) -> int:
    """Writes the run and says what was made."""
    if out is None:
        source = Path(os.path.abspath(imported.source))  # so that `.` has a name, and links keep theirs
        out = Path("runs") / (source.name if source.is_dir() else source.stem)
    model = write_run(imported, tokenizer, out, text)
    figures = {
        "run": str(out),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary_size": imported.vocabulary_size,
        "left_out": list(imported.left_out),
    }
    if json:
        print(json_format.dumps(figures))
        return 0
    print(f"{out}: {figures['parameters']:,} parameters, {imported.vocabulary_size:,} tokens")
    for line in imported.left_out:
        print(f"left out: {line}")
    return 0
