"""`equilibria train`."""

import json as json_format
import shlex
from pathlib import Path

from rich.text import Text

from equilibria.cli.output import go_on_unheard
from equilibria.cli.plan import print_plan
from equilibria.cli.progress import ConsoleProgress, progress_console
from equilibria.cli.recipes import recipe_at
from equilibria.cli.runs import resume_command
from equilibria.cli.settings import Settings, check_flags
from equilibria.configuration import recipe_text, shipped_recipes, table_of
from equilibria.errors import UserError
from equilibria.runs.folder import RunFolder, no_run
from equilibria.training import TrainingResult, train


def train_recipe(
    recipe: Path, /, *settings: Settings, resume: bool = False, dry_run: bool = False, json: bool = False
) -> int:
    """Train the model of a recipe.

    Each key of a recipe is a flag too, and a flag has the last word. Ctrl-C saves a checkpoint first. Several
    processes: torchrun --nproc-per-node N -m equilibria train RECIPE.

    Args:
        recipe: the TOML file, the name of a recipe of the package (`equilibria recipes`), or a run folder to resume.
        settings: of the recipe.
        resume: continue the run from its last checkpoint.
        dry_run: print the whole recipe, and what the run takes as `equilibria plan` predicts it, and train nothing;
            with --json the recipe alone.
        json: print how the run ended as one JSON object on stdout; progress goes to stderr.
    """
    check_flags(train_recipe, settings)
    is_recipe = recipe.is_file() or recipe.as_posix() in shipped_recipes()
    if resume and not is_recipe and RunFolder.named(recipe) is None:
        raise UserError(no_run(recipe))
    whole = recipe_at(recipe, settings)
    if dry_run:
        if resume:
            raise UserError("--dry-run trains nothing, so --resume has no effect; drop one of them")
        if json:
            print(json_format.dumps({"recipe": table_of(whole)}))
            return 0
        print(recipe_text(whole), flush=True)
        return print_plan(whole)
    go_on_unheard()
    console = progress_console(json)
    result = train(whole, resume=resume, console=console, progress=ConsoleProgress(console))
    if json and result.main:
        print(json_format.dumps(result.to_json()))
    elif result.main:
        console.print(_ending(result), soft_wrap=True)
    return exit_code(result)


def _ending(result: TrainingResult) -> Text:
    """Where the run is, and the commands to go on with."""
    if result.interrupted is not None:
        commands = [resume_command(result.folder)]
    else:
        names = ("eval", "generate", "report") if result.writes_on else ("eval", "report")
        commands = [f"equilibria {name} {shlex.quote(str(result.folder))}" for name in names]
    return Text("\n  ".join((f"the run is in {result.folder}; go on with:", *commands)))


def exit_code(result: TrainingResult) -> int:
    """0, or 128 + n after signal n, as shells do."""
    return 0 if result.interrupted is None else 128 + result.interrupted
