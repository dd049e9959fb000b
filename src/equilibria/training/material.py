"""What a model is trained and validated on: a text, read on from segment to segment, or sequences of a task."""

from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from equilibria.configuration.training import TrainingRecipe
from equilibria.data.batching import Batches, TrainingStream, check_tokens
from equilibria.data.prepared import Corpus
from equilibria.data.synthetic import CopyMemory, SymbolBatches
from equilibria.data.tokenizers import DigitTokenizer, Tokenizer
from equilibria.errors import UserError
from equilibria.inference.evaluation import Evaluation, evaluate, evaluate_segments
from equilibria.models import TokenModel


class Material(Protocol):
    """Batches to train on and segments to validate on, as a recipe cuts them."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Between text and the model's tokens."""
        ...

    @property
    def fingerprint(self) -> str:
        """The same for the same data alone."""
        ...

    @property
    def segment_length(self) -> int:
        """Tokens of each row of a batch."""
        ...

    def batches(self, vocabulary_size: int) -> Batches:
        """What a model of so many tokens trains on, `batch_size * accumulation` rows each.

        Raises:
            UserError: there is too little of it, or a token is outside the vocabulary.
        """
        ...

    def validate(self, model: TokenModel) -> Evaluation:
        """How well a model predicts what is held out."""
        ...


@dataclass(frozen=True)
class Text:
    """A corpus."""

    corpus: Corpus
    recipe: TrainingRecipe

    @property
    def tokenizer(self) -> Tokenizer:
        """The corpus's."""
        return self.corpus.tokenizer

    @property
    def fingerprint(self) -> str:
        """Of text and tokenizer."""
        return self.corpus.fingerprint

    @property
    def segment_length(self) -> int:
        """The recipe's."""
        return self.recipe.segment_length

    def batches(self, vocabulary_size: int) -> TrainingStream:
        """Rows that read the training text side by side."""
        train, valid = self.corpus.split("train"), self.corpus.split("valid")
        for split in (train, valid):
            check_tokens(split.tokens, vocabulary_size)
        rows = self.recipe.batch_size * self.recipe.accumulation
        return TrainingStream(train.tokens, rows, self.segment_length)

    def validate(self, model: TokenModel) -> Evaluation:
        """On the validation text, or its first `evaluate_tokens` tokens."""
        recipe = self.recipe
        valid = self.corpus.split("valid")
        return evaluate(model, valid, recipe.batch_size, self.segment_length, max_tokens=recipe.evaluate_tokens)


@dataclass(frozen=True)
class Task:
    """Sequences of copy memory, each whole: the recipe's `segment_length` has no part in it."""

    task: CopyMemory
    recipe: TrainingRecipe

    @property
    def tokenizer(self) -> DigitTokenizer:
        """A digit per class."""
        return DigitTokenizer()

    @property
    def fingerprint(self) -> str:
        """The task's sizes and seed say all."""
        return repr(self.task)

    @property
    def segment_length(self) -> int:
        """Of a whole sequence."""
        return self.task.length

    def batches(self, vocabulary_size: int) -> SymbolBatches:
        """Sequences that do not repeat before all have been seen."""
        if vocabulary_size < self.task.vocabulary_size:
            raise UserError(f"the task has {self.task.vocabulary_size} classes and the model {vocabulary_size}")
        return self.task.training(self.recipe.batch_size * self.recipe.accumulation)

    def validate(self, model: TokenModel) -> Evaluation:
        """On the sequences held out, or the first batches of them, to `evaluate_tokens` tokens at least."""
        size, most = self.recipe.batch_size, self.recipe.evaluate_tokens
        batches = None if most is None else -(-most // (size * self.task.length))
        return evaluate_segments(model, islice(self.task.validation(size), batches))


def material(data: Corpus | CopyMemory, recipe: TrainingRecipe) -> Material:
    """A corpus or a task, cut as the recipe says."""
    return Text(data, recipe) if isinstance(data, Corpus) else Task(data, recipe)
