"""The vocabulary of the published models, counted anew: it is not part of their checkpoints."""

from collections import Counter
from pathlib import Path

from equilibria.data import FolderText, Tokenizer, word_tokenizer
from equilibria.data.tokenizers import END


def published_vocabulary(folder: Path) -> Tokenizer:
    """The words of a folder's training text in the order of Transformer-XL's code (Dai et al. 2019, arXiv:1901.02860).

    `<eos>` is 0; then come words by falling frequency, and those that are equally frequent in the order of their first
    occurrence. No word is left out.

    Args:
        folder: in the layout of WikiText: `wiki.train.tokens` or `train.txt`, `.gz` or not.

    Raises:
        UserError: there is no such text.
    """
    counts: Counter[str] = Counter()
    for piece in FolderText(folder).pieces("train"):
        counts.update(piece.split())
    del counts[END]
    return word_tokenizer([END, *(word for word, _ in counts.most_common())])
