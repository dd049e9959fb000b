"""A completion request: what the protocol's JSON asks for, checked against the limits, as orders for a writer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import randrange
from typing import Any

from equilibria.data.tokenizers import Tokenizer
from equilibria.errors import UserError
from equilibria.inference.effort import Effort
from equilibria.inference.writing import Order
from equilibria.models.sampling import Sampling
from equilibria.serving.errors import ApiError, invalid
from equilibria.serving.fields import Fields, checked_text
from equilibria.serving.limits import Limits

_MOST_TEXTS = 128
_MOST_STOPS = 16
_DEFAULT_TOKENS = 16  # of the protocol


@dataclass(frozen=True)
class Served:
    """What requests are checked against.

    Attributes:
        name: of the model.
        tokenizer: of the model.
        window: tokens that a prediction sees at most.
        solves: whether the model has a solver, whose effort can be limited.
        scores: whether it has probabilities of a prompt's tokens; one that writes a target for a source has none.
        limits: of the server.
    """

    name: str
    tokenizer: Tokenizer
    window: int
    solves: bool
    scores: bool
    limits: Limits


@dataclass(frozen=True, kw_only=True)
class CompletionRequest:
    """A request that is in order.

    Attributes:
        prompts: token ids of each, as they were given.
        orders: one for each prompt.
        write: whether new tokens are wanted; else the prompts are only looked at.
        effort: of all of them.
        echo: whether prompts are part of the answer.
        top: how many likely tokens are wanted beside each; None for no probabilities.
        stream: whether the answer comes in pieces.
        usage: whether a stream ends with the number of tokens.
    """

    prompts: tuple[tuple[int, ...], ...]
    orders: tuple[Order, ...]
    write: bool
    effort: Effort
    echo: bool
    top: int | None
    stream: bool
    usage: bool

    @property
    def copies(self) -> int:
        """Texts for each prompt."""
        return self.orders[0].copies

    @property
    def scores(self) -> bool:
        """Whether probabilities of the prompts' tokens are wanted."""
        return self.echo and self.top is not None


def read_request(content: dict[str, Any], served: Served) -> CompletionRequest:
    """Checks every field of a request.

    Raises:
        ApiError: with a 4xx status; it says what is wrong with which field.
    """
    fields, limits = Fields(content), served.limits
    _check_model(fields, served)
    prompts = _prompts(fields.take("prompt"), served)
    top = fields.integer("logprobs", 0, 5)
    echo = fields.boolean("echo", False)
    tokens = fields.integer("max_tokens", 0, limits.max_tokens)
    tokens = min(_DEFAULT_TOKENS, limits.max_tokens) if tokens is None else tokens
    copies = fields.integer("n", 1, limits.max_batch) or 1
    if len(prompts) * copies > min(_MOST_TEXTS, limits.max_queue):
        most = min(_MOST_TEXTS, limits.max_queue)
        raise invalid("n", f"a request may ask for {most} texts at most, found {len(prompts)} prompts times n {copies}")
    if tokens == 0 and not echo:
        raise invalid("max_tokens", "max_tokens must be at least 1 unless echo is true")
    if echo and top is not None and not served.scores:
        raise invalid(
            "logprobs", "this model has no probabilities of a prompt, which it does not continue; leave out echo"
        )
    if echo and top is not None and any(len(prompt) > served.window for prompt in prompts):
        raise invalid("logprobs", f"logprobs of an echoed prompt are for {served.window} tokens at most")
    seed = fields.integer("seed", -(2**63), 2**63 - 1)
    seed = randrange(2**48) if seed is None else seed % 2**48
    sampling, effort = _sampling(fields), _effort(fields, served)
    stop, stop_at_end = fields.texts("stop", _MOST_STOPS, 256), fields.boolean("stop_at_end", False)
    stream, usage = _streaming(fields)
    fields.string("user")
    for name, *harmless in (("best_of", copies), ("suffix", ""), ("logit_bias", {})):
        fields.refuse(name, *harmless)
    fields.finish()
    orders = (
        Order(
            prompt=prompt or (served.tokenizer.eos,),
            max_new_tokens=max(1, tokens),
            sampling=sampling,
            seed=seed + number * copies,
            copies=copies,
            stop=stop,
            stop_at_end=stop_at_end,
            top=top,
        )
        for number, prompt in enumerate(prompts)
    )
    return CompletionRequest(
        prompts=tuple(prompts),
        orders=tuple(orders),
        write=tokens > 0,
        effort=effort,
        echo=echo,
        top=top,
        stream=stream,
        usage=usage,
    )


def _check_model(fields: Fields, served: Served) -> None:
    name = fields.string("model")
    if name is None:
        raise ApiError(400, f"model is missing; this server has {served.name!r}", "model", "missing_field")
    if name != served.name:
        raise ApiError(
            404, f"there is no model {name!r:.80}; this server has {served.name!r}", "model", "model_not_found"
        )


def _sampling(fields: Fields) -> Sampling:
    temperature = fields.number("temperature", 0, 100)
    return Sampling(
        temperature=1.0 if temperature is None else temperature,
        top_k=fields.integer("top_k", 1, 2**31),
        top_p=fields.number("top_p", 0, 1, open_below=True),
        min_p=fields.number("min_p", 0, 1),
        repetition_penalty=fields.number("repetition_penalty", 0, 100, open_below=True) or 1.0,
        presence_penalty=fields.number("presence_penalty", -2, 2) or 0.0,
        frequency_penalty=fields.number("frequency_penalty", -2, 2) or 0.0,
    )


def _effort(fields: Fields, served: Served) -> Effort:
    effort = Effort(
        tolerance=fields.number("tolerance", 0, 1, open_below=True),
        max_evaluations=fields.integer("max_evaluations", 1, 1000),
    )
    if effort != Effort() and not served.solves:
        raise invalid("tolerance", "tolerance and max_evaluations limit a solver; this model has a fixed depth")
    return effort


def _streaming(fields: Fields) -> tuple[bool, bool]:
    stream, options = fields.boolean("stream", False), fields.take("stream_options")
    if options is None:
        return stream, False
    if not isinstance(options, dict) or not stream:
        raise invalid("stream_options", "stream_options is an object, for requests with stream true")
    inside = Fields(options)
    usage = inside.boolean("include_usage", False)
    inside.refuse("include_obfuscation", False)
    inside.finish()
    return stream, usage


def _prompts(value: Any, served: Served) -> list[tuple[int, ...]]:
    """The token ids of every prompt; an empty text is the start of a passage and has none."""
    if value is None:
        raise ApiError(400, "prompt is missing; give a text, token ids, or a list of either", "prompt", "missing_field")
    if isinstance(value, str):
        return [_encoded(value, served)]
    if not isinstance(value, list) or not value:
        raise invalid("prompt", "prompt must be a string, a list of strings, a list of token ids, or a list of those")
    if all(isinstance(one, int) and not isinstance(one, bool) for one in value):
        return [_ids(value, served)]
    if len(value) > _MOST_TEXTS:
        raise invalid("prompt", f"prompt holds at most {_MOST_TEXTS} prompts, found {len(value)}")
    if all(isinstance(one, str) for one in value):
        return [_encoded(one, served) for one in value]
    if all(isinstance(one, list) for one in value):
        return [_ids(one, served) for one in value]
    raise invalid("prompt", "prompt must be a string, a list of strings, a list of token ids, or a list of those")


def _encoded(text: str, served: Served) -> tuple[int, ...]:
    try:
        return _bounded(served.tokenizer.encode(checked_text("prompt", text)), served)
    except UserError as problem:  # what is no text of this tokenizer
        raise invalid("prompt", f"prompt cannot be encoded: {problem!s:.300}") from problem


def _ids(ids: Sequence[object], served: Served) -> tuple[int, ...]:
    if not ids:
        raise invalid("prompt", "a list of token ids must not be empty")
    found = [one for one in ids if isinstance(one, int) and not isinstance(one, bool)]
    size = served.tokenizer.vocabulary_size
    if len(found) < len(ids) or not all(0 <= one < size for one in found):
        raise invalid("prompt", f"token ids must be integers from 0 to {size - 1}")
    return _bounded(found, served)


def _bounded(ids: Sequence[int], served: Served) -> tuple[int, ...]:
    most = served.limits.max_prompt_tokens
    if len(ids) > most:
        raise ApiError(400, f"a prompt may have {most} tokens, found {len(ids)}", "prompt", "context_length_exceeded")
    return tuple(ids)
