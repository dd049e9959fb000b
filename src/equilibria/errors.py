"""The one error for what a person can mend: an input, a recipe, a file or a flag."""

import difflib
import errno
import re
from collections.abc import Iterable

_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|not enough memory|out of memory|failed to map segment|bad_alloc",
    re.IGNORECASE,
)


class UserError(ValueError):
    """Something a user can put right; the message says what is wrong, what was found and how to mend it.

    The command line prints it as one line, or one for each of several problems, and exits with code 2.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


def in_a_line(problem: Exception) -> str:
    """What went wrong in one line: a `UserError` as it is, anything else with its kind before it."""
    kind = "" if isinstance(problem, UserError) else f"{type(problem).__name__}: "
    return " ".join(f"{kind}{problem}".split())


def is_out_of_memory(problem: BaseException | None) -> bool:
    """Whether memory ran out, on the host or a device, be it that another error was made of it.

    PyTorch and the loader of libraries have no class of their own for it: their messages are looked at.
    """
    match problem:
        case None:
            return False
        case MemoryError() | OSError(errno=errno.ENOMEM):
            return True
        case RuntimeError() | ImportError() if _MEMORY.search(str(problem)):
            return True
    return is_out_of_memory(problem.__cause__)


def unwritable(path: object, problem: Exception, otherwise: str = "") -> UserError:
    """The error for a file or folder that cannot be written.

    Args:
        path: what was to be written, a path or its description.
        problem: what was raised.
        otherwise: another way out, as in "choose another --out".
    """
    reason = (problem.strerror if isinstance(problem, OSError) else None) or problem
    mend = _mend(problem.errno if isinstance(problem, OSError) else None)
    return UserError(f"{path} cannot be written ({reason}); {mend}{otherwise and f', or {otherwise}'}")


def _mend(number: int | None) -> str:
    match number:
        case errno.ENOSPC | errno.EDQUOT:
            return "free some space"
        case errno.EROFS:
            return "make its disk writable"
        case errno.EACCES | errno.EPERM:
            return "get the right to write there"
        case errno.ENOENT | errno.ENOTDIR:
            return "make its folder first"
    return "look at what is there"


def printable(text: str) -> str:
    """A text of anyone's for a line of ours: what moves a terminal's cursor or colours it is written as an escape."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode() for letter in text
    )


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The most alike of some words; None where none is."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)), None)
