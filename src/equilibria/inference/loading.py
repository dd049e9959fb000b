"""From a run folder back to a model that evaluates and writes text."""

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from equilibria.configuration.building import build_model, build_task, seen_together
from equilibria.configuration.reading import read_recipe
from equilibria.configuration.recipe import Recipe
from equilibria.data.progress import UNWATCHED, Progress
from equilibria.data.task import Task
from equilibria.data.tokenizers import Tokenizer, load_tokenizer
from equilibria.errors import UserError
from equilibria.inference.exported import is_exported, load_exported
from equilibria.inference.manifest import MANIFEST, check_manifest
from equilibria.inference.run_folder import RunFolder
from equilibria.inference.weights import load_weights
from equilibria.models import TokenModel


@dataclass(frozen=True)
class LoadedRun:
    """A trained model in evaluation mode, with what belongs to it.

    Attributes:
        model: the weights of the chosen checkpoint, on the CPU.
        tokenizer: turns text into the model's tokens and back.
        recipe: the recipe as it was run.
        checkpoint: the folder or file the weights came from.
        folder: the run folder.
    """

    model: TokenModel
    tokenizer: Tokenizer
    recipe: Recipe
    checkpoint: Path
    folder: RunFolder

    @property
    def step(self) -> int | None:
        """The optimizer step after which the weights were saved; None where the path does not say."""
        number = self.checkpoint.name.removeprefix("step-")
        return int(number) if number.isdecimal() else None

    @property
    def window(self) -> int:
        """Tokens that a prediction saw at most in training: a segment or a task's sequence, and the memory."""
        return seen_together(self.recipe) + self.model.memory_length


def load_run(path: Path | str, checkpoint: str = "best") -> LoadedRun:
    """Loads a trained model.

    Args:
        path: a run folder, or a `.safetensors` file with its `config.toml` and `tokenizer.json` beside it.
        checkpoint: for a run folder `"best"` (by validation loss; the last one before the first evaluation),
            `"last"` or `"step-N"`.

    Raises:
        UserError: something is missing, damaged or of another shape.
    """
    path = Path(path)
    folder = RunFolder(path.parent if _is_weights(path) else path)
    weights = weights_file(path, checkpoint)
    source = weights if weights == path else weights.parent
    for file in (folder.config, folder.tokenizer):
        if not file.is_file():
            raise UserError(f"{file} is missing; a model is loaded with its config.toml and tokenizer.json")
    recipe = read_recipe(folder.config, [])
    tokenizer = load_tokenizer(folder.tokenizer)
    model = build_model(recipe, tokenizer.vocabulary_size)
    if (source / MANIFEST).is_file():  # of a checkpoint; what was saved before there were manifests has none
        check_manifest(source, only=[weights.name])
    load_weights(model, weights)
    model.eval()
    return LoadedRun(model, tokenizer, recipe, source, folder)


def weights_file(path: Path, checkpoint: str = "best") -> Path:
    """The file of a model's weights; the arguments are those of `load_run`.

    Raises:
        UserError: there is no such run, or no such checkpoint in it.
    """
    if _is_weights(path):
        return path
    return RunFolder(path).checkpoint(checkpoint) / "model.safetensors"


def _is_weights(path: Path) -> bool:
    """Whether a path names a file of weights; a run may have such a name too."""
    return path.suffix == ".safetensors" and not path.is_dir()


def load_task(run: LoadedRun, progress: Progress = UNWATCHED) -> Task:
    """What a run was trained on.

    Args:
        run: the run.
        progress: told of each thing that takes a while.

    Raises:
        UserError: it cannot be read, or no longer gives the tokenizer that the model was trained with.
    """
    recipe = run.recipe
    if recipe.data.tokenizer == "file":  # the run's own copy: the file may have been moved since
        recipe = replace(recipe, data=replace(recipe.data, tokenizer_file=run.folder.tokenizer))
    task = build_task(recipe, progress)
    with TemporaryDirectory() as temporary:
        task.tokenizer.save(Path(temporary, "tokenizer.json"))
        same = Path(temporary, "tokenizer.json").read_bytes() == run.folder.tokenizer.read_bytes()
    if not same:
        raise UserError(
            f"{task.name} has changed since {run.folder.path} was trained: its tokenizer differs; restore the text"
        )
    return task


def load(path: Path | str) -> TokenModel:
    """The best model of a run (see `load_run`), or that of a folder for Hugging Face; in evaluation mode."""
    path = Path(path)
    return load_exported(path) if is_exported(path) else load_run(path).model
