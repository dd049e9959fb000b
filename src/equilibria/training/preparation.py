"""Making a run folder, or finding that an existing one belongs to the recipe it shall go on with."""

import json
from collections.abc import Mapping

from equilibria.configuration.comparing import first_difference, settings
from equilibria.configuration.reading import read_recipe, write_recipe
from equilibria.configuration.recipe import Recipe
from equilibria.data.tokenizers import Tokenizer
from equilibria.durable import leftovers, make_folder, write_durably
from equilibria.errors import UserError
from equilibria.inference.run_folder import RunFolder
from equilibria.manifest import check_manifest, write_manifest
from equilibria.training.checkpoint import start_from
from equilibria.training.distributed import launch, restarted

_FIXED_TRAINING = ("batch_size", "segment_length", "accumulation", "seed", "optimizer", "averaging")


def create_run(folder: RunFolder, recipe: Recipe, tokenizer: Tokenizer) -> None:
    """Makes the folder with the recipe and the tokenizer.

    Raises:
        UserError: it exists already and holds more than a start that failed before its recipe, or cannot be written.
    """
    if _is_taken(folder) and not _is_own(folder):
        if folder.imported:
            raise UserError(f"the run folder {folder.path} holds an import; {start_from(folder)}")
        raise UserError(
            f"the run folder {folder.path} exists already; continue it with --resume, "
            f"choose another --run.name or remove it"
        )
    furnish_run(folder, recipe, tokenizer)


def furnish_run(folder: RunFolder, recipe: Recipe, tokenizer: Tokenizer) -> None:
    """Writes what a run has before its first step: the recipe and the tokenizer.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        make_folder(folder.path)
        name = launch()
        if name is not None:
            write_durably(folder.launch, name)
        make_folder(folder.checkpoints)
        _write_tokenizer(folder, tokenizer)
        record_recipe(folder, recipe)
    except OSError as problem:
        raise UserError(f"the run folder {folder.path} cannot be written ({problem})") from problem


def _write_tokenizer(folder: RunFolder, tokenizer: Tokenizer) -> None:
    """With the manifest that covers it. The recipe has its digest in itself, as it may change and be edited."""
    tokenizer.save(folder.tokenizer)
    write_manifest(folder.path, [folder.tokenizer.name])


def mended(folder: RunFolder, tokenizer: Tokenizer) -> list[str]:
    """Writes the tokenizer anew where it is not what was saved; returns what to say of it.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        check_manifest(folder.path, [folder.tokenizer.name])
        return []
    except UserError as problem:
        try:
            _write_tokenizer(folder, tokenizer)
        except OSError as failure:
            raise UserError(f"{problem}, and {folder.path} cannot be written ({failure})") from failure
        return [f"{problem}; the tokenizer and its manifest are written anew"]


def began_before(folder: RunFolder) -> bool:
    """Whether torchrun started these processes again, after an earlier start of theirs that had made the folder."""
    return restarted() and folder.config.is_file() and _is_own(folder)


def _is_taken(folder: RunFolder) -> bool:
    """Whether something is in the folder's place that `furnish_run` does not leave when it fails before the recipe."""
    if not folder.path.is_dir():
        return folder.path.is_file()
    left = {folder.launch, folder.checkpoints, folder.tokenizer, folder.manifest, *leftovers(folder.path)}
    return any(entry not in left for entry in folder.path.iterdir()) or any(folder.checkpoints.glob("*"))


def _is_own(folder: RunFolder) -> bool:
    """Whether an earlier start of these processes by the same torchrun made the folder."""
    return restarted() and folder.launch.is_file() and folder.launch.read_text(encoding="utf-8") == launch()


def check_resumable(folder: RunFolder, recipe: Recipe) -> None:
    """Checks that a run can go on with this recipe.

    The model, the batch, the seed, the optimizer and the averaging must be those of the run; lengths, rates and
    intervals may change.

    Raises:
        UserError: there is no such run, or what must not change has changed: the first such key is named.
    """
    if not folder.config.is_file():
        raise UserError(f"there is no run to resume in {folder.path}; start one without --resume")
    check_goes_on(folder, plain_settings(read_recipe(folder.config, [])), recipe)


def plain_settings(recipe: Recipe) -> dict[str, object]:
    """Every value of a recipe by its dotted key, in JSON's types: what a checkpoint keeps of the recipe it is of."""
    return json.loads(json.dumps(settings(recipe), default=str))


def check_goes_on(folder: RunFolder, earlier: Mapping[str, object], recipe: Recipe) -> None:
    """The same, with the `plain_settings` that the run had.

    Raises:
        UserError: what must not change has changed.
    """
    difference = first_difference(_fixed(earlier), _fixed(plain_settings(recipe)))
    if difference is not None:
        key, before, now = difference
        raise UserError(
            f"the run in {folder.path} has {key} = {before}, the recipe {now}; resume with the same, or start a new run"
        )


def record_recipe(folder: RunFolder, recipe: Recipe) -> None:
    """Writes the recipe into the folder, in one go.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        write_recipe(recipe, folder.config, sealed=True)
    except OSError as problem:
        raise UserError(f"{folder.config} cannot be written ({problem})") from problem


def _fixed(recipe: Mapping[str, object]) -> dict[str, object]:
    """What a run may not change while it is continued, of its settings."""
    fixed = tuple(f"training.{name}" for name in _FIXED_TRAINING)
    return {key: value for key, value in recipe.items() if key.startswith("model.") or key in fixed}
