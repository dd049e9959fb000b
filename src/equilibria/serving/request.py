"""Requests: what the protocols' JSON asks for, checked against the limits, as requests for texts.

Reading one has three steps, so that a server can do other things in between: `asked` parses and checks fields, which
costs little; `encoded` makes token ids of one prompt; `wanted` puts all together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from random import randrange
from typing import Any

from equilibria.data.tokenizers import Tokenizer
from equilibria.errors import UserError
from equilibria.inference.effort import Effort
from equilibria.inference.writing import TextRequest
from equilibria.models.sampling import Sampling
from equilibria.ranges import above
from equilibria.serving.chat import Chat, lines
from equilibria.serving.errors import ApiError, invalid
from equilibria.serving.fields import MOST_TEXTS, ChatFields, CompletionFields, Fields, read_fields

_DEFAULT_TOKENS = 16  # of the protocol of completions
_CHARACTERS = 32  # of a prompt for each token that it may have: more are refused before they are encoded


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """Bounds on requests; what is beyond them is refused with a reason.

    Args:
        max_batch: texts that are decoded together.
        max_queue: texts that wait for a place.
        max_tokens: new tokens of a text.
        max_prompt_tokens: tokens of a prompt.
        prompt_part: tokens of a prompt that are read in one turn; between two of them others write on.
        max_body_bytes: bytes of a request.
        min_tolerance: least tolerance that a request may ask for; None for any.
        max_evaluations: most evaluations per token that a request may ask for; None for any.
        max_connections: open connections; None for what the system allows.
        request_timeout: seconds from a request's arrival to its end.
        stall_timeout: seconds without a turn of the model after which the server counts as stalled.
        shutdown_timeout: seconds that running requests are given when the server is told to stop.

    Raises:
        ValueError: a number is not positive and finite.
    """

    max_batch: int = 32
    max_queue: int = 256
    max_tokens: int = 1024
    max_prompt_tokens: int = 2048
    prompt_part: int = 64
    max_body_bytes: int = 1_000_000
    min_tolerance: float | None = None
    max_evaluations: int | None = None
    max_connections: int | None = None
    request_timeout: float = 60.0
    stall_timeout: float = 30.0
    shutdown_timeout: float = 10.0

    def __post_init__(self) -> None:
        above(0, **vars(self))


@dataclass(frozen=True)
class Served:
    """What requests are checked against.

    Attributes:
        name: of the model.
        window: tokens that a prediction sees at most.
        solves: whether the model has a solver whose effort can be limited.
        scores: whether it has probabilities of a prompt's tokens; one that writes a target for a source has none.
        chat: makes a prompt of messages.
    """

    name: str
    tokenizer: Tokenizer
    window: int
    solves: bool
    scores: bool
    limits: ServerLimits
    chat: Chat = lines


@dataclass(frozen=True, kw_only=True)
class TextsRequest:
    """A valid request.

    Attributes:
        prompts: token ids of each, as they were given.
        texts: what to write after each prompt.
        copies: texts of each prompt.
        write: whether new tokens are wanted; else the prompts are only scored.
        top: how many likely tokens come with each drawn one; None for no probabilities.
        effort: of all of them.
    """

    asked: Fields
    prompts: tuple[tuple[int, ...], ...]
    texts: tuple[TextRequest, ...]
    copies: int
    write: bool
    top: int | None
    effort: Effort

    @property
    def user(self) -> str | None:
        """For whom the client asks."""
        return self.asked.user

    @property
    def echo(self) -> bool:
        """Whether texts begin with their prompts."""
        return isinstance(self.asked, CompletionFields) and self.asked.echo

    @property
    def scores(self) -> bool:
        """Whether probabilities of the prompts' tokens are wanted."""
        return self.echo and self.top is not None

    @property
    def usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return self.asked.stream_options is not None and self.asked.stream_options.include_usage


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The fields of a request, in order as far as they can be checked without its tokens.

    Attributes:
        prompts: texts, or token ids.
        tokens: new ones of each text.
        top: how many likely tokens come with each drawn one; None for no probabilities.
    """

    fields: Fields
    prompts: Sequence[str | list[int]]
    tokens: int
    top: int | None
    effort: Effort


def read_request(content: dict[str, Any], served: Served, kind: type[Fields] = CompletionFields) -> TextsRequest:
    """A request from its JSON; raises an ApiError with a 4xx status that says what is wrong with which field."""
    found = asked(content, served, kind)
    return wanted(found, [encoded(prompt, served) for prompt in found.prompts], served)


def asked(content: dict[str, Any], served: Served, kind: type[Fields]) -> Asked:
    """The fields of a request; an ApiError as `read_request`."""
    found = read_fields(content, kind)
    if found.model is None:
        raise ApiError(400, f"model is missing; this server has {served.name!r}", "model", "missing_field")
    served_as(found.model, served)
    limits = served.limits
    if isinstance(found, ChatFields):
        prompts, tokens, top = _of_chat(found, served)
    else:
        assert isinstance(found, CompletionFields)
        prompts, tokens, top = _of_completion(found, served)
    for name, value, most in (("max_tokens", tokens, limits.max_tokens), ("n", found.n, limits.max_queue)):
        if value > most:
            raise invalid(name, f"{name} must be at most {most}, found {value}")
    most = min(MOST_TEXTS, limits.max_queue)
    if len(prompts) * found.n > most:
        raise invalid(
            "n", f"a request may ask for {most} texts at most, found {len(prompts)} prompts times n {found.n}"
        )
    if found.stream_options is not None and not found.stream:
        raise invalid("stream_options", "stream_options is for requests with stream true")
    return Asked(fields=found, prompts=prompts, tokens=tokens, top=top, effort=_effort(found, served))


def encoded(prompt: str | list[int], served: Served) -> tuple[int, ...]:
    """The token ids of a prompt; an empty text is the start of a passage and has none; raises as `read_request`."""
    most, tokenizer = served.limits.max_prompt_tokens, served.tokenizer
    if isinstance(prompt, str) and len(prompt) > _CHARACTERS * most:
        raise _too_long(most, f"{len(prompt)} characters, more than {_CHARACTERS} for each of these")
    try:
        ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    except UserError as problem:
        raise invalid("prompt", f"prompt cannot be encoded: {problem!s:.300}") from problem
    if len(ids) > most:
        raise _too_long(most, f"{len(ids)} tokens")
    if not all(0 <= one < tokenizer.vocabulary_size for one in ids):
        raise invalid("prompt", f"token ids must be integers from 0 to {tokenizer.vocabulary_size - 1}")
    return tuple(ids)


def wanted(found: Asked, prompts: Sequence[tuple[int, ...]], served: Served) -> TextsRequest:
    """The request, from its fields and the ids of its prompts; an ApiError as `read_request`."""
    given = found.fields
    seed = randrange(2**48) if given.seed is None else given.seed % 2**48
    texts = (
        TextRequest(
            prompt=prompt or (served.tokenizer.eos,),
            max_new_tokens=max(1, found.tokens),
            sampling=Sampling(**{option.name: getattr(given, option.name) for option in fields(Sampling)}),
            seed=seed + number * given.n,
            copies=given.n,
            stop=given.stop,
            stop_at_end=given.stop_at_end,
            top=found.top,
        )
        for number, prompt in enumerate(prompts)
    )
    request = TextsRequest(
        asked=given,
        prompts=tuple(prompts),
        texts=tuple(texts),
        copies=given.n,
        write=found.tokens > 0,
        top=found.top,
        effort=found.effort,
    )
    if request.scores and any(len(prompt) > served.window for prompt in prompts):
        raise invalid("logprobs", f"logprobs of an echoed prompt are for {served.window} tokens at most")
    return request


def served_as(name: str, served: Served) -> None:
    """Raises an ApiError where the server's model has another name."""
    if name != served.name:
        message = f"there is no model {name!r:.80}; this server has {served.name!r}"
        raise ApiError(404, message, "model", "model_not_found")


def _of_completion(found: CompletionFields, served: Served) -> tuple[Sequence[str | list[int]], int, int | None]:
    """Prompts, new tokens and likely tokens of a completion."""
    if found.prompt is None:
        raise ApiError(400, "prompt is missing; give a text, token ids, or a list of either", "prompt", "missing_field")
    tokens = min(_DEFAULT_TOKENS, served.limits.max_tokens) if found.max_tokens is None else found.max_tokens
    if found.best_of not in (None, found.n):
        raise ApiError(400, "best_of is not supported by this server; omit it", "best_of", "unsupported_field")
    if tokens == 0 and not found.echo:
        raise invalid("max_tokens", "max_tokens must be at least 1 unless echo is true")
    if found.echo and found.logprobs is not None and not served.scores:
        raise invalid("logprobs", "this model does not continue its prompt and has no probabilities of it; omit echo")
    return found.prompt, tokens, found.logprobs


def _of_chat(found: ChatFields, served: Served) -> tuple[Sequence[str | list[int]], int, int | None]:
    """The prompt, new tokens and likely tokens of a chat completion, which by default has as many as it may."""
    if found.messages is None:
        raise ApiError(400, "messages is missing; give at least one", "messages", "missing_field")
    given = [tokens for tokens in (found.max_completion_tokens, found.max_tokens) if tokens is not None]
    if len(set(given)) > 1:
        raise invalid("max_tokens", "max_tokens and max_completion_tokens differ; give one of them")
    tokens = given[0] if given else served.limits.max_tokens
    if tokens == 0:
        raise invalid("max_tokens", "max_tokens must be at least 1, found 0")
    if found.top_logprobs is not None and not found.logprobs:
        raise invalid("top_logprobs", "top_logprobs is for requests with logprobs true")
    top = (found.top_logprobs or 0) if found.logprobs else None
    return [served.chat(found.messages)], tokens, top


def _too_long(most: int, found: str) -> ApiError:
    """Clients know it by its first words or by its code."""
    message = f"this model's maximum context length is {most} tokens for a prompt on this server; found {found}"
    return ApiError(400, message, "prompt", "context_length_exceeded")


def _effort(found: Fields, served: Served) -> Effort:
    """The effort that is taken: of few kinds, so that requests of about the same are solved together."""
    tolerance, evaluations, limits = found.tolerance, found.max_evaluations, served.limits
    if tolerance is evaluations is None:
        return Effort()
    if not served.solves:
        raise invalid("tolerance", "tolerance and max_evaluations: this model has no solver that can be limited")
    least, most = limits.min_tolerance or 0.0, limits.max_evaluations
    if tolerance is not None:
        if tolerance < least:
            raise invalid("tolerance", f"tolerance must be at least {least:g} on this server, found {tolerance:g}")
        tolerance = max(least, _rung_of_tolerance(tolerance))
    if evaluations is not None:
        if most is not None and evaluations > most:
            raise invalid(
                "max_evaluations", f"max_evaluations must be at most {most} on this server, found {evaluations}"
            )
        evaluations = evaluations if evaluations == most else _rung_of_evaluations(evaluations)
    return Effort(tolerance=tolerance, max_evaluations=evaluations)


def _rung_of_tolerance(tolerance: float) -> float:
    """The next one below of 1, 0.3, 0.1, 0.03, …"""
    digits, power = f"{tolerance:.16e}".split("e")
    return max(float(f"{3 if float(digits) >= 3 else 1}e{power}"), 5e-324)


def _rung_of_evaluations(evaluations: int) -> int:
    """The next one below of 1, 2, 3, 4, 6, 8, 12, 16, …"""
    power = 1 << (evaluations.bit_length() - 1)
    return power * 3 // 2 if power > 1 and evaluations >= power * 3 // 2 else power
