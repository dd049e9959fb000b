"""`equilibria serve`."""

import errno
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import Parameter
from cyclopts.validators import Number

from equilibria.cli.output import go_on_unheard
from equilibria.cli.progress import ConsoleProgress, side_console
from equilibria.cli.settings import Count, Positive, whole
from equilibria.depths import Equilibrium
from equilibria.devices import Device
from equilibria.distributed import training_device
from equilibria.errors import UserError
from equilibria.inference.compiling import compile_run
from equilibria.inference.loading import load_run
from equilibria.models import LanguageModel

_Seconds = Annotated[float, Parameter(validator=Number(gt=0, lte=1e6))]


def serve(
    run: Path,
    /,
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535), converter=whole)] = 8000,
    name: str | None = None,
    checkpoint: str = "best",
    max_batch: Count = 32,
    max_queue: Count = 256,
    max_tokens: Count = 1024,
    max_prompt_tokens: Count = 2048,
    prompt_part: Count = 64,
    max_body_bytes: Count = 1_000_000,
    min_tolerance: Positive | None = None,
    max_evaluations: Count | None = None,
    max_connections: Count | None = None,
    allowed_host: tuple[str, ...] = (),
    api_key: Annotated[tuple[str, ...], Parameter(env_var="EQUILIBRIA_API_KEY")] = (),
    request_timeout: _Seconds = 60.0,
    stall_timeout: _Seconds = 30.0,
    shutdown_timeout: _Seconds = 10.0,
    threads: Count | None = None,
    compiled: bool = False,
    device: Device = "auto",
) -> int:
    """Serve a run's model: OpenAI's protocols of completions and chat at /v1, and a page to try it at /.

    Args:
        run: the run folder.
        host: address to listen at; 0.0.0.0 for all of this machine's.
        port: to listen at; 0 takes a free one and says which.
        name: of the model in requests; default: that of the folder.
        checkpoint: "best" by validation loss, "last" or "step-N".
        max_batch: texts that are written together.
        max_queue: texts that may wait; further requests are refused.
        max_tokens: new tokens of a text.
        max_prompt_tokens: tokens of a prompt.
        prompt_part: tokens of a prompt that are read in one turn; between two turns others write on.
        max_body_bytes: bytes of a request.
        min_tolerance: least that a request may ask for; default: that of the recipe's eval_solver.
        max_evaluations: most per token that a request may ask for; default: those of the recipe's eval_solver.
        max_connections: open ones; default: what the system's limit of descriptors allows, 1024 at most.
        allowed_host: a name by which requests may call the server, beside those of this machine alone; "*" for any. May
            be given several times.
        api_key: which requests must have; several may be given, and share the places. Default: none is asked for. It is
            better given in the environment, which other users of the machine do not see.
        request_timeout: seconds after which a request is ended.
        stall_timeout: seconds without an answer of the model after which /health says 503.
        shutdown_timeout: seconds that running requests are given after SIGTERM.
        threads: of PyTorch; default: its own choice.
        compiled: compile a step of one token, for a text that is written alone: sooner where a model is small. Takes
            half a minute at first, on a CPU with a C++ compiler.
        device: where to compute; "auto" takes CUDA if there is a device.
    """
    try:
        from equilibria.serving.chat import chat_of
        from equilibria.serving.gate import Gate
        from equilibria.serving.request import Served, ServerLimits
        from equilibria.serving.server import serve as listen
    except ModuleNotFoundError as missing:
        raise UserError(f"{missing.name} is not installed; pip install 'equilibria[serve]'") from missing
    go_on_unheard()
    where = training_device(device)
    loaded = load_run(run, checkpoint)
    loaded.check_continues()
    if threads is not None:
        torch.set_num_threads(threads)
    model = loaded.model.to(where)
    if compiled:
        compile_run(loaded, ConsoleProgress(side_console(False)))
    solver = (
        model.depth.eval_solver if isinstance(model, LanguageModel) and isinstance(model.depth, Equilibrium) else None
    )
    if solver is None and (min_tolerance or max_evaluations):
        raise UserError("--min-tolerance and --max-evaluations: this model has no solver to limit; omit them")
    if solver is not None:
        min_tolerance = min_tolerance or solver.tol
        max_evaluations = max_evaluations or solver.most_evaluations
    served = Served(
        name=name or loaded.folder.path.resolve().name,
        tokenizer=loaded.tokenizer,
        window=loaded.window,
        solves=solver is not None,
        scores=not loaded.recipe.model.reads_source,
        limits=ServerLimits(
            max_batch=max_batch,
            max_queue=max_queue,
            max_tokens=max_tokens,
            max_prompt_tokens=max_prompt_tokens,
            prompt_part=prompt_part,
            max_body_bytes=max_body_bytes,
            min_tolerance=min_tolerance,
            max_evaluations=max_evaluations,
            max_connections=max_connections,
            request_timeout=request_timeout,
            stall_timeout=stall_timeout,
            shutdown_timeout=shutdown_timeout,
        ),
        chat=chat_of(loaded.folder.path, loaded.tokenizer),
    )
    try:
        cut = listen(model, served, host, port, Gate(allowed_host, api_key))
    except OSError as problem:
        reason = (problem.strerror or str(problem)).partition(" (while ")[0]  # asyncio and socket repeat the address
        raise UserError(f"cannot listen at {host} port {port}: {reason}; {_mend(problem)}") from problem
    return 130 if cut else 0


def _mend(problem: OSError) -> str:
    """What to do about an address that cannot be listened at."""
    if problem.errno in (errno.EADDRINUSE, errno.EACCES):
        return "choose another --port, or 0 for a free one"
    return "choose another --host or --port"
