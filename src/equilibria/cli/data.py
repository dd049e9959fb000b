"""`equilibria data`."""

import json as json_format
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.table import Table

from equilibria.cli.output import go_on_unheard
from equilibria.cli.progress import ConsoleProgress, progress_console
from equilibria.cli.settings import Count
from equilibria.configuration import table_of
from equilibria.configuration.reading import toml_text
from equilibria.data.fetching.folder import FetchedText, RemoteText, WebText, fetch_text
from equilibria.data.fetching.hub import HubText
from equilibria.data.fetching.published import PUBLISHED
from equilibria.data.prepared import Corpus, prepare
from equilibria.data.sources.folder import FolderText
from equilibria.data.tokenizer_training import TokenizerSpec

command = App(
    name="data",
    usage="Usage: equilibria data NAME [OPTIONS]",
    help="Fetch a text and prepare it for training: published corpora, or one of the hub.",
)


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Where a text goes and how it becomes tokens."""

    out: Path | None = None
    """Folder for the text; default: data/NAME, where recipes look for it."""
    offline: bool = False
    """Do not use the network: prepare what is here."""
    again: bool = False
    """Fetch it anew even if it is here; the new text replaces the old one once it is complete."""
    tokenizer: Literal["word", "bpe", "bytes"] | None = None
    """What a token is; default: as the corpus is published, or byte pairs."""
    vocabulary_size: Count | None = None
    """Tokens in the vocabulary, at most; default: as for training."""
    minimum_count: Count = 1
    """How often a word must occur in the training text to have a token of its own."""
    cache: Path = Path(".cache/equilibria")
    """Folder for encoded text; where recipes look for it."""
    json: bool = False
    """Print the figures as one JSON object on stdout; progress goes to stderr."""


_Flat = Annotated[Preparation | None, Parameter(name="*")]


@command.default
def data(
    name: Literal["wikitext-103", "wikitext-2", "ptb", "enwik8", "text8"],
    /,
    *,
    url: tuple[str, ...] = (),
    digest: tuple[str, ...] = (),
    preparation: _Flat = None,
) -> int:
    """Fetch a published corpus, unless it is here already, and prepare it.

    Args:
        name: of the corpus; "hf NAME" is any data set of the Hugging Face hub.
        url: fetch it from here instead; once per file. Without a digest, the first download is trusted.
        digest: of the file at --url, as sha256:…; once per --url.
        preparation: where it goes and how it becomes tokens.
    """
    text = next(text for text in PUBLISHED if text.name == name)
    return _provide(WebText(text, url, digest), name, text.tokenizer, preparation or Preparation())


@command.command(usage="Usage: equilibria data hf OWNER/NAME [OPTIONS]")
def hf(
    name: str,
    /,
    *,
    config: str | None = None,
    revision: str | None = None,
    column: str = "text",
    held_out: Annotated[float, Parameter(validator=Number(gt=0, lt=1))] = 0.01,
    preparation: _Flat = None,
) -> int:
    """Fetch the text of a data set on the Hugging Face hub (HF_ENDPOINT names another) and prepare it.

    Args:
        name: of the data set, as OWNER/NAME.
        config: of the data set.
        revision: branch, tag or commit; default: the main branch.
        column: the column with the text.
        held_out: share of the rows for validation, where the set has no split for it.
        preparation: where it goes and how it becomes tokens.
    """
    folder = "--".join(part for part in (name.replace("/", "--"), config) if part)
    return _provide(
        HubText(name, config, revision, column, held_out), folder, TokenizerSpec("bpe"), preparation or Preparation()
    )


def _provide(text: RemoteText, name: str, published: TokenizerSpec, asked: Preparation) -> int:
    go_on_unheard()
    console = progress_console(asked.json)
    progress = ConsoleProgress(console)
    spec = TokenizerSpec(asked.tokenizer or published.kind, asked.vocabulary_size, asked.minimum_count)
    folder = asked.out or Path("data", name)
    fetched = fetch_text(text, folder, offline=asked.offline, again=asked.again, progress=progress)
    source = FolderText(folder, tokenizer=spec, cache=asked.cache)
    corpus = prepare(source, spec, asked.cache, progress)
    if asked.json:
        print(json_format.dumps(_figures(fetched, corpus)))
        return 0
    console.print(_table(corpus))
    for file in fetched.manifest["sources"]:
        trust = "its published digest" if file["verified"] else "trusted this first time: no digest is published"
        console.out(f"{file['url']}: {file['size']:,} bytes, sha256:{file['sha256']}, {trust}")
    console.out(f"The text is in {folder}, {'fetched now' if fetched.new else 'as it was fetched'}. In a recipe:")
    console.out(toml_text(table_of(source), "data"), end="")
    return 0


def _splits(corpus: Corpus) -> dict[str, dict[str, int]]:
    splits = {name: corpus.split(name) for name in corpus.splits()}
    return {
        name: {"tokens": len(split.tokens), "words": split.words, "bytes": split.bytes}
        for name, split in splits.items()
    }


def _figures(fetched: FetchedText, corpus: Corpus) -> dict[str, object]:
    return {
        "folder": str(fetched.folder),
        "new": fetched.new,
        "sources": fetched.manifest["sources"],
        "tokens": str(corpus.directory),
        "vocabulary_size": corpus.tokenizer.vocabulary_size,
        "splits": _splits(corpus),
    }


def _table(corpus: Corpus) -> Table:
    table = Table(title=f"{corpus.name}, {corpus.tokenizer.vocabulary_size:,} tokens in the vocabulary")
    for heading in ("split", "tokens", "words", "bytes"):
        table.add_column(heading, justify="left" if heading == "split" else "right")
    for name, sizes in _splits(corpus).items():
        table.add_row(name, *(f"{size:,}" for size in sizes.values()))
    return table
