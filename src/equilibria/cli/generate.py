"""`equilibria generate`."""

import json as json_format
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console

from equilibria import inference
from equilibria.cli.colours import ColouredText
from equilibria.cli.progress import ConsoleProgress, side_console
from equilibria.cli.settings import Count, Natural, Positive
from equilibria.data.progress import UNWATCHED, Progress
from equilibria.devices import Device
from equilibria.distributed import training_device
from equilibria.errors import UserError
from equilibria.inference.effort import Effort
from equilibria.inference.generating import Sample, Say
from equilibria.inference.loading import LoadedRun, load_run
from equilibria.models import LanguageModel, TokenModel
from equilibria.models.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class Draw:
    """How texts are drawn."""

    prompt: Annotated[tuple[str, ...], Parameter(alias="-p")] = ()
    """The text to continue; default: the start of a passage. Given several times: several texts."""
    prompts_file: Path | None = None
    """A file with a prompt on each line."""
    samples: Count = 1
    """Texts to write for each prompt."""
    max_new_tokens: Annotated[Count, Parameter(alias="-n")] = 128
    """Tokens to write, at most."""
    stop: tuple[str, ...] = ()
    """Ends a text before this string; may be given several times."""
    stop_at_end: bool = False
    """End a text at the end of a passage, too."""
    temperature: Annotated[float, Parameter(validator=Number(gte=0))] = 0.8
    """Above 1 is more varied, below 1 less; 0 takes the most likely token."""
    top_k: Count | None = None
    """Draw from this many of the most likely tokens."""
    top_p: Annotated[float | None, Parameter(validator=Number(gt=0, lte=1))] = None
    """Draw from the smallest set of tokens with this probability."""
    min_p: Annotated[float | None, Parameter(validator=Number(gte=0, lte=1))] = None
    """Draw from tokens with at least this share of the most likely one's probability."""
    repetition_penalty: Positive = 1.0
    """Above 1 makes tokens that the text already has less likely."""
    seed: Natural | None = None
    """Seed of the first text, one more for each text after it; default: a random one."""
    tolerance: Positive | None = None
    """Residual at which a token has converged; default: as the recipe's eval_solver says."""
    max_evaluations: Count | None = None
    """Evaluations of the cell per token, at most; default: as the recipe's eval_solver says."""
    guesses: Natural = 0
    """Tokens to guess ahead, at most, of a text that is written alone, and to solve with it: the same text sooner, but
    for what the tolerance leaves open."""
    compiled: bool = False
    """Compile a step of one token, for a text that is written alone: the same text sooner, but for rounding. Takes half
    a minute at first, on a CPU with a C++ compiler."""

    @property
    def sampling(self) -> Sampling:
        """How a token is drawn; a UserError where a number is not in its range."""
        try:
            return Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)
        except ValueError as problem:
            raise UserError(f"--{problem}".replace("_", "-", 1)) from problem

    def prompts(self) -> list[str]:
        """All of them; one empty prompt by default. A UserError where one is not text, or the file holds none."""
        for prompt in self.prompt:
            try:
                prompt.encode("utf-8")
            except UnicodeEncodeError as problem:
                raise UserError(f"--prompt {prompt!r} is not UTF-8 text; give it in that encoding") from problem
        if self.prompts_file is None:
            return list(self.prompt) or [""]
        try:
            lines = self.prompts_file.read_text(encoding="utf-8-sig").split("\n")
        except FileNotFoundError as problem:
            raise UserError(f"there is no file {self.prompts_file}; name one with --prompts-file") from problem
        except (OSError, UnicodeDecodeError) as problem:
            reason = problem.strerror if isinstance(problem, OSError) else "it is in another encoding"
            raise UserError(f"{self.prompts_file} cannot be read as UTF-8 text ({reason})") from problem
        from_file = [line for line in lines if line.strip()]
        if not from_file:
            raise UserError(f"{self.prompts_file} holds no prompt; write one on each line")
        return [*self.prompt, *from_file]


def generate(
    run: Path,
    /,
    *,
    draw: Annotated[Draw | None, Parameter(name="*")] = None,
    checkpoint: str = "best",
    device: Device = "auto",
    show_evaluations: bool = False,
    json: bool = False,
) -> int:
    """Write text with a run's model, as it comes; the last text is kept in the run's sample.json.

    Args:
        run: the run folder.
        draw: how.
        checkpoint: "best" by validation loss, "last" or "step-N".
        device: where to compute; "auto" takes CUDA if there is a device.
        show_evaluations: colour each token by the evaluations that its prediction took.
        json: print texts and settings as one JSON object and nothing else.
    """
    if json and show_evaluations:
        raise UserError("--show-evaluations colours what is printed, and --json prints figures alone; omit one of them")
    where = training_device(device)
    draw, loaded = draw or Draw(), load_run(run, checkpoint)
    loaded.model.to(where)
    if show_evaluations and not _solves(loaded.model):
        raise UserError("--show-evaluations has nothing to show: this model does not solve")
    console = side_console(json)
    progress = _ReadingProgress(console) if sys.stdout.isatty() else ConsoleProgress(console)
    if json:
        print(json_format.dumps(_as_json(draw, write_texts(loaded, draw, lambda *_: None, progress))))
    elif show_evaluations:
        _print_coloured(loaded, draw, progress)
    else:
        write_texts(loaded, draw, lambda text, _: print(text, end="", flush=True), progress)
        print()
    return 0


@dataclass(frozen=True)
class _ReadingProgress(ConsoleProgress):
    """Of prompts alone: where the texts themselves are seen as they are written."""

    @contextmanager
    def bar(self, sentence: str, total: int | None, unit: str = "bytes") -> Iterator[Callable[[int], None]]:
        shown = super().bar if unit == "prompts" else UNWATCHED.bar
        with shown(sentence, total, unit) as advance:
            yield advance


def _solves(model: TokenModel) -> bool:
    return isinstance(model, LanguageModel) and model.depth.solves


def write_texts(loaded: LoadedRun, draw: Draw, say: Say, progress: Progress = UNWATCHED) -> list[Sample]:
    """Continues all prompts together, and keeps the first text in the run folder's sample.json where it can."""
    if "" in draw.stop:
        raise UserError("--stop must have at least 1 character; omit it to stop at no string")
    samples = inference.generate(
        loaded,
        draw.prompts(),
        samples=draw.samples,
        max_new_tokens=draw.max_new_tokens,
        sampling=draw.sampling,
        seed=draw.seed,
        stop=draw.stop,
        stop_at_end=draw.stop_at_end,
        effort=Effort(tolerance=draw.tolerance, max_evaluations=draw.max_evaluations),
        guesses=draw.guesses,
        compiled=draw.compiled,
        say=say,
        progress=progress,
    )
    loaded.keep(loaded.folder.sample, json_format.dumps(_as_json(draw, samples)) + "\n")
    return samples


def _as_json(draw: Draw, samples: list[Sample]) -> dict[str, object]:
    settings = {name: value for name, value in asdict(draw).items() if name not in ("prompt", "prompts_file")}
    first = asdict(samples[0])
    return {**settings, **first, **({"texts": [asdict(sample) for sample in samples]} if len(samples) > 1 else {})}


def _print_coloured(loaded: LoadedRun, draw: Draw, progress: Progress) -> None:
    text = ColouredText(Console(highlight=False))
    write_texts(loaded, draw, text.say, progress)
    text.end()
