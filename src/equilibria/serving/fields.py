"""The fields of requests, read from JSON by cattrs: what each may be stands beside it."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, TypeVar, get_args, get_origin

from cattrs import ClassValidationError, Converter, ForbiddenExtraKeysError

from equilibria.errors import nearest
from equilibria.serving.errors import ApiError, invalid

MOST_TEXTS = 128
MOST_MESSAGES = 1024
ROLES = ("system", "developer", "user", "assistant")
_SHOWN = 40  # characters of a wrong value that a message repeats
_KINDS = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}


class _UnsupportedError(ValueError):
    """A field of the protocol that this server does not support."""


def _found(value: object) -> str:
    """What was found: the value itself where it is short, else its kind."""
    shown = "" if isinstance(value, list | dict) else json.dumps(value)  # which escapes what an answer cannot hold
    return f"found {shown if 0 < len(shown) <= _SHOWN else _KINDS.get(type(value), 'null')}"


def _number(kind: type[int | float], least: float, most: float, open_below: bool = False) -> Callable[[Any], float]:
    """Reads a number from `least` to `most`; `least` excluded if `open_below`."""

    def read(value: Any) -> float:
        if type(value) not in (int, kind):
            raise ValueError(f"must be {'an integer' if kind is int else 'a number'}, {_found(value)}")
        if not least <= value <= most or (open_below and value == least):
            bounds = f"above {least} and at most {most}" if open_below else f"from {least} to {most}"
            if kind is int and value < least:  # how many are too many, the server's limits say
                bounds = f"at least {least}"
            shown = value if isinstance(value, float) or abs(value) < 10**18 else "a number of more than 18 digits"
            raise ValueError(f"must be {bounds}, found {shown}")
        return kind(value)

    return read


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, {_found(value)}")
    return value


def _text(value: Any) -> str:
    """Reads a string without halves of surrogate pairs."""
    if not isinstance(value, str):
        raise ValueError(f"must be a string, {_found(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as problem:
        raise ValueError(f"holds half of a surrogate pair at character {problem.start}") from problem
    return value


def _stops(value: Any) -> tuple[str, ...]:
    """Reads a string, or a list of some."""
    values = value if isinstance(value, list) else [value]
    if len(values) > 16:
        raise ValueError(f"takes at most 16 strings, found {len(values)}")
    found = tuple(map(_text, values))
    if any(not 0 < len(one) <= 256 for one in found):
        raise ValueError("must have 1 to 256 characters each")
    return found


def _prompts(value: Any) -> list[str | list[int]]:
    """Reads a text, token ids, or a list of either."""
    given = [value] if isinstance(value, str) or _are_ids(value) else value
    expected = "must be a string, a list of strings, a list of token ids, or a list of those"
    if not isinstance(given, list):
        raise ValueError(f"{expected}, {_found(value)}")
    if not given or [] in given:
        raise ValueError(f"{expected}, found an empty list; the start of a passage is the empty string")
    if not (all(isinstance(one, str) for one in given) or all(map(_are_ids, given))):
        kind, *others = dict.fromkeys(_found(one) for one in given)
        raise ValueError(f"{expected}, {kind}{' and ' + others[0].removeprefix('found ') if others else ''} in a list")
    if len(given) > MOST_TEXTS:
        raise ValueError(f"holds at most {MOST_TEXTS} prompts, found {len(given)}")
    return [_text(one) if isinstance(one, str) else one for one in given]


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int for one in value)


def _only(*harmless: Any) -> Callable[[Any], None]:
    """Reads a field that is not supported, unless it says what is done anyway."""

    def read(value: Any) -> None:
        if not any(type(value) is type(one) and value == one for one in harmless):
            raise _UnsupportedError("is not supported by this server; omit it")

    return read


def _object(cls: type) -> Callable[[Any], Any]:
    """Reads an object; null counts as absent in it."""

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"must be an object, {_found(value)}")
        return _converter.structure({name: one for name, one in value.items() if one is not None}, cls)

    return read


def _content(value: Any) -> str:
    """Reads the content of a message: a string, or parts that are texts."""
    if not isinstance(value, list):
        return _text(value)
    parts = [part for part in value if isinstance(part, dict) and part.get("type") == "text"]
    if len(parts) < len(value):
        raise ValueError('must be a string, or a list of {"type": "text", "text": …}: this model reads text alone')
    return "".join(_text(part.get("text")) for part in parts)


def _messages(value: Any) -> "tuple[Message, ...]":
    """Reads what has been said, at least one message."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"must be a list of messages, at least one, {_found(value) if value != [] else 'found none'}")
    if len(value) > MOST_MESSAGES:
        raise ValueError(f"holds at most {MOST_MESSAGES} messages, found {len(value)}")
    read = _object(Message)
    return tuple(read(one) for one in value)


def _role(value: Any) -> str:
    if value not in ROLES:
        raise ValueError(f"must be one of {', '.join(ROLES)}, {_found(value)}")
    return value


_integer, _real = partial(_number, int), partial(_number, float)


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """What a stream holds besides the text."""

    include_usage: Annotated[bool, _flag] = False
    include_obfuscation: Annotated[None, _only(False)] = None


@dataclass(frozen=True, kw_only=True)
class Message:
    """What one side has said."""

    role: Annotated[str, _role]
    content: Annotated[str, _content]
    name: Annotated[str | None, _text] = None


@dataclass(frozen=True, kw_only=True)
class Fields:
    """What a client may ask for either way; each field's annotation holds what reads it."""

    what = "a request"

    model: Annotated[str | None, _text] = None
    max_tokens: Annotated[int | None, _integer(0, 2**31)] = None
    n: Annotated[int, _integer(1, 2**31)] = 1
    seed: Annotated[int | None, _integer(-(2**63), 2**63 - 1)] = None
    stop: Annotated[tuple[str, ...], _stops] = ()
    stop_at_end: Annotated[bool, _flag] = False
    stream: Annotated[bool, _flag] = False
    stream_options: Annotated[StreamOptions | None, _object(StreamOptions)] = None
    temperature: Annotated[float, _real(0, 100)] = 1.0
    top_k: Annotated[int | None, _integer(1, 2**31)] = None
    top_p: Annotated[float | None, _real(0, 1)] = None
    min_p: Annotated[float | None, _real(0, 1)] = None
    repetition_penalty: Annotated[float, _real(0, 100, open_below=True)] = 1.0
    presence_penalty: Annotated[float, _real(-2, 2)] = 0.0
    frequency_penalty: Annotated[float, _real(-2, 2)] = 0.0
    tolerance: Annotated[float | None, _real(0, 1, open_below=True)] = None
    max_evaluations: Annotated[int | None, _integer(1, 1000)] = None
    user: Annotated[str | None, _text] = None
    logit_bias: Annotated[None, _only({})] = None


@dataclass(frozen=True, kw_only=True)
class CompletionFields(Fields):
    """Those of a completion."""

    what = "a completion request"

    prompt: Annotated[list[str | list[int]] | None, _prompts] = None
    logprobs: Annotated[int | None, _integer(0, 5)] = None
    echo: Annotated[bool, _flag] = False
    best_of: Annotated[int | None, _integer(1, 2**31)] = None
    suffix: Annotated[None, _only("")] = None


@dataclass(frozen=True, kw_only=True)
class ChatFields(Fields):
    """Those of a chat completion."""

    what = "a chat completion request"

    messages: Annotated[tuple[Message, ...] | None, _messages] = None
    max_completion_tokens: Annotated[int | None, _integer(1, 2**31)] = None
    logprobs: Annotated[bool, _flag] = False
    top_logprobs: Annotated[int | None, _integer(0, 20)] = None
    response_format: Annotated[None, _only({"type": "text"})] = None
    modalities: Annotated[None, _only(["text"])] = None
    tools: Annotated[None, _only([])] = None
    functions: Annotated[None, _only([])] = None
    tool_choice: Annotated[None, _only("none")] = None
    function_call: Annotated[None, _only("none")] = None
    parallel_tool_calls: Annotated[bool, _flag] = False
    store: Annotated[None, _only(False)] = None
    service_tier: Annotated[None, _only("auto", "default")] = None
    metadata: Annotated[None, _only({})] = None


Kind = TypeVar("Kind", bound=Fields)


def read_fields(content: dict[str, Any], kind: type[Kind]) -> Kind:
    """The fields of a JSON object; raises an ApiError that names every wrong field, what was found and expected."""
    try:
        return _object(kind)(content)
    except ClassValidationError as error:
        problems = list(_problems(error, kind.what))
        first, message = problems[0], "; ".join(problem.message for problem in problems)
        raise ApiError(first.status, message, first.param, first.code) from error


def _problems(error: BaseException, what: str, name: str = "") -> Iterator[ApiError]:
    match error:
        case ClassValidationError():
            named, others = error.group_exceptions()
            for problem, note in named:
                yield from _problems(problem, what, f"{name}.{note.name}" if name else note.name)
            for problem in others:
                yield from _problems(problem, what, name)
        case ForbiddenExtraKeysError():
            for extra in sorted(error.extra_fields):
                shown = extra[:80].encode("utf-8", "replace").decode()  # an answer cannot hold half a surrogate pair
                of = name or what
                near = nearest(extra, [one.name for one in dataclasses.fields(error.cl)])
                meant = "" if near is None else f"; did you mean {near!r}?"
                yield ApiError(400, f"{extra!r:.80} is not a field of {of}{meant}", name or shown, "unknown_field")
        case KeyError():
            yield ApiError(400, f"{name} is missing", name, "missing_field")
        case _UnsupportedError():
            yield ApiError(400, f"{name} {error}", name, "unsupported_field")
        case _:
            yield invalid(name, f"{name} {error}")


def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object of a body; raises an ApiError if it is not one."""
    try:
        content = json.loads(body.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_unique)
    except RecursionError as problem:
        raise invalid(None, "the body is nested too deeply") from problem
    except ValueError as problem:
        raise invalid(None, f"the body is not JSON in UTF-8: {problem}") from problem
    if not isinstance(content, dict):
        raise invalid(None, f"the body must be a JSON object, {_found(content)}")
    return content


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not valid JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {json.dumps(twice[:_SHOWN])} stands twice in one object")
    return content


_converter = Converter(forbid_extra_keys=True)
_converter.register_structure_hook_func(
    lambda annotation: get_origin(annotation) is Annotated,
    lambda value, annotation: get_args(annotation)[1](value),
)
