"""The server under load: concurrent streams whose every token is checked, and requests that it must refuse.

A real server is started on a run (or on a model that is trained for a moment first). So many clients ask for one
stream after another, each one of a set of requests with a prompt, settings and a seed. Every answer must be, token for
token, the text that the library writes alone for that request. Meanwhile malformed requests come in, each of which
must be refused with a status of 4xx and a reason in JSON.

    equilibria bench serving [--json] [--run RUN | --steps N] [--streams N] [--seconds N] [--malformed N] [--out FILE]
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from openai import AsyncOpenAI, OpenAIError
from rich.console import Console
from rich.table import Table

import equilibria
from benchmarks._harness import options_of, prepare, publish
from benchmarks._malformed import Malformed, malformed
from equilibria.cli.checkout import in_checkout
from equilibria.inference.loading import LoadedRun, load_run
from equilibria.inference.writing import Piece, TextRequest, Writer
from equilibria.models.sampling import Sampling

_SAMPLINGS = (
    Sampling(0.0),
    Sampling(0.8),
    Sampling(1.0, top_p=0.9),
    Sampling(0.9, top_k=40, repetition_penalty=1.2),
    Sampling(1.2, min_p=0.05, frequency_penalty=0.3),
)


@dataclass(frozen=True)
class Case:
    """A request and the text that the library writes for it."""

    request: TextRequest
    tokens: list[int]
    text: str

    def options(self, model: str) -> dict[str, Any]:
        """Arguments of the client."""
        sampling, request = self.request.sampling, self.request
        protocol = {"temperature": sampling.temperature, "frequency_penalty": sampling.frequency_penalty}
        ours = {"top_k": sampling.top_k, "min_p": sampling.min_p, "repetition_penalty": sampling.repetition_penalty}
        return {
            "model": model,
            "prompt": list(request.prompt),
            "max_tokens": request.max_new_tokens,
            "seed": request.seed,
            "stop": list(request.stop) or None,
            "top_p": sampling.top_p,
            **protocol,
            "extra_body": {name: value for name, value in ours.items() if value is not None},
        }


@dataclass
class Tally:
    """What came of the streams."""

    right: int = 0
    tokens: int = 0
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def cases(loaded: LoadedRun, count: int, longest: int, seed: int) -> list[Case]:
    """So many requests, each written by the library alone."""
    choose, found = random.Random(seed), list[Case]()
    size, tokenizer = loaded.tokenizer.vocabulary_size, loaded.tokenizer
    for number in range(count):
        prompt = tuple(choose.choices(range(min(size, 2000)), k=choose.randint(1, 40)))
        request = TextRequest(
            prompt=prompt,
            max_new_tokens=choose.randint(min(4, longest), longest),
            sampling=_SAMPLINGS[number % len(_SAMPLINGS)],
            seed=choose.randrange(2**31),
            stop=choose.choice([(), (), tuple(choose.choices([" th", "and", "e", ". "], k=2))]),
        )
        writer = Writer(loaded.model, tokenizer, loaded.window)
        written = writer.join(request)
        while writer.texts:
            written += writer.step()
        pieces = [piece for _, piece in written if isinstance(piece, Piece)]
        found.append(Case(request, [piece.token for piece in pieces], "".join(piece.text for piece in pieces)))
    return found


@contextmanager
def server(run: Path, *flags: str) -> Iterator[str]:
    """A server of its own process, by its address; ended by SIGTERM."""
    path = os.pathsep.join(filter(None, [str(Path(equilibria.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "equilibria", "serve", str(run), "--port", "0", *flags]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("serving"):
                raise RuntimeError(f"the server did not start: {line}")
            yield line.split()[-1]
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
    if code:
        raise RuntimeError(f"the server ended with code {code}")


async def stream(client: AsyncOpenAI, case: Case, model: str, tally: Tally) -> None:
    """One request; its tokens are compared as they are numbered in the answer."""
    start, first = time.perf_counter(), None
    tokens: list[int] = []
    text, finished = "", False
    try:
        async for chunk in await client.completions.create(stream=True, **case.options(model)):
            first = first or time.perf_counter()
            (choice,) = chunk.choices
            tokens += choice.model_extra["token_ids"]  # pyright: ignore[reportOptionalSubscript]
            text += choice.text
            finished = choice.finish_reason is not None
    except OpenAIError as problem:
        tally.lost.append(repr(problem))
        return
    if not finished or first is None:
        tally.lost.append(f"ended after {len(tokens)} tokens of {len(case.tokens)}")
    elif (tokens, text) != (case.tokens, case.text):
        place = next((n for n, (a, b) in enumerate(zip(tokens, case.tokens, strict=False)) if a != b), None)
        tally.wrong.append(f"{len(tokens)} tokens of {len(case.tokens)}, the first other one {place}")
    else:
        tally.right += 1
    if first is not None:
        tally.tokens += len(tokens)
        tally.first.append(first - start)
        tally.whole.append(time.perf_counter() - start)


async def refuse(address: str, wrong: Malformed) -> str | None:
    """Sends a malformed request; what is wrong with the answer, or None."""
    where = urlsplit(address)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        writer.write(wrong.data)
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 60)
    except (ConnectionError, TimeoutError) as problem:
        return f"{wrong.kind}: {problem!r}"
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.split(b" ")[1:2]
    try:
        reason = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        reason = ""
    if status and status[0].isdigit() and 400 <= int(status[0]) < 500 and reason:
        return None
    return f"{wrong.kind}: {answer[:200]!r}"


async def load(address: str, options: Namespace, expected: list[Case], loaded: LoadedRun) -> dict[str, Any]:
    """The streams and, among them, the malformed requests."""
    model, tally = loaded.folder.path.resolve().name, Tally()
    client = AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=600)
    wrong = list(malformed(options.seed, options.malformed, model, loaded.tokenizer.vocabulary_size))
    start = time.perf_counter()

    async def one(number: int) -> None:
        choose = random.Random(options.seed * 1000 + number)
        while time.perf_counter() - start < options.seconds:
            await stream(client, choose.choice(expected), model, tally)

    async def refusals() -> list[str]:
        found = []
        for number, request in enumerate(wrong):
            if (problem := await refuse(address, request)) is not None:
                found.append(problem)
            # Spread over the time, so that they come between the streams.
            left = start + options.seconds * (number + 1) / len(wrong) - time.perf_counter()
            await asyncio.sleep(max(0.0, left))
        return found

    streams = asyncio.gather(*(one(number) for number in range(options.streams)))
    problems = await refusals()
    await streams
    seconds = time.perf_counter() - start
    await client.close()
    return {
        "seconds": seconds,
        "requests": tally.right + len(tally.wrong) + len(tally.lost),
        "right": tally.right,
        "wrong": tally.wrong,
        "lost": tally.lost,
        "tokens": tally.tokens,
        "tokens_per_second": tally.tokens / seconds,
        "seconds_to_first_token": _quantiles(tally.first),
        "seconds_to_last_token": _quantiles(tally.whole),
        "malformed": {
            "sent": len(wrong),
            "kinds": len(Counter(request.kind for request in wrong)),
            "refused_with_a_reason": len(wrong) - len(problems),
            "others": problems,
        },
    }


def _quantiles(values: list[float]) -> dict[str, float]:
    median, p95 = np.quantile(values, [0.5, 0.95]) if values else (0.0, 0.0)
    return {"median": float(median), "p95": float(p95)}


@contextmanager
def run_of(options: Namespace, console: Console) -> Iterator[Path]:
    """The run asked for; or one that is trained now, on the documentation that Python carries."""
    if options.run is not None:
        yield options.run
        return
    from equilibria.cli.app import main as equilibria_main

    with TemporaryDirectory() as folder:
        flags = ["--training.steps", str(options.steps), "--run.directory", folder, "--run.name", "small"]
        with redirect_stdout(sys.stderr):
            code = equilibria_main(["train", str(in_checkout("recipes", "demo.toml")), *flags])
        if code:
            raise RuntimeError("training failed")
        console.print(f"trained for {options.steps} steps")
        yield Path(folder, "small")


def show(result: dict, console: Console) -> None:
    """The table a person reads."""
    refused, first = result["malformed"], result["seconds_to_first_token"]
    table = Table("", "", show_header=False, title=f"{result['streams']} streams for {result['seconds']:.0f} s")
    table.add_row("requests", str(result["requests"]))
    table.add_row("right, wrong, lost", f"{result['right']}, {len(result['wrong'])}, {len(result['lost'])}")
    table.add_row("tokens per second", f"{result['tokens_per_second']:,.0f}")
    table.add_row("seconds to the first token", f"{first['median']:.2f} median, {first['p95']:.2f} p95")
    table.add_row("malformed", f"{refused['refused_with_a_reason']} of {refused['sent']} refused with a reason")
    console.print(table)
    for problem in [*result["wrong"], *result["lost"], *refused["others"]]:
        console.print(problem, markup=False)


def parse(arguments: list[str]) -> Namespace:
    """The options."""
    parser = options_of("serving", __doc__)
    parser.add_argument("--run", type=Path, help="folder of a run; otherwise one is trained")
    parser.add_argument("--steps", type=int, default=100, help="training steps, where there is no run")
    parser.add_argument("--streams", type=int, default=50, help="concurrent clients")
    parser.add_argument("--seconds", type=float, default=60, help="for which new requests are made")
    parser.add_argument("--malformed", type=int, default=516, help="requests to be refused")
    parser.add_argument("--distinct", type=int, default=60, help="distinct requests of the streams")
    parser.add_argument("--max-tokens", type=int, default=64, help="new tokens of a request, at most")
    parser.add_argument("--max-batch", type=int, default=32, help="of the server")
    parser.add_argument("--seed", type=int, default=0, help="of requests")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the benchmark; 0 when nothing was wrong, lost or let in."""
    options = parse(arguments)
    console = prepare(options)
    with run_of(options, console) as run:
        loaded = load_run(run)
        expected = cases(loaded, options.distinct, options.max_tokens, options.seed)
        console.print(f"{len(expected)} texts written by the library")
        flags = ["--max-batch", str(options.max_batch), "--request-timeout", "600"]
        if options.threads is not None:
            flags += ["--threads", str(options.threads)]
        with server(run, *flags) as address:
            measured = asyncio.run(load(address, options, expected, loaded))
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    result = {
        "parameters": parameters,
        "vocabulary": loaded.tokenizer.vocabulary_size,
        "window": loaded.window,
        "streams": options.streams,
        "max_batch": options.max_batch,
        "load_average": os.getloadavg()[0],
        **measured,
    }
    publish("serving", arguments, options, result, show)
    bad = len(result["wrong"]) + len(result["lost"]) + len(result["malformed"]["others"])
    return 1 if bad else 0
