"""A completion request: what the protocol's JSON asks for, checked against the limits, as requests for texts."""

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
from equilibria.serving.errors import ApiError, invalid
from equilibria.serving.fields import MOST_TEXTS, Fields, read_fields

_DEFAULT_TOKENS = 16  # of the protocol


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """Bounds on requests; what is beyond them is refused with a reason.

    Args:
        max_batch: texts that are decoded together.
        max_queue: texts that wait for a place.
        max_tokens: new tokens of a text.
        max_prompt_tokens: tokens of a prompt.
        max_body_bytes: bytes of a request.
        request_timeout: seconds from a request's arrival to its end.
        shutdown_timeout: seconds that running requests are given when the server is told to stop.

    Raises:
        ValueError: a number is not positive and finite.
    """

    max_batch: int = 32
    max_queue: int = 256
    max_tokens: int = 1024
    max_prompt_tokens: int = 2048
    max_body_bytes: int = 1_000_000
    request_timeout: float = 60.0
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
    """

    name: str
    tokenizer: Tokenizer
    window: int
    solves: bool
    scores: bool
    limits: ServerLimits


@dataclass(frozen=True, kw_only=True)
class CompletionRequest:
    """A valid request.

    Attributes:
        prompts: token ids of each, as they were given.
        texts: what to write after each prompt.
        write: whether new tokens are wanted; else the prompts are only scored.
        effort: of all of them.
    """

    asked: Fields
    prompts: tuple[tuple[int, ...], ...]
    texts: tuple[TextRequest, ...]
    write: bool
    effort: Effort

    @property
    def scores(self) -> bool:
        """Whether probabilities of the prompts' tokens are wanted."""
        return self.asked.echo and self.asked.logprobs is not None

    @property
    def usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return self.asked.stream_options is not None and self.asked.stream_options.include_usage


def read_request(content: dict[str, Any], served: Served) -> CompletionRequest:
    """A request from its JSON; raises an ApiError with a 4xx status that says what is wrong with which field."""
    asked = read_fields(content)
    if asked.model is None:
        raise ApiError(400, f"model is missing; this server has {served.name!r}", "model", "missing_field")
    served_as(asked.model, served)
    if asked.prompt is None:
        raise ApiError(400, "prompt is missing; give a text, token ids, or a list of either", "prompt", "missing_field")
    prompts = tuple(_token_ids(prompt, served) for prompt in asked.prompt)
    tokens = min(_DEFAULT_TOKENS, served.limits.max_tokens) if asked.max_tokens is None else asked.max_tokens
    _check(asked, prompts, served, tokens)
    effort = Effort(tolerance=asked.tolerance, max_evaluations=asked.max_evaluations)
    if effort != Effort() and not served.solves:
        raise invalid("tolerance", "tolerance and max_evaluations: this model has no solver that can be limited")
    seed = randrange(2**48) if asked.seed is None else asked.seed % 2**48
    texts = (
        TextRequest(
            prompt=prompt or (served.tokenizer.eos,),
            max_new_tokens=max(1, tokens),
            sampling=Sampling(**{option.name: getattr(asked, option.name) for option in fields(Sampling)}),
            seed=seed + number * asked.n,
            copies=asked.n,
            stop=asked.stop,
            stop_at_end=asked.stop_at_end,
            top=asked.logprobs,
        )
        for number, prompt in enumerate(prompts)
    )
    return CompletionRequest(asked=asked, prompts=prompts, texts=tuple(texts), write=tokens > 0, effort=effort)


def served_as(name: str, served: Served) -> None:
    """Raises an ApiError where the server's model has another name."""
    if name != served.name:
        message = f"there is no model {name!r:.80}; this server has {served.name!r}"
        raise ApiError(404, message, "model", "model_not_found")


def _check(asked: Fields, prompts: Sequence[tuple[int, ...]], served: Served, tokens: int) -> None:
    """What depends on the server, the model or other fields."""
    limits = served.limits
    for name, value, most in (("max_tokens", tokens, limits.max_tokens), ("n", asked.n, limits.max_batch)):
        if value > most:
            raise invalid(name, f"{name} must be at most {most}, found {value}")
    most = min(MOST_TEXTS, limits.max_queue)
    if len(prompts) * asked.n > most:
        found = f"{len(prompts)} prompts times n {asked.n}"
        raise invalid("n", f"a request may ask for {most} texts at most, found {found}")
    if asked.best_of not in (None, asked.n):
        raise ApiError(400, "best_of is not supported by this server; omit it", "best_of", "unsupported_field")
    if tokens == 0 and not asked.echo:
        raise invalid("max_tokens", "max_tokens must be at least 1 unless echo is true")
    if asked.echo and asked.logprobs is not None:
        if not served.scores:
            raise invalid(
                "logprobs", "this model does not continue its prompt and has no probabilities of it; omit echo"
            )
        if any(len(prompt) > served.window for prompt in prompts):
            raise invalid("logprobs", f"logprobs of an echoed prompt are for {served.window} tokens at most")
    if asked.stream_options is not None and not asked.stream:
        raise invalid("stream_options", "stream_options is for requests with stream true")


def _token_ids(prompt: str | list[int], served: Served) -> tuple[int, ...]:
    """The token ids of a prompt; an empty text is the start of a passage and has none."""
    try:
        ids = served.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    except UserError as problem:
        raise invalid("prompt", f"prompt cannot be encoded: {problem!s:.300}") from problem
    size, most = served.tokenizer.vocabulary_size, served.limits.max_prompt_tokens
    if not all(0 <= one < size for one in ids):
        raise invalid("prompt", f"token ids must be integers from 0 to {size - 1}")
    if len(ids) > most:
        raise ApiError(400, f"a prompt may have {most} tokens, found {len(ids)}", "prompt", "context_length_exceeded")
    return tuple(ids)
