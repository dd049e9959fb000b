"""The command `equilibria`. A command's module is imported when that command runs, so that help is quick."""

import re
import sys
import warnings
from collections.abc import Sequence
from io import TextIOWrapper

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from equilibria.cli.output import NobodyReads, guarded
from equilibria.errors import UserError, is_out_of_memory, printable

_TRAINING = "training.batch_size, training.segment_length or the model (`equilibria plan` predicts what they need)"
_LESS = {
    **dict.fromkeys(("train", "sweep", "reproduce", "demo"), _TRAINING),
    "eval": "--batch-size or --segment-length",
    "generate": "--samples, the prompts or --max-new-tokens",
    "serve": "the number of texts at a time",
}
"""What to reduce where memory runs out, by command."""

_WITH_RECIPE = ("train", "plan", "sweep", "demo")

_LONGEST = 2000  # letters of a message: what it quotes may be of any length

app = App(
    name="equilibria",
    help="Deep equilibrium language models: train, evaluate, write text, report.",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(negative=()),
)
app.command("equilibria.cli.train:command", name="train", help="Train the model of a recipe.")
app.command("equilibria.cli.eval:command", name="eval", help="Evaluate a run on its text.")
app.command("equilibria.cli.generate:generate", name="generate", help="Write text with a run's model.")
app.command("equilibria.cli.serve:serve", name="serve", help="Serve a run's model over HTTP, with a page to try it.")
app.command("equilibria.cli.report:report", name="report", help="Write a run's report, one HTML page.")
app.command("equilibria.cli.runs:runs", name="runs", help="List runs: how far each has come, and how to go on.")
app.command("equilibria.cli.recipes:recipes", name="recipes", help="List the recipes that come with the package.")
app.command("equilibria.cli.recipes:init", name="init", help="Copy a recipe of the package, to edit it.")
app.command("equilibria.cli.plan:command", name="plan", help="Predict memory, speed and time of a recipe's run.")
app.command("equilibria.cli.sweep:command", name="sweep", help="Train a recipe at every combination of values.")
app.command("equilibria.cli.doctor:doctor", name="doctor", help="Show the environment and run self-checks.")
app.command("equilibria.cli.importing:command", name="import", help="Make a run of another project's model.")
app.command("equilibria.cli.export:export", name="export", help="Write a run's model for use without this package.")
app.command("equilibria.cli.bench:command", name="bench", help="Run a benchmark of the source checkout.")
app.command("equilibria.cli.reproduce:reproduce", name="reproduce", help="Print a table of the paper, ours beside it.")
app.command("equilibria.cli.data:command", name="data", help="Fetch a text and prepare it for training.")
app.command("equilibria.cli.demo:command", name="demo", help="Train, evaluate, write text and report at once.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command, with this process's arguments by default.

    Returns:
        The exit code: 0, 2 for errors the user can fix (a line each on stderr), 128 + n when stopped by signal n, which
        is SIGPIPE once the reader of the output has left.
    """
    for stream in (sys.stdout, sys.stderr):  # a character or file name that cannot be encoded ends no command
        if isinstance(stream, TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")
    given = list(sys.argv[1:] if arguments is None else arguments)
    with guarded():
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _warn
                code = app(given, exit_on_error=False, print_error=False) or 0
                _explain_settings(given)
            print(end="", flush=True)  # the buffer may have no place to go either
            return code
        except CycloptsError as problem:
            from equilibria.cli.explaining import explain

            return _fail(explain(problem))
        except UserError as problem:
            return _fail(*([_memory(problem, given)] if is_out_of_memory(problem) else map(str, problem.args)))
        except NobodyReads as problem:
            return problem.code
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except Exception as problem:
            if not is_out_of_memory(problem):
                raise
            return _fail(_memory(problem, given))


def _explain_settings(given: Sequence[str]) -> None:
    """Adds to the help of a command that takes a recipe its settings, or those below a key."""
    asked = [place for place, word in enumerate(given) if word in app.help_flags]
    if asked and given[0] in _WITH_RECIPE:
        from equilibria.cli.recipe_help import print_settings  # reads the source of every class it explains

        print_settings(Console(), *given[asked[0] + 1 :][:1])


def _memory(problem: Exception, given: Sequence[str]) -> str:
    command = next(iter(given), "")
    wanted = re.search(r"tried to allocate ([\d.]+ \w+)", str(problem), re.IGNORECASE)
    found = f" (tried to allocate {wanted[1]} more)" if wanted else ""
    less = f"reduce {_LESS[command]}, or " if command in _LESS else ""
    return f"out of memory{found}; {less}free some memory"


def _warn(message: Warning | str, *where: object) -> None:
    del where  # the line of source means nothing to the user
    print(f"warning: {message}", file=sys.stderr)


def _fail(*messages: str) -> int:
    for line in map(printable, messages):
        print(f"error: {line if len(line) <= _LONGEST else f'{line[:_LONGEST]}…'}", file=sys.stderr)
    return 2
