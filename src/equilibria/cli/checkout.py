"""What is in the source checkout and not in the installed package: recipes and benchmarks."""

import difflib
from pathlib import Path

from equilibria.errors import UserError

_ROOTS = (Path(__file__).parents[3], Path())


def in_checkout(folder: str, name: str) -> Path:
    """A file of a folder of the checkout: of the working directory, or else of the one this code is in.

    Raises:
        UserError: there is none.
    """
    files = {path.name: path for root in _ROOTS for path in sorted((root / folder).glob("[!_]*.*"))}
    if name in files:
        return files[name]
    if not files:
        raise UserError(f"there is no folder {folder} here; run this in a checkout of the sources")
    nearest = difflib.get_close_matches(name, files, n=1, cutoff=0.0)[0]
    raise UserError(f"there is no {folder}/{name}; the nearest is {folder}/{nearest}")
