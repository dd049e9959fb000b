"""Text for language models: sources, tokenizers, prepared text, batches, tasks, yardsticks, and fetching."""

from equilibria.data.batches import EvaluationStream, Segment
from equilibria.data.prepared import Corpus, EncodedSplit, prepare
from equilibria.data.sources.base import Source, Split
from equilibria.data.sources.embedded import EmbeddedText
from equilibria.data.sources.files import FilesText
from equilibria.data.sources.folder import FolderText
from equilibria.data.tasks.automata import CellularAutomaton
from equilibria.data.tasks.base import SequenceTask, Task
from equilibria.data.tasks.groups import WordProblem
from equilibria.data.tasks.hops import HopInduction
from equilibria.data.tasks.mazes import Maze
from equilibria.data.tasks.sudoku import Sudoku
from equilibria.data.tasks.sudoku_files import SudokuFiles
from equilibria.data.tasks.symbols import CopyMemory, Reversal
from equilibria.data.tokenizer_training import TokenizerSpec, train_tokenizer
from equilibria.data.tokenizers import Tokenizer, byte_tokenizer, id_tokenizer, word_tokenizer

__all__ = [
    "CellularAutomaton",
    "CopyMemory",
    "Corpus",
    "EmbeddedText",
    "EncodedSplit",
    "EvaluationStream",
    "FilesText",
    "FolderText",
    "HopInduction",
    "Maze",
    "Reversal",
    "Segment",
    "SequenceTask",
    "Source",
    "Split",
    "Sudoku",
    "SudokuFiles",
    "Task",
    "Tokenizer",
    "TokenizerSpec",
    "WordProblem",
    "byte_tokenizer",
    "id_tokenizer",
    "prepare",
    "train_tokenizer",
    "word_tokenizer",
]
