"""`equilibria serve`."""

from pathlib import Path
from typing import Annotated

import torch
from cyclopts import Parameter
from cyclopts.validators import Number

from equilibria.cli.output import go_on_unheard
from equilibria.cli.settings import Count
from equilibria.depths import Equilibrium
from equilibria.errors import UserError
from equilibria.inference.loading import load_run
from equilibria.models import LanguageModel

_Seconds = Annotated[float, Parameter(validator=Number(gt=0, lte=1e6))]


def serve(
    run: Path,
    /,
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = 8000,
    name: str | None = None,
    checkpoint: str = "best",
    max_batch: Count = 32,
    max_queue: Count = 256,
    max_tokens: Count = 1024,
    max_prompt_tokens: Count = 2048,
    max_body_bytes: Count = 1_000_000,
    request_timeout: _Seconds = 60.0,
    shutdown_timeout: _Seconds = 10.0,
    threads: Count | None = None,
) -> int:
    """Serve a run's model: OpenAI's completions protocol at /v1, and a page to try it at /.

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
        max_body_bytes: bytes of a request.
        request_timeout: seconds after which a request is ended.
        shutdown_timeout: seconds that running requests are given after SIGTERM.
        threads: of PyTorch; default: its own choice.
    """
    try:
        from equilibria.serving.request import Served, ServerLimits
        from equilibria.serving.server import serve as listen
    except ModuleNotFoundError as missing:
        raise UserError(f"{missing.name} is not installed; pip install 'equilibria[serve]'") from missing
    go_on_unheard()
    loaded = load_run(run, checkpoint)
    loaded.check_continues()
    if threads is not None:
        torch.set_num_threads(threads)
    model = loaded.model
    served = Served(
        name=name or loaded.folder.path.resolve().name,
        tokenizer=loaded.tokenizer,
        window=loaded.window,
        solves=isinstance(model, LanguageModel) and isinstance(model.depth, Equilibrium),
        scores=not loaded.recipe.model.reads_source,
        limits=ServerLimits(
            max_batch=max_batch,
            max_queue=max_queue,
            max_tokens=max_tokens,
            max_prompt_tokens=max_prompt_tokens,
            max_body_bytes=max_body_bytes,
            request_timeout=request_timeout,
            shutdown_timeout=shutdown_timeout,
        ),
    )
    try:
        listen(model, served, host, port)
    except OSError as problem:
        raise UserError(f"cannot listen at {host} port {port}: {problem.strerror or problem}") from problem
    return 0
