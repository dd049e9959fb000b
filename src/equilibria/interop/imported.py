"""What an importer makes of another project's model, and the run folder it is written to.

The folder is an ordinary run at step 0: `load`, `eval`, `generate` and `export` read it, and `training.initial_weights`
starts training from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from equilibria.configuration import Recipe, RunRecipe, TrainingRecipe
from equilibria.configuration.building import build_model
from equilibria.data import EmbeddedText, FolderText, Tokenizer, TokenizerSpec
from equilibria.errors import UserError, unwritable
from equilibria.files.durable import new_folder
from equilibria.files.manifest import write_manifest
from equilibria.models import ModelRecipe, TokenModel
from equilibria.runs.folder import RunFolder
from equilibria.runs.index import FORMAT, MODEL_FILE, CheckpointIndex, write_index
from equilibria.runs.weights import build_filled, distinct_state
from equilibria.training.preparation import furnish_run


@dataclass(frozen=True)
class Imported:
    """A model of another project as one of ours.

    Attributes:
        source: the file or folder it is from.
        weights: by our names.
        segment_length: of its training.
        left_out: all of the source that has no place here, a line each.
    """

    source: Path
    model: ModelRecipe
    vocabulary_size: int
    weights: Mapping[str, Tensor]
    segment_length: int
    left_out: tuple[str, ...] = ()

    def recipe(self, out: Path, text: Path | None) -> Recipe:
        """The recipe of a run in `out`, on the text in the folder `text` if there is one."""
        tokenizer = TokenizerSpec("file", path=RunFolder(out).tokenizer)
        try:
            self.model.check()
            return Recipe(
                run=RunRecipe(name=out.name, directory=out.parent),
                data=EmbeddedText(tokenizer=tokenizer) if text is None else FolderText(path=text, tokenizer=tokenizer),
                model=self.model,
                training=TrainingRecipe(segment_length=self.segment_length),
            )
        except ValueError as problem:
            raise UserError(f"{self.source}: {problem}") from problem


def write_run(imported: Imported, tokenizer: Tokenizer, out: Path, text: Path | None = None) -> TokenModel:
    """Writes a model as a run folder, whole or not at all; returns it, in evaluation mode.

    Args:
        out: the folder, which must not exist or be empty.
        text: folder of the text that it is evaluated on.

    Raises:
        UserError: the folder exists already or cannot be written; sizes contradict each other or the tokenizer.
    """
    _check_free(out)
    if tokenizer.vocabulary_size != imported.vocabulary_size:
        raise UserError(
            f"{imported.source} has {imported.vocabulary_size} tokens and the vocabulary {tokenizer.vocabulary_size}; "
            f"give the text its vocabulary was built from"
        )
    out = out.resolve()
    recipe = imported.recipe(out, None if text is None else text.resolve())
    build = partial(build_model, recipe, imported.vocabulary_size)
    model = build_filled(build, imported.weights, imported.source).eval()
    try:
        with new_folder(out) as unfinished:
            folder = RunFolder(unfinished)
            furnish_run(folder, recipe, tokenizer)
            checkpoint = folder.checkpoints / "step-0"
            checkpoint.mkdir()
            state = {name: tensor.detach().contiguous() for name, tensor in distinct_state(model).items()}
            save_file(state, checkpoint / MODEL_FILE, FORMAT)
            write_manifest(checkpoint)
            write_index(folder.index_file, CheckpointIndex(checkpoint.name, own=(checkpoint.name,)))
    except (OSError, SafetensorError) as problem:
        _check_free(out)  # another import may have finished first
        raise unwritable(out, problem, "choose another --out") from problem
    return model


def _check_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; choose another --out or remove it")
