"""A run's model with a compiled step of one token; what is compiled is kept in the user's cache."""

import hashlib
import os
import platform
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from equilibria.data.progress import UNWATCHED, Progress
from equilibria.errors import UserError
from equilibria.files.durable import make_folder, reported, write_durably
from equilibria.inference.loading import LoadedRun
from equilibria.models import LanguageModel
from equilibria.models.compiled import CompiledToken, check_compilable, compile_token

_PACKAGE = Path(__file__).parents[1]


def compile_run(loaded: LoadedRun, progress: Progress = UNWATCHED) -> None:
    """Gives a run's model a step of one token that is compiled, for texts that are written alone: the same text in a
    third of the time, but for rounding, where a model is small. The first call for models of one shape takes half a
    minute; others find its package in `~/.cache/equilibria`, or in `$XDG_CACHE_HOME/equilibria`.

    Raises:
        UserError: the model cannot be compiled, there is no C++ compiler, or the cache cannot be written.
    """
    model = loaded.model
    if not isinstance(model, LanguageModel):
        raise UserError(f"a token is compiled at an equilibrium; {loaded.called} is a {type(model).__name__}")
    check_compilable(model)
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "equilibria" / "compiled"
    package = folder / f"{_key(loaded)}.pt2"
    if not package.is_file():
        progress.say("compiling a step of one token, once for all models of this shape (half a minute)")
        with reported(folder):
            make_folder(folder)  # before what takes long
        with TemporaryDirectory() as place:
            made = Path(place, "token.pt2")
            compile_token(model, made)
            with reported(package):
                write_durably(package, made.read_bytes())
    model.compiled_token = CompiledToken(model, package)


def _key(loaded: LoadedRun) -> str:
    """Of all that a package depends on: the model but for its weights, this code, PyTorch, processor and threads."""
    code = hashlib.sha256()
    for file in sorted(_PACKAGE.rglob("*.py")):
        code.update(file.read_bytes())
    parts = (
        loaded.recipe.model,
        loaded.tokenizer.vocabulary_size,
        code.hexdigest(),
        torch.__version__,
        _processor(),
        torch.get_num_threads(),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _processor() -> str:
    """What the compiler makes code for."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {platform.processor()} {torch.backends.cpu.get_cpu_capability()} {flags}"
