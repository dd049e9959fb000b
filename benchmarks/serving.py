"""The server under load: concurrent streams whose every token is checked, and requests that it must refuse.

A real server is started on a run (or on a model that is trained for a moment first). So many clients ask for one
stream after another, each one of a set of requests with a prompt, settings and a seed. Every answer must be, token for
token, the text that the library writes alone for that request. Meanwhile malformed requests come in, each of which
must be refused with a status of 4xx and a reason in JSON.

With `--hostile N` so many further connections, from another address, are idle or slow, ask for as much as they may, or
do not read what they asked for; they must not change an answer. From a third address come short requests, and
questions after the server's health, whose waits are measured.

    equilibria bench serving [--json] [--run RUN | --steps N] [--streams N] [--seconds N] [--malformed N] [--hostile N]
                             [--fuzz N] [--out FILE]
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from itertools import chain
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
from benchmarks._hostile import Hostile
from benchmarks._malformed import Malformed, malformed, mutated
from equilibria.inference.loading import LoadedRun, load_run
from equilibria.inference.writing import Piece, TextRequest, Writer
from equilibria.models.sampling import Sampling

_THIRD = "127.0.0.3"
# One that is solved soon: where rounding, which depends on what is beside a text, decides about one evaluation more,
# that changes a state by as much as the tolerance.
_MODEL = ("--model.cell.carry", "0.3", "--unset", "model.cell.token_carry", "--model.depth.eval_solver.tol", "1e-4")

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


@dataclass
class Waits:
    """What came of short questions that were asked one after another."""

    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        longest = max(self.seconds, default=0.0)
        return {
            "asked": len(self.seconds),
            "wrong": self.wrong,
            "seconds": _quantiles(self.seconds) | {"longest": longest},
        }


def cases(loaded: LoadedRun, count: int, longest: int, seed: int, part: int) -> list[Case]:
    """So many requests, each written by the library alone, its prompt in parts as the server reads it."""
    choose, found = random.Random(seed), list[Case]()
    tokenizer = loaded.tokenizer
    text = tokenizer.encode(f"{asyncio.__doc__}{json.__doc__}{random.__doc__}{subprocess.__doc__}")
    for number in range(count):
        start = choose.randrange(len(text) - 40)
        request = TextRequest(
            prompt=tuple(text[start : start + choose.randint(1, 40)]),
            max_new_tokens=choose.randint(min(4, longest), longest),
            sampling=_SAMPLINGS[number % len(_SAMPLINGS)],
            seed=choose.randrange(2**31),
            stop=choose.choice([(), (), tuple(choose.choices([" th", "and", "e", ". "], k=2))]),
        )
        writer = Writer(loaded.model, tokenizer, loaded.window)
        read = writer.read(request, part)
        while not read.read:
            read.advance()
        written = writer.start(read, range(request.copies))
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


async def told(address: str, data: bytes) -> bytes:
    """What is answered to a client that says this and no more."""
    where = urlsplit(address)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        writer.write(data)
        writer.write_eof()
        return await asyncio.wait_for(reader.read(), 60)
    finally:
        writer.close()


async def refuse(address: str, wrong: Malformed) -> str | None:
    """Sends a malformed request; what is wrong with the answer, or None."""
    try:
        answer = await told(address, wrong.data)
    except (ConnectionError, TimeoutError) as problem:
        return f"{wrong.kind}: {problem!r}"
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.split(b" ")[1:2]
    try:
        reason = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        reason = ""
    if status and status[0].isdigit() and 400 <= int(status[0]) < 500 and reason:
        return None
    return f"{wrong.kind}: {answer[:200]!r}"


async def ask(address: str, data: bytes) -> tuple[int, bytes]:
    """The status and the body of the answer to a request on a connection of its own, from the third address."""
    where = urlsplit(address)
    reader, writer = await asyncio.open_connection(where.hostname, where.port, local_addr=(_THIRD, 0))
    try:
        writer.write(data)
        answer = await asyncio.wait_for(reader.read(), 600)
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head[9:12] or 0), body


async def wait_for(address: str, data: bytes, expected: str, every: float, end: float, waits: Waits) -> None:
    """Asks again and again until the end, and looks for what is expected in each answer."""
    while time.perf_counter() < end:
        start = time.perf_counter()
        try:
            status, body = await ask(address, data)
        except (OSError, TimeoutError, ValueError) as problem:
            waits.wrong.append(repr(problem))
        else:
            if status != 200 or expected not in body.decode():
                waits.wrong.append(f"{status}: {body[:200]!r}")
        waits.seconds.append(time.perf_counter() - start)
        await asyncio.sleep(max(0.0, start + every - time.perf_counter()))


async def fuzz(address: str, options: Namespace, model: str) -> dict[str, Any]:
    """Sends damaged requests, some at a time; each must be answered or refused, and the server must go on."""
    statuses, failed = Counter[int](), list[str]()

    async def one(data: bytes) -> None:
        try:
            answer = await told(address, data)
        except (ConnectionError, TimeoutError) as problem:
            failed.append(f"{problem!r} for {data!r}")
            return
        status = int(answer[9:12]) if answer[9:12].isdigit() else 0
        statuses[status] += 1
        # 0 is no answer: who says no more is taken for gone after a second, whatever it has asked for.
        if status >= 500:
            failed.append(f"{answer[:200]!r} for {data!r}")

    requests = [*mutated(options.seed, options.fuzz, model)]
    for start in range(0, len(requests), 16):
        await asyncio.gather(*(one(data) for data in requests[start : start + 16]))
    status, _ = await ask(address, b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    if status != 200:
        failed.append(f"health answered {status}")
    return {"sent": len(requests), "statuses": dict(sorted(statuses.items())), "failed": failed}


def questions(model: str, case: Case) -> dict[str, tuple[bytes, str, float]]:
    """A short request and a question after health: what is sent, what the answer must hold, and how often."""
    body = json.dumps(
        {"model": model, "prompt": list(case.request.prompt), "max_tokens": len(case.tokens), "temperature": 0}
    )
    tail = "host: localhost\r\nconnection: close\r\n"
    post = f"POST /v1/completions HTTP/1.1\r\n{tail}content-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return {
        "short_requests": (
            f"{post}\r\n{body}".encode(),
            f'"token_ids":{json.dumps(case.tokens, separators=(",", ":"))}',
            0.5,
        ),
        "health": (f"GET /health HTTP/1.1\r\n{tail}\r\n".encode(), '"status":"ok"', 0.25),
    }


async def load(
    address: str, options: Namespace, expected: list[Case], short: Case, loaded: LoadedRun
) -> dict[str, Any]:
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

    hostile, waits = Hostile(address, model, options.seconds), dict[str, Waits]()
    asked = []
    for name, (data, found, every) in questions(model, short).items():
        waits[name] = Waits()
        asked.append(wait_for(address, data, found, every, start + options.seconds, waits[name]))
    streams = asyncio.gather(*(one(number) for number in range(options.streams)), *asked, hostile.run(options.hostile))
    problems = await refusals()
    await streams
    seconds = time.perf_counter() - start
    await client.close()
    fuzzed = await fuzz(address, options, model)
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
        **{name: one.summary() for name, one in waits.items()},
        "hostile": {
            "connections": options.hostile,
            "answers": {kind: dict(sorted(found.items())) for kind, found in sorted(hostile.answers.items())},
        },
        "malformed": {
            "sent": len(wrong),
            "kinds": len(Counter(request.kind for request in wrong)),
            "refused_with_a_reason": len(wrong) - len(problems),
            "others": problems,
        },
        "fuzz": fuzzed,
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
        flags = ["--training.steps", str(options.steps), "--run.directory", folder, "--run.name", "small", *_MODEL]
        with redirect_stdout(sys.stderr):
            code = equilibria_main(["train", "demo", *flags])
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
    for name in ("short_requests", "health"):
        one, seconds = result[name], result[name]["seconds"]
        waited = f"{seconds['median']:.2f} s median, {seconds['p95']:.2f} p95, {seconds['longest']:.2f} longest"
        table.add_row(name.replace("_", " "), f"{one['asked']}, {len(one['wrong'])} wrong; {waited}")
    table.add_row("damaged", f"{result['fuzz']['sent']} sent, {len(result['fuzz']['failed'])} not answered well")
    table.add_row("the server's memory", f"{result['peak_megabytes']:.0f} MB at most")
    table.add_row("malformed", f"{refused['refused_with_a_reason']} of {refused['sent']} refused with a reason")
    console.print(table)
    for problem in bad(result):
        console.print(problem, markup=False)


def parse(arguments: list[str]) -> Namespace:
    """The options."""
    parser = options_of("serving", __doc__)
    parser.add_argument("--run", type=Path, help="folder of a run; otherwise one is trained")
    parser.add_argument("--steps", type=int, default=150, help="training steps, where there is no run")
    parser.add_argument("--streams", type=int, default=50, help="concurrent clients")
    parser.add_argument("--seconds", type=float, default=60, help="for which new requests are made")
    parser.add_argument("--malformed", type=int, default=516, help="requests to be refused")
    parser.add_argument("--fuzz", type=int, default=0, help="damaged requests, after the streams")
    parser.add_argument("--hostile", type=int, default=0, help="connections that are idle, slow or want too much")
    parser.add_argument("--prompt-part", type=int, default=32, help="of the server: most prompts have several parts")
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
        expected = cases(loaded, options.distinct, options.max_tokens, options.seed, options.prompt_part)
        (short,) = cases(loaded, 1, 4, options.seed, options.prompt_part)
        console.print(f"{len(expected)} texts written by the library")
        flags = ["--max-batch", str(options.max_batch), "--request-timeout", "600"]
        flags += ["--prompt-part", str(options.prompt_part)]
        if options.threads is not None:
            flags += ["--threads", str(options.threads)]
        with server(run, *flags) as address:
            measured = asyncio.run(load(address, options, expected, short, loaded))
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    result = {
        "parameters": parameters,
        "vocabulary": loaded.tokenizer.vocabulary_size,
        "window": loaded.window,
        "streams": options.streams,
        "max_batch": options.max_batch,
        "load_average": os.getloadavg()[0],
        "peak_megabytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        **measured,
    }
    publish("serving", arguments, options, result, show)
    return 1 if bad(result) else 0


def bad(result: dict[str, Any]) -> list[str]:
    """All that went wrong."""
    parts = result["wrong"], result["lost"], result["malformed"]["others"], result["fuzz"]["failed"]
    return [*chain(*parts, *(result[name]["wrong"] for name in ("short_requests", "health")))]
