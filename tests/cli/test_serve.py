"""`equilibria serve`: a real process and real sockets, asked by the `openai` client."""

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
import torch
from openai.types import CompletionChoice

from equilibria.cli.app import main
from equilibria.inference.loading import load_run
from equilibria.models.sampling import Sampling
from processes import environment


@dataclass(frozen=True)
class Server:
    """A running server."""

    process: subprocess.Popen[str]
    address: str

    def health(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.address}/health") as answer:
            return json.load(answer)

    def figure(self, name: str) -> float:
        """One of the metrics; the sum where it has labels."""
        with urllib.request.urlopen(f"{self.address}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        found = [line.rpartition(" ")[2] for line in lines if re.match(rf"equilibria_{name}[ {{]", line)]
        return sum(map(float, found))

    def idle(self) -> bool:
        """Whether all places become free within some seconds."""
        for _ in range(300):
            if self.health().items() >= {"status": "ok", "model": "shared", "running": 0, "waiting": 0}.items():
                return True
            time.sleep(0.05)
        return False


def start(run: Path, *flags: str) -> Server:
    command = [sys.executable, "-m", "equilibria", "serve", str(run), "--port", "0", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    assert process.stdout is not None
    return Server(process, process.stdout.readline().split()[-1])


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[Server]:
    limits = ["--max-batch", "3", "--max-queue", "6", "--max-tokens", "5000", "--request-timeout", "30"]
    started = start(run, *limits, "--min-tolerance", "1e-9")
    yield started
    started.process.kill()
    started.process.communicate()


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as made:
        yield made


def written(run: Path, prompt: str, count: int, seed: int, sampling: Sampling) -> list[int]:
    """By the library, alone."""
    loaded = load_run(run)
    tokens = torch.tensor([loaded.tokenizer.encode(prompt)])
    found = loaded.model.generate(tokens, count, seed=seed, window=loaded.window, sampling=sampling)
    return found[0, tokens.shape[1] :].tolist()


def test_the_program_of_the_page_prints_a_text(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(program.replace("http://127.0.0.1:8000", server.address).replace('"first"', '"shared"'), names)
    names["client"].close()
    assert capsys.readouterr().out


def extra(choice: CompletionChoice, name: str) -> Any:
    """A field besides the protocol's."""
    assert choice.model_extra is not None
    return choice.model_extra[name]


def test_an_answer_is_what_the_library_writes(run: Path, client: openai.OpenAI) -> None:
    expected = [written(run, "the cat", 12, seed, Sampling(0.9, top_p=0.8)) for seed in (5, 6)]
    settings = {"model": "shared", "prompt": "the cat", "max_tokens": 12, "seed": 5, "temperature": 0.9, "top_p": 0.8}
    whole = client.completions.create(**settings, n=2, logprobs=2)
    assert [choice.index for choice in whole.choices] == [0, 1]
    for choice, tokens in zip(whole.choices, expected, strict=True):
        assert choice.text == bytes(tokens).decode("utf-8", "replace")
        assert (choice.finish_reason, extra(choice, "token_ids")) == ("length", tokens)
        assert len(extra(choice, "evaluations")) == len(extra(choice, "converged")) == 12
        assert choice.logprobs is not None
        assert len(choice.logprobs.tokens or []) == len(choice.logprobs.top_logprobs or []) == 12
        for token, top in zip(choice.logprobs.tokens or [], choice.logprobs.top_logprobs or [], strict=True):
            assert token in top  # also where it is not among the two most likely
            assert len(top) in (2, 3)
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (7, 24)
    chunks = list(client.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    last = chunks.pop()
    assert (last.choices, last.usage.completion_tokens if last.usage else 0) == ([], 12)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert [token for chunk in chunks for token in extra(chunk.choices[0], "token_ids")] == expected[0]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 11 + ["length"]


def test_an_echo_has_the_prompts_probabilities(run: Path, client: openai.OpenAI) -> None:
    answer = client.completions.create(model="shared", prompt=["a cat", "the"], max_tokens=0, echo=True, logprobs=1)
    assert [choice.text for choice in answer.choices] == ["a cat", "the"]
    found = answer.choices[0].logprobs
    assert found is not None
    assert (found.tokens, found.text_offset) == (list("a cat"), [0, 1, 2, 3, 4])
    tokens, model = torch.tensor([list(b"a cat")]), load_run(run).model
    with torch.no_grad():
        logprobs = model(tokens).logits[0].log_softmax(-1)
    assert found.token_logprobs is not None
    assert found.token_logprobs[0] is None
    for place in range(1, 5):
        assert abs(found.token_logprobs[place] - float(logprobs[place - 1, tokens[0, place]])) < 1e-3
    plain = client.completions.create(model="shared", prompt="a cat", max_tokens=0, echo=True, stream=True)
    assert [chunk.choices[0].text for chunk in plain] == ["a cat"]
    longer = client.completions.create(model="shared", prompt="a cat", max_tokens=3, echo=True, logprobs=1, seed=1)
    assert longer.choices[0].logprobs is not None
    assert longer.choices[0].text.startswith("a cat")
    assert (longer.choices[0].logprobs.text_offset or [])[:6] == [0, 1, 2, 3, 4, 5]


def test_solves_that_fail_are_told_of(server: Server, client: openai.OpenAI) -> None:
    before = server.figure("unconverged_tokens_total")
    few = {"max_evaluations": 1, "tolerance": 1e-9}
    settings = {"model": "shared", "prompt": "a cat", "max_tokens": 3, "echo": True, "logprobs": 0}
    choice = client.completions.create(**settings, extra_body=few).choices[0]
    assert extra(choice, "converged") == [False] * 3
    assert choice.logprobs is not None
    assert choice.logprobs.model_extra == {"converged": [None, *[False] * 7]}
    assert server.figure("unconverged_tokens_total") == before + 4 + 3
    assert min(extra(choice, "residual")) > 1e-9


def test_a_text_stops_before_a_stop_string(run: Path, client: openai.OpenAI) -> None:
    settings = {"model": "shared", "prompt": "the cat", "max_tokens": 99, "seed": 1}
    plain = client.completions.create(**settings).choices[0].text
    stop = plain[8:10]
    found = "".join(
        chunk.choices[0].text for chunk in client.completions.create(**settings, stop=[stop, "\x01\x02"], stream=True)
    )
    assert found == plain[: plain.index(stop)]
    whole = client.completions.create(**settings, stop=stop).choices[0]
    assert (whole.text, whole.finish_reason, extra(whole, "stop_reason")) == (found, "stop", stop)


def test_concurrent_answers_are_those_of_requests_alone(run: Path, server: Server, client: openai.OpenAI) -> None:
    prompts = ["the cat", "a fixed point is where a map returns", "nobody", "7", "on the mat and"]
    settings = {"model": "shared", "max_tokens": 20, "temperature": 0.7}
    efforts = [{}, {}, {}, {"extra_body": {"tolerance": 0.3}}, {"extra_body": {"max_evaluations": 2, "top_k": 9}}]
    alone = [
        client.completions.create(prompt=prompt, seed=seed, **settings, **efforts[seed]).choices[0].text
        for seed, prompt in enumerate(prompts)
    ]

    async def ask(aclient: openai.AsyncOpenAI, seed: int) -> str:
        answer = await aclient.completions.create(
            prompt=prompts[seed], seed=seed, stream=True, **settings, **efforts[seed]
        )
        return "".join([chunk.choices[0].text async for chunk in answer])

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as aclient:
            return await asyncio.gather(*(ask(aclient, seed) for seed in range(len(prompts))))

    assert asyncio.run(all_of_them()) == alone


def test_models_errors_and_the_page(server: Server, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["shared"]
    assert client.models.retrieve("shared").owned_by == "equilibria"
    with pytest.raises(openai.NotFoundError, match="no model 'x'"):
        client.completions.create(model="x", prompt="a")
    with pytest.raises(openai.BadRequestError, match="temperature must be from 0") as caught:
        client.completions.create(model="shared", prompt="a", temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{server.address}/v1/completions")
    assert (refused.value.code, refused.value.headers["allow"]) == (405, "POST")
    assert b"GET is not allowed for /v1/completions; send POST" in refused.value.read()
    with urllib.request.urlopen(f"{server.address}/") as page:
        assert b"page.js" in page.read()
        assert "default-src 'self'" in page.headers["content-security-policy"]


def test_places_are_shared_and_freed_and_too_many_are_refused(server: Server, client: openai.OpenAI) -> None:
    streams = [client.completions.create(model="shared", prompt="a", max_tokens=5000, stream=True) for _ in range(3)]
    for stream in streams:
        next(iter(stream))
    assert server.health()["running"] == 3
    # As many texts are written as there are places; one more gets its turn all the same.
    assert len(client.completions.create(model="shared", prompt="b", max_tokens=3).choices) == 1
    assert server.health()["running"] == 3
    with pytest.raises(openai.RateLimitError, match="texts wait already"):
        # One request fills the queue; this is asked while it does.
        asyncio.run(_crowd(server))
    for stream in streams:
        stream.close()
    assert server.idle()


async def _crowd(server: Server) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as client:
        asked = (client.completions.create(model="shared", prompt=["a", "b"], max_tokens=9, n=2) for _ in range(3))
        await asyncio.gather(*asked)


def test_time_limits_and_an_end_as_asked_for(run: Path) -> None:
    limits = ["--max-batch", "2", "--max-tokens", "100000", "--request-timeout", "1", "--shutdown-timeout", "0.2"]
    server = start(run, *limits)
    try:
        with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as client:
            with pytest.raises(openai.InternalServerError, match="took more than 1 seconds"):
                client.completions.create(model="shared", prompt="a", max_tokens=100_000)
            with pytest.raises(openai.APIError, match="took more than 1 seconds"):
                list(client.completions.create(model="shared", prompt="a", max_tokens=100_000, stream=True))
            assert server.idle()
            stream = client.completions.create(model="shared", prompt="a", max_tokens=100_000, stream=True)
            next(iter(stream))
            server.process.send_signal(signal.SIGTERM)
            with pytest.raises(openai.APIError, match="shutting down"):
                list(stream)
        assert server.process.wait(30) == 0
    finally:
        server.process.kill()
        server.process.communicate()


def test_an_address_that_cannot_be_had_is_named(
    run: Path, server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = server.address.rsplit(":", 1)[1]
    assert main(["serve", str(run), "--port", port]) == 2
    told = capsys.readouterr().err
    assert f"cannot listen at 127.0.0.1 port {port}" in told
    assert "; choose another --port, or 0 for a free one" in told
    assert main(["serve", str(run), "--host", "192.0.2.1", "--port", "0"]) == 2  # of documentation, so of no machine
    told = capsys.readouterr().err
    assert "cannot listen at 192.0.2.1 port 0: Cannot assign requested address; choose another --host or" in told


def test_the_benchmark_finds_nothing_wrong(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its checks of every token, and one malformed request of each kind."""
    flags = ["--streams", "4", "--seconds", "2", "--malformed", "46", "--distinct", "6", "--max-tokens", "8"]
    code = main(["bench", "serving", "--run", str(run), *flags, "--threads", "1", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert (result["wrong"], result["lost"], result["malformed"]["others"]) == ([], [], [])
    assert result["malformed"]["refused_with_a_reason"] == 46
    assert result["malformed"]["kinds"] == 46
    assert result["requests"] == result["right"] >= 4
    assert code == 0


def test_a_chat_is_answered_whole_and_as_a_stream(run: Path, client: openai.OpenAI) -> None:
    said: Any = [{"role": "system", "content": "the"}, {"role": "user", "content": [{"type": "text", "text": "cat"}]}]
    settings: dict[str, Any] = {"model": "shared", "messages": said, "seed": 3, "temperature": 0.9}
    whole = client.chat.completions.create(**settings, max_completion_tokens=9, logprobs=True, top_logprobs=2)
    (choice,) = whole.choices
    expected = written(run, "the\ncat", 9, 3, Sampling(0.9))
    assert (choice.message.role, choice.finish_reason) == ("assistant", "length")
    assert choice.message.content == bytes(expected).decode("utf-8", "replace")
    assert choice.logprobs is not None
    assert len(choice.logprobs.content or []) == 9
    chunks = list(client.chat.completions.create(**settings, max_tokens=9, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant"] + [None] * 8
    with pytest.raises(openai.BadRequestError, match="tools is not supported"):
        client.chat.completions.create(**settings, tools=[{"type": "function", "function": {"name": "f"}}])


def test_top_p_of_nothing_is_greedy_and_a_prompt_too_long_is_named(run: Path, client: openai.OpenAI) -> None:
    expected = written(run, "the cat", 5, 0, Sampling(0.0))
    for top_p in (0, 1e-45, 5e-324):
        (choice,) = client.completions.create(model="shared", prompt="the cat", max_tokens=5, top_p=top_p).choices
        assert extra(choice, "token_ids") == expected
    for prompt in ("a" * 2049, "a" * 70_000, [1] * 2049):
        with pytest.raises(openai.BadRequestError, match="maximum context length is 2048 tokens") as caught:
            client.completions.create(model="shared", prompt=prompt)
        assert caught.value.code == "context_length_exceeded"


def test_paths_may_end_with_a_slash_and_figures_are_prometheus(server: Server, client: openai.OpenAI) -> None:
    before = server.figure("requests_total"), server.figure("written_tokens_total")
    with urllib.request.urlopen(f"{server.address}/v1/models/") as answer:
        assert [model["id"] for model in json.load(answer)["data"]] == ["shared"]
    client.completions.create(model="shared", prompt="a", max_tokens=4)
    assert server.figure("requests_total") == before[0] + 4  # with the two for figures before
    assert server.figure("written_tokens_total") == before[1] + 4
    assert server.figure("evaluations_per_token_count") == server.figure("written_tokens_total")
    assert (server.figure("texts_running"), server.figure("texts_waiting"), server.figure("stalled")) == (0, 0, 0)
    with urllib.request.urlopen(f"{server.address}/ready") as answer:
        assert json.load(answer) == {"status": "ready"}


def test_a_key_opens_and_a_second_signal_says_what_it_cuts(run: Path) -> None:
    flags = ["--max-tokens", "100000", "--shutdown-timeout", "60", "--port", "0"]
    command = [sys.executable, "-m", "equilibria", "serve", str(run), *flags]
    settings: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **settings, env={**environment(), "EQUILIBRIA_API_KEY": "sesame"}) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            address = process.stdout.readline().split()[-1]
            with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
                with pytest.raises(openai.AuthenticationError, match="found another key"):
                    client.models.list()
                client.api_key = "sesame"
                stream = client.completions.create(model="shared", prompt="a", max_tokens=100_000, stream=True)
                next(iter(stream))
                process.send_signal(signal.SIGINT)
                with pytest.raises(openai.APIError, match="shutting down"):  # noqa: PT012
                    for number, _ in enumerate(stream):
                        if number in (1, 20):  # close to the first it is that one again
                            time.sleep(0.3 * (number == 20))
                            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
            assert process.stderr.read() == "cut 1 request\n"
        finally:
            process.kill()


@pytest.mark.parametrize("step", ["table @ table", "time.sleep(120)"])
@pytest.mark.parametrize("signals", [1, 2])
def test_the_end_aborts_no_turn_that_runs(run: Path, step: str, signals: int) -> None:
    """The model is in native code, which it may come back from, or not for long."""
    code = (
        "import sys, time, torch\nfrom equilibria.cli.app import main\n"
        "from equilibria.inference.writing import Writer\n"
        f"table, own = torch.ones(3000, 3000), Writer.step\ndef step(*given):\n    {step}\n    return own(*given)\n"
        f"Writer.step = step\nsys.exit(main(['serve', {str(run)!r}, '--port', '0', '--shutdown-timeout', '1']))\n"
    )
    settings: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **settings, env=environment()) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            address = process.stdout.readline().split()[-1]
            with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
                stream = client.completions.create(model="shared", prompt="a", max_tokens=500, stream=True)
                next(iter(stream))
                for _ in range(signals):
                    process.send_signal(signal.SIGTERM)
                    time.sleep(0.3)
                with pytest.raises(openai.APIError, match="shutting down"):
                    list(stream)
            assert process.wait(30) == (130 if signals > 1 else 0)
            assert process.stderr.read() == ("cut 1 request\n" if signals > 1 else "")
        finally:
            process.kill()


def test_idle_connections_keep_nobody_out(run: Path) -> None:
    """Two hundred of them, at 128 descriptors."""
    shell = ["bash", "-c", 'ulimit -n 128; exec "$@"', "bash", sys.executable, "-m", "equilibria", "serve", str(run)]
    with subprocess.Popen([*shell, "--port", "0"], stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout is not None
        server, idle = Server(process, process.stdout.readline().split()[-1]), []
        try:
            where = urlsplit(server.address)
            for number in range(200):
                idle.append(socket.create_connection((where.hostname, where.port), timeout=30))
                if number % 2:
                    idle[-1].sendall(b"GET /health HTT")
            for _ in range(3):
                assert server.health()["status"] == "ok"
            with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as client:
                assert len(client.completions.create(model="shared", prompt="a", max_tokens=3).choices) == 1
        finally:
            for one in idle:
                one.close()
            process.kill()
