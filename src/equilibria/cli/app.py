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


def _shown_default(default: object) -> str | None:
    """What help says of a default: nothing of a flag that is off, an empty list or what the explanation tells."""
    return None if default in (None, False, ()) else str(default)


app = App(
    name="equilibria",
    help="Deep equilibrium language models: train, evaluate, write text, report.",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(negative=(), show_default=_shown_default),
)
_COMMANDS = (
    ("train", "train:train_recipe", "RECIPE [OPTIONS] [--KEY VALUE ...]", "Train the model of a recipe."),
    ("eval", "eval:evaluate_run", "RUN [OPTIONS] [--data.KEY VALUE ...]", "Evaluate a run on its text."),
    ("generate", "generate:generate", "RUN [OPTIONS]", "Write text with a run's model."),
    ("serve", "serve:serve", "RUN [OPTIONS]", "Serve a run's model over HTTP, with a page to try it."),
    ("report", "report:report", "RUN [OPTIONS]", "Write a run's report, one HTML page."),
    ("runs", "runs:runs", "[FOLDER] [OPTIONS]", "List runs: how far each has come, and how to resume."),
    ("recipes", "recipes:recipes", "[OPTIONS]", "List the recipes that come with the package."),
    ("models", "models:models", "[NAME] [OPTIONS]", "List the trained models of the package."),
    ("init", "recipes:init", "NAME [FILE]", "Copy a recipe of the package, to edit it."),
    ("plan", "plan:plan", "RECIPE [OPTIONS] [--KEY VALUE ...]", "Predict memory, speed and time of a recipe's run."),
    (
        "sweep",
        "sweep:sweep",
        "RECIPE [OPTIONS] [--KEY VALUE,VALUE ...]",
        "Train a recipe at every combination of values.",
    ),
    ("doctor", "doctor:doctor", "[OPTIONS]", "Show the environment and run self-checks."),
    ("import", "importing:command", None, "Make a run of another project's model."),
    ("export", "export:export", "RUN OUT --to FORMAT [OPTIONS]", "Write a run's model, to give away."),
    ("bench", "bench:command", None, "Run a benchmark of the source checkout."),
    ("reproduce", "reproduce:reproduce", "TABLE [OPTIONS]", "Print a table of the paper, ours beside it."),
    ("data", "data:command", None, "Fetch a text and prepare it for training."),
    ("demo", "demo:command", None, "Train, evaluate, write text and report at once."),
)
"""Each command's name, its module and function, what follows its name, which an app says itself, and what it does."""

for _name, _where, _arguments, _help in _COMMANDS:
    _usage = {} if _arguments is None else {"usage": f"Usage: equilibria {_name} {_arguments}"}
    app.command(f"equilibria.cli.{_where}", name=_name, help=_help, **_usage)


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
                code = _run(given)
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


def _run(given: list[str]) -> int:
    """Runs the command. The help of one that takes a recipe ends with an outline of its settings; help about a key is
    of that alone."""
    asked = [place for place, word in enumerate(given) if word in ("--help", "-h")]
    of_recipe = bool(asked) and given[0] in _WITH_RECIPE
    key = given[asked[0] + 1] if of_recipe and len(given) > asked[0] + 1 else ""
    code = 0 if key else app(given, exit_on_error=False, print_error=False) or 0
    if of_recipe:
        from equilibria.cli.recipe_help import print_settings  # reads the source of every class it explains

        print_settings(Console(), key)
    return code


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
