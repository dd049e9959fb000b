"""Making a run folder, or finding that an existing one belongs to the recipe it shall go on with."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from equilibria.configuration.comparing import first_difference, settings
from equilibria.configuration.reading import read_recipe, write_recipe
from equilibria.configuration.recipe import Recipe
from equilibria.data.tokenizers import Tokenizer
from equilibria.distributed import launch, restarted
from equilibria.errors import UserError
from equilibria.files.durable import leftovers, make_folder, remove_leftovers, reported, write_durably
from equilibria.files.manifest import check_manifest, write_manifest
from equilibria.runs.checkpoints import start_from
from equilibria.runs.folder import RunFolder
from equilibria.runs.lock import check_unused, keeping, lock_files, writing

_FIXED_TRAINING = ("batch_size", "segment_length", "accumulation", "seed", "optimizer", "averaging")


@contextmanager
def claimed(folder: RunFolder, resume: bool) -> Iterator[None]:
    """While entered, the folder is there and this process alone writes the run; what killed ones left is gone.

    Args:
        folder: of the run.
        resume: whether to go on with the run that is there.

    Raises:
        RunInUse: another process writes it.
        UserError: as `check_startable`, or the folder cannot be written.
    """
    check_startable(folder, resume)  # where no run is to be, nothing is made
    with reported(folder.path):
        make_folder(folder.path)
    with writing(folder):
        _check_place(folder, resume)  # another process may have been first
        with reported(folder.path):
            with keeping(folder):
                remove_leftovers(folder.path)
            remove_leftovers(folder.checkpoints)
        yield


def check_startable(folder: RunFolder, resume: bool) -> None:
    """Checks that there is a run to go on with, or a free place for a new one.

    Args:
        folder: of the run.
        resume: whether to go on with the run that is there.

    Raises:
        RunInUse: another process writes it.
        UserError: there is no such run; or there is something, and more than a start that failed before its recipe.
    """
    check_unused(folder)
    _check_place(folder, resume)


def _check_place(folder: RunFolder, resume: bool) -> None:
    if resume and not folder.config.is_file():
        raise UserError(f"there is no run to resume in {folder.path}; start one without --resume")
    if not resume and _is_taken(folder) and not _is_own(folder):
        if folder.imported:
            raise UserError(f"the run folder {folder.path} holds an import; {start_from(folder)}")
        raise UserError(
            f"the run folder {folder.path} exists already; continue it with --resume, "
            f"choose another --run.name or remove it"
        )


def furnish_run(folder: RunFolder, recipe: Recipe, tokenizer: Tokenizer) -> None:
    """Writes what a run has before its first step: the recipe and the tokenizer.

    Raises:
        UserError: the folder cannot be written.
    """
    with reported(folder.path):
        make_folder(folder.path)
        name = launch()
        if name is not None:
            write_durably(folder.launch, name)
        make_folder(folder.checkpoints)
        _write_tokenizer(folder, tokenizer)
        record_recipe(folder, recipe)


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
        with reported(folder.path):
            _write_tokenizer(folder, tokenizer)
        return [f"{problem}; the tokenizer and its manifest are written anew"]


def began_before(folder: RunFolder) -> bool:
    """Whether torchrun started these processes again, after an earlier start of theirs that had made the folder."""
    return restarted() and folder.config.is_file() and _is_own(folder)


def _is_taken(folder: RunFolder) -> bool:
    """Whether something is in the folder's place that `furnish_run` does not leave when it fails before the recipe."""
    if not folder.path.is_dir():
        return folder.path.is_file()
    left = {folder.launch, folder.checkpoints, folder.tokenizer, folder.manifest}
    left |= {*lock_files(folder), *leftovers(folder.path)}
    return any(entry not in left for entry in folder.path.iterdir()) or any(folder.checkpoints.glob("*"))


def _is_own(folder: RunFolder) -> bool:
    """Whether an earlier start of these processes by the same torchrun made the folder."""
    return restarted() and folder.launch.is_file() and folder.launch.read_text(encoding="utf-8") == launch()


def check_resumable(folder: RunFolder, recipe: Recipe) -> Recipe:
    """Checks that a run can go on with this recipe; returns the one it has had.

    The model, the batch, the seed, the optimizer and the averaging must be those of the run; lengths, rates and
    intervals may change.

    Raises:
        UserError: what must not change has changed: the first such key is named.
    """
    earlier = read_recipe(folder.config, [])
    check_goes_on(folder, plain_settings(earlier), recipe)
    return earlier


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
    with reported(folder.config):
        write_recipe(recipe, folder.config, sealed=True)


def _fixed(recipe: Mapping[str, object]) -> dict[str, object]:
    """What a run may not change while it is continued, of its settings."""
    fixed = tuple(f"training.{name}" for name in _FIXED_TRAINING)
    return {key: value for key, value in recipe.items() if key.startswith("model.") or key in fixed}
