"""Errors that the user can fix: in an input, a recipe, a file or a flag."""

import difflib
import errno
import re
import traceback
from collections.abc import Iterable

__all__ = ["UserError"]

_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|not enough memory|out of memory|failed to map segment|bad_alloc",
    re.IGNORECASE,
)

_MEND: dict[int | None, str] = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space"),
    errno.EROFS: "make its disk writable",
    errno.ENOTDIR: "a file is where a folder should be; remove it, or choose another place",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "get permission to write there"),
    errno.ENOENT: "make its folder first",
}


class Problems(ValueError):
    """What is wrong with a recipe: keys, and what to say of each."""

    def __init__(self, *found: tuple[tuple[str, ...], str]) -> None:
        super().__init__("; ".join(f"{'.'.join(keys)}: {text}" for keys, text in found))
        self.found = found


class UserError(ValueError):
    """Something the user can fix; the message says what is wrong, what was found and how to fix it.

    The command line prints a line for each of its problems, and exits with code 2.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


def in_a_line(problem: Exception) -> str:
    """What went wrong in one line: a `UserError` as it is, anything else with its kind before it."""
    kind = "" if isinstance(problem, UserError) else f"{type(problem).__name__}: "
    return " ".join(f"{kind}{problem}".split())


def is_out_of_memory(problem: BaseException | None) -> bool:
    """Whether memory ran out, on the host or a device; also where another error was raised from that.

    PyTorch and the loader of libraries have no class for it, so their messages are searched.
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
    """The error for a file or folder that cannot be written; `otherwise` is another way out: "choose another --out"."""
    reason = (problem.strerror if isinstance(problem, OSError) else None) or problem
    mend = _MEND.get(getattr(problem, "errno", None), "look at what is there")
    return UserError(f"{path} cannot be written ({reason}); {mend}{otherwise and f', or {otherwise}'}")


def printable(text: str) -> str:
    """Escapes what would move a terminal's cursor or colour its text."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode() for letter in text
    )


_ELSEWHERE = {"gpu": "cuda", "metal": "mps"}


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The most similar of some words, or else the only one that begins so; capitals and kinds of dash do not matter.
    What is called otherwise elsewhere counts as ours."""
    alike, plain = {_plain(other): other for other in known}, _plain(word)
    if (ours := _ELSEWHERE.get(plain)) in alike:
        return alike[ours]
    close = difflib.get_close_matches(plain, alike, n=1, cutoff=0.6)
    begun = [other for other in alike if len(plain) >= 3 and other.startswith(plain)]
    return alike.get(next(iter(close or (begun if len(begun) == 1 else ())), ""))


def _plain(word: str) -> str:
    return word.lower().lstrip("-").replace("_", "-")


def cause(problem: Exception) -> str:
    """What went wrong in code that may be the user's own: the message of a ValueError; of anything else, or without a
    message, its type and the line too."""
    if isinstance(problem, ValueError) and str(problem).strip():
        return str(problem)
    frames = [
        frame
        for frame in traceback.extract_tb(problem.__traceback__)
        if "site-packages" not in frame.filename and "importlib" not in frame.filename
    ]
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if len(frames) > 1 else ""
    said = str(problem).strip().splitlines()[:1]  # PyTorch's go on with a trace of their own
    return f"{': '.join((type(problem).__name__, *said))}{where}"
