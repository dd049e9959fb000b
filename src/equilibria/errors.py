"""The one error for what a person can mend: an input, a recipe, a file or a flag."""


class UserError(ValueError):
    """Something a user can put right; the message says what is wrong, what was found and how to mend it.

    The command line prints it as one line and exits with code 2.
    """


def in_a_line(problem: Exception) -> str:
    """What went wrong in one line: a `UserError` as it is, anything else with its kind before it."""
    kind = "" if isinstance(problem, UserError) else f"{type(problem).__name__}: "
    return " ".join(f"{kind}{problem}".split())


def printable(text: str) -> str:
    """A text of anyone's for a line of ours: what moves a terminal's cursor or colours it is written as an escape."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode() for letter in text
    )
