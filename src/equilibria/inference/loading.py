"""From a run folder, or one in the layout of Hugging Face (read without its libraries), back to a model."""

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from equilibria.configuration import Recipe, read_recipe, recipe_from
from equilibria.configuration.building import build_model
from equilibria.data import Source, Task, TokenizerSpec
from equilibria.data.prepared import opened
from equilibria.data.progress import UNWATCHED, Progress
from equilibria.data.tokenizers import Tokenizer, load_tokenizer
from equilibria.errors import UserError
from equilibria.files.formats import read_json
from equilibria.files.manifest import check_manifest
from equilibria.inference.trained import FOLDER, weights_at
from equilibria.models import TokenModel
from equilibria.runs.folder import RunFolder, no_run
from equilibria.runs.index import MODEL_FILE, latest_first, step_of
from equilibria.runs.lock import save_beside
from equilibria.runs.weights import build_filled, distinct_state, fill, read_tensors, shards, united

_ATTEMPTS = 100
CONFIG, INDEX = "config.json", "model.safetensors.index.json"
_KIND = "equilibria"
_PREFIXES = "backbone.model.", "model."  # of a language model and of its backbone alone


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
        return step_of(self.checkpoint)

    @property
    def window(self) -> int:
        """Tokens that a prediction saw at most in training: a segment or a task's sequence, and the memory."""
        return self.recipe.context + self.model.memory_length

    @property
    def continues(self) -> bool:
        """Whether the model writes on after what it reads."""
        return writes_on(self.model, self.recipe.data)

    @property
    def called(self) -> str:
        """What commands call it: its folder, or the name of a model of the package."""
        return self.folder.path.name if self.folder.path.parent == FOLDER else str(self.folder.path)

    def keep(self, file: Path, content: str) -> None:
        """Writes a file of the run, or warns that it could not; beside a model of the package nothing is written."""
        if self.folder.path.parent != FOLDER:
            save_beside(self.folder, file, content)

    def check_continues(self) -> None:
        """Raises a UserError for a model that continues no text."""
        self.model.check_continues()
        if not self.continues:
            raise UserError(
                f"the answers of {self.recipe.data.name} are not the next inputs, so the model continues no text; "
                f"evaluate it on its task: equilibria eval {self.called}"
            )


def writes_on(model: TokenModel, data: Source | Task) -> bool:
    """Whether a model of some data writes on after what it reads: no token sees one after it, and each learned which
    comes next, there or in what is written after a source."""
    return model.causal and not (isinstance(data, Task) and not (data.continues or data.has_source))


def load_run(path: Path | str, checkpoint: str = "best") -> LoadedRun:
    """Loads a trained model.

    Args:
        path: a run folder, the name of a model of the package (`equilibria models`), a folder that
            `equilibria export RUN FOLDER --to equilibria` wrote, or a `.safetensors` file with its `config.toml` and
            `tokenizer.json` beside it.
        checkpoint: for a run folder `"best"` (by validation loss; the last one before the first evaluation),
            `"last"` or `"step-N"`.

    Raises:
        UserError: something is missing, damaged, of another shape, or not finite.
    """
    path = weights_at(Path(path))
    folder = RunFolder(path.parent if _is_file(path) else path)
    if folder.path == path:
        folder.checkpoint(checkpoint)  # says first whether there is any
        _check(folder, folder.path, folder.tokenizer.name)
    for file in (folder.config, folder.tokenizer):
        if not file.is_file():
            if RunFolder.named(folder.path.parent.parent) is not None:
                raise UserError(no_run(path))
            raise UserError(f"{file} is missing; a model is loaded with its config.toml and tokenizer.json")
    recipe = read_recipe(folder.config, [])
    tokenizer = load_tokenizer(folder.tokenizer)
    tensors, file, source = _trained(path, checkpoint)
    model = build_filled(lambda: build_model(recipe, tokenizer.vocabulary_size), tensors, file)
    return LoadedRun(model.eval(), tokenizer, recipe, source, folder)


def load_trained(model: TokenModel, path: Path) -> None:
    """Reads the best weights of a run into a model, even while its training saves checkpoints and removes others.

    Raises:
        UserError: as `load_run`; the model is unchanged.
    """
    tensors, file, _ = _trained(path, "best")
    fill(distinct_state(model), tensors, file)


def _trained(path: Path, checkpoint: str) -> tuple[dict[str, Tensor], Path, Path]:
    """The weights of a run, their file, and the folder of the checkpoint; a file alone is both."""
    if _is_file(path):
        return read_tensors(path), path, path
    folder = RunFolder(path)
    for left in reversed(range(_ATTEMPTS)):
        index = folder.index()
        try:
            source = folder.checkpoint(checkpoint)
            _check(folder, source, MODEL_FILE)
            return read_tensors(source / MODEL_FILE), source / MODEL_FILE, source
        except UserError:
            # What was named may have been removed meanwhile; the index names another then.
            if not left or folder.index() == index:
                raise
    raise AssertionError("the last attempt returns or raises")


def _is_file(path: Path) -> bool:
    return path.suffix == ".safetensors" and not path.is_dir()


def _check(run: RunFolder, folder: Path, file: str) -> None:
    """Checks a file of a run by the manifest beside it; an error names the way out."""
    try:
        check_manifest(folder, only=[file])
    except UserError as problem:
        others = ", ".join(path.name for path in latest_first(run.checkpoints) if path != folder)
        if run.imported:
            way_out = "import the model again"
        elif folder == run.path:
            way_out = f"have it written anew by `equilibria train {run.config} --resume`"
        else:
            way_out = f"take another checkpoint ({others})" if others else "train the model again"
        raise UserError(f"{problem}; restore it, or {way_out}") from problem


def load_task(run: LoadedRun, progress: Progress = UNWATCHED) -> Task:
    """What a run was trained on.

    Raises:
        UserError: it cannot be read, or no longer gives the tokenizer that the model was trained with.
    """
    recipe, data = run.recipe, run.recipe.data
    for place in (getattr(data, "path", None), *getattr(data, "files", ())):
        if place is not None and not place.is_absolute() and not place.exists():
            raise UserError(
                f"{place} does not exist here: {run.folder.config} names the text as seen from where the run was "
                f"trained; repeat this there, or evaluate with --data.path or --data.files"
            )
    alone = not run.folder.checkpoints.is_dir()  # weights that were given away, for this text in any version
    if isinstance(data, Source) and (alone or data.tokenizer.kind == "file"):  # the file may have been moved since
        recipe = replace(recipe, data=replace(data, tokenizer=TokenizerSpec("file", path=run.folder.tokenizer)))
    task = opened(recipe.data, progress)
    with TemporaryDirectory() as temporary:
        task.tokenizer.save(Path(temporary, "tokenizer.json"))
        same = Path(temporary, "tokenizer.json").read_bytes() == run.folder.tokenizer.read_bytes()
    if not same:
        raise UserError(
            f"{task.name} has another tokenizer than {run.folder.path} was trained with: it has changed since, or is "
            f"another task; restore it, or name one of the same symbols"
        )
    return task


def load(path: Path | str) -> TokenModel:
    """The best model of a run or of what else `load_run` takes, or that of a folder for Hugging Face; in evaluation
    mode."""
    path = Path(path)
    return load_exported(path) if is_exported(path) else load_run(path).model


def is_exported(folder: Path) -> bool:
    """Whether a folder has a model in that layout."""
    return (folder / CONFIG).is_file()


def load_exported(folder: Path) -> TokenModel:
    """The model of a folder that `equilibria export RUN DIR --to hf` or `save_pretrained` wrote, in evaluation mode.

    Raises:
        UserError: it is another kind of model, or something is missing or damaged.
    """
    config = read_json(folder / CONFIG, dict, "export the model again")
    if config.get("model_type") != _KIND:
        raise UserError(f"{folder / CONFIG} is of a {config.get('model_type')} model; expected {_KIND}")
    if config.get("tie_word_embeddings") is False:
        raise UserError(f"{folder} has an output layer of its own (tie_word_embeddings); load it with transformers")
    size, table = config.get("vocab_size"), config.get("recipe")
    if type(size) is not int or size < 1 or not isinstance(table, dict | None):
        raise UserError(f"{folder / CONFIG} is damaged: it needs a number vocab_size and a table recipe")
    content: dict[str, object] = {"run": {"name": _KIND}}
    if table:
        content["model"] = table
    recipe = recipe_from(content, f"{folder / CONFIG} (recipe)")
    return build_filled(lambda: build_model(recipe, size), _tensors(folder), folder).eval()


def _tensors(folder: Path) -> dict[str, Tensor]:
    """The model's own tensors, under its own names; an output layer tied to the embedding is not among them."""
    files = [folder / name for name in (shards(folder / INDEX) if (folder / INDEX).exists() else [MODEL_FILE])]
    tensors = united((file, read_tensors(file)) for file in files)
    named = ((name, next(filter(name.startswith, _PREFIXES), None)) for name in tensors)
    return {name.removeprefix(prefix): tensors[name] for name, prefix in named if prefix is not None}
