"""Text for language models: sources, tokenizers, encoded corpora, batches, and n-gram yardsticks."""

from equilibria.data.batching import EvaluationStream, Segment, TrainingStream, check_tokens
from equilibria.data.corpus import EmbeddedText, Source, Split, TextFolder
from equilibria.data.ngram import trigram_perplexity, unigram_perplexity
from equilibria.data.prepared import Corpus, EncodedSplit, prepare
from equilibria.data.text_files import TextFiles
from equilibria.data.tokenizer_spec import TokenizerFile, TokenizerSpec, train_tokenizer
from equilibria.data.tokenizers import (
    BytePairTokenizer,
    ByteTokenizer,
    IdTokenizer,
    Tokenizer,
    WordTokenizer,
    load_tokenizer,
)

__all__ = [
    "BytePairTokenizer",
    "ByteTokenizer",
    "Corpus",
    "EmbeddedText",
    "EncodedSplit",
    "EvaluationStream",
    "IdTokenizer",
    "Segment",
    "Source",
    "Split",
    "TextFiles",
    "TextFolder",
    "Tokenizer",
    "TokenizerFile",
    "TokenizerSpec",
    "TrainingStream",
    "WordTokenizer",
    "check_tokens",
    "load_tokenizer",
    "prepare",
    "train_tokenizer",
    "trigram_perplexity",
    "unigram_perplexity",
]
