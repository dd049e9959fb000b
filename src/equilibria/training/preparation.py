"""Making a run folder, or checking that an existing one belongs to the recipe to resume."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from equilibria.configuration import Recipe, read_recipe, write_recipe
from equilibria.configuration.comparing import differences, settings
from equilibria.data.prepared import fingerprint_of
from equilibria.data.tokenizers import Tokenizer
from equilibria.distributed import launch, restarted
from equilibria.errors import UserError
from equilibria.files.durable import leftovers, make_folder, remove_leftovers, reported, write_durably
from equilibria.files.formats import read_json
from equilibria.files.manifest import check_manifest, write_manifest
from equilibria.runs.checkpoints import start_from
from equilibria.runs.folder import RunFolder
from equilibria.runs.index import SCALARS_FILE, read_index, step_of
from equilibria.runs.lock import check_unused, keeping, lock_files, writing

_FIXED = {
    f"training.{name}"
    for name in ("batch_size", "segment_length", "accumulation", "seed", "optimizer.kind", "averaging.kind")
}


@contextmanager
def claimed(folder: RunFolder, resume: bool) -> Iterator[None]:
    """While entered, the folder exists, only this process writes the run, and leftovers of killed processes are gone.

    Raises:
        RunInUse: another process writes it.
        UserError: as `check_startable`, or the folder cannot be written.
    """
    check_startable(folder, resume)  # before anything is made
    with reported(folder.path):
        make_folder(folder.path)
    with writing(folder):
        _check_place(folder, resume)  # another process may have been faster
        with reported(folder.path):
            with keeping(folder):
                remove_leftovers(folder.path)
            remove_leftovers(folder.checkpoints)
        yield


def check_startable(folder: RunFolder, resume: bool) -> None:
    """Checks that there is a run to resume, or room for a new one.

    Raises:
        RunInUse: another process writes it.
        UserError: there is no run to resume; or the folder is taken by more than a start that failed early.
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
    """Writes what a run needs before its first step: the recipe and the tokenizer.

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
    tokenizer.save(folder.tokenizer)
    write_manifest(folder.path, [folder.tokenizer.name])  # the recipe, which may change, carries its own digest


def repaired(folder: RunFolder, tokenizer: Tokenizer) -> list[str]:
    """Writes the tokenizer again if it is not what was saved; returns messages about that.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        check_manifest(folder.path, [folder.tokenizer.name])
        return []
    except UserError as problem:
        with reported(folder.path):
            _write_tokenizer(folder, tokenizer)
        return [f"{problem}; wrote the tokenizer and its manifest again"]


def made_before(folder: RunFolder) -> bool:
    """Whether torchrun restarted these processes after an earlier start had made the folder."""
    return restarted() and folder.config.is_file() and _is_own(folder)


def _is_taken(folder: RunFolder) -> bool:
    """Whether the folder holds more than a `furnish_run` that failed before it wrote the recipe."""
    if not folder.path.is_dir():
        return folder.path.is_file()
    left = {folder.launch, folder.checkpoints, folder.tokenizer, folder.manifest}
    left |= {*lock_files(folder), *leftovers(folder.path)}
    return any(entry not in left for entry in folder.path.iterdir()) or any(folder.checkpoints.glob("*"))


def _is_own(folder: RunFolder) -> bool:
    return restarted() and folder.launch.is_file() and folder.launch.read_text(encoding="utf-8") == launch()


def check_resumable(folder: RunFolder, recipe: Recipe) -> Recipe:
    """Checks that a run can be resumed with this recipe; returns its earlier one.

    The model, the batch, the seed, the optimizer and the averaging must be those of the run; lengths, rates and
    intervals may change.

    Raises:
        UserError: something fixed has changed; names the first such key.
    """
    earlier = read_recipe(folder.config, [])
    check_unchanged(folder, settings(earlier), recipe)
    return earlier


def check_unchanged(folder: RunFolder, earlier: Mapping[str, object], recipe: Recipe) -> None:
    """Checks the same against the `settings` of the run."""
    difference = next(differences(_fixed(earlier), _fixed(settings(recipe))), None)
    if difference is not None:
        key, before, now = difference
        raise UserError(
            f"the run in {folder.path} has {key} = {before}, the recipe {now}; resume with the same, or start a new run"
        )


def check_data(folder: RunFolder, saved: object, fingerprint: str) -> None:
    """Raises a UserError where data have another fingerprint than what a run was trained on."""
    if saved != fingerprint:
        raise UserError(
            f"the text or its tokenizer is not the one that {folder.path} was trained on; "
            f"resume with the same data, or start a new run"
        )


def check_steps(folder: RunFolder, done: int, recipe: Recipe) -> None:
    """Raises a UserError where a run has taken more steps than a recipe asks for."""
    if done > recipe.training.steps:
        raise UserError(
            f"the run in {folder.path} has taken {done} steps, and training.steps = {recipe.training.steps}; "
            f"give more, or start a new run"
        )


def check_before_reading(folder: RunFolder, recipe: Recipe) -> None:
    """Checks, before a text is prepared, that a run can be resumed with a recipe; leaves to `sound_checkpoint` what is
    damaged.

    Raises:
        UserError: it cannot.
    """
    check_resumable(folder, recipe)
    try:
        last = folder.checkpoints / read_index(folder.index_file).last
        scalars = read_json(last / SCALARS_FILE, dict)
    except UserError:
        return
    check_steps(folder, step_of(last) or 0, recipe)
    check_data(folder, scalars.get("corpus"), fingerprint_of(recipe.data))


def record_recipe(folder: RunFolder, recipe: Recipe) -> None:
    """Replaces the recipe in the folder; a UserError where that cannot be written."""
    with reported(folder.config):
        write_recipe(recipe, folder.config, sealed=True)


def _fixed(recipe: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in recipe.items() if key.startswith("model.") or key in _FIXED}
