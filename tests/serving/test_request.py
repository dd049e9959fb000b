"""Reading requests: whatever comes is in order, or refused with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equilibria.data.tokenizers import byte_tokenizer, digit_tokenizer
from equilibria.inference.effort import Effort
from equilibria.models.sampling import Sampling
from equilibria.serving.errors import ApiError
from equilibria.serving.fields import ChatFields, CompletionFields, Fields, parse_json
from equilibria.serving.request import Served, ServerLimits, TextsRequest, read_request

LIMITS = ServerLimits(max_tokens=50, max_queue=4, max_prompt_tokens=20, min_tolerance=0.004, max_evaluations=25)
SERVED = Served("m", byte_tokenizer(), 10, True, True, LIMITS)
FIELDS = [
    "model",
    "prompt",
    "max_tokens",
    "temperature",
    "top_p",
    "n",
    "stream",
    "stop",
    "seed",
    "echo",
    "logprobs",
    "presence_penalty",
    "frequency_penalty",
    "top_k",
    "min_p",
    "repetition_penalty",
    "tolerance",
    "max_evaluations",
    "stop_at_end",
    "stream_options",
    "user",
    "best_of",
    "suffix",
    "logit_bias",
    "messages",
    "max_completion_tokens",
    "top_logprobs",
    "response_format",
    "tools",
]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=2)
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["user", "system", "assistant", "tool"]) | SCALARS,
            "content": st.text(max_size=9) | VALUES,
            "name": SCALARS,
        },
    ),
    max_size=3,
)


def refusal(read: Callable[[], object]) -> ApiError | None:
    """The error that reading ends with, if it does; no other may come."""
    try:
        read()
    except ApiError as problem:
        return problem
    return None


def check(request: TextsRequest) -> None:
    assert all(0 < text.max_new_tokens <= 50 and text.copies <= 4 for text in request.texts)


@settings(deadline=None, max_examples=150)
@given(
    st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=4), VALUES | MESSAGES, max_size=5),
    st.booleans(),
    st.sampled_from([CompletionFields, ChatFields]),
)
def test_any_object_is_in_order_or_refused(content: dict[str, Any], begun: bool, kind: type[Fields]) -> None:
    if begun:
        text = {"prompt": "text"} if kind is CompletionFields else {"messages": [{"role": "user", "content": "text"}]}
        content = {"model": "m"} | text | content
    body = json.dumps(content).encode()
    problem = refusal(lambda: check(read_request(parse_json(body), SERVED, kind)))
    if problem is not None:
        assert 400 <= problem.status < 500
        assert problem.body["error"]["message"]
        json.dumps(problem.body)


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_are_an_object_or_refused(body: bytes) -> None:
    problem = refusal(lambda: parse_json(body))
    assert problem is None or problem.status == 400


def test_every_field_arrives() -> None:
    request = read_request(
        {
            "model": "m",
            "prompt": ["ab", ""],
            "max_tokens": 7,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 5,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "presence_penalty": -1,
            "frequency_penalty": 0.5,
            "n": 2,
            "seed": 11,
            "stop": "x",
            "stop_at_end": True,
            "logprobs": 0,
            "echo": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "tolerance": 1e-2,
            "max_evaluations": 4,
            "user": "me",
            "best_of": 2,
            "suffix": None,
        },
        SERVED,
    )
    assert (request.asked.stream, request.usage, request.echo, request.scores) == (True, True, True, True)
    assert request.user == "me"
    assert request.effort == Effort(tolerance=1e-2, max_evaluations=4)
    first, second = request.texts
    assert (first.prompt, second.prompt) == ((97, 98), (10,))  # an empty prompt is the start of a passage
    assert request.prompts == ((97, 98), ())
    assert (first.seed, second.seed) == (11, 13)
    assert first.sampling == Sampling(0.5, 5, 0.9, 0.1, 1.1, -1, 0.5)
    assert (first.max_new_tokens, first.copies, first.stop, first.stop_at_end, first.top) == (7, 2, ("x",), True, 0)


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [("ab", [(97, 98)]), (["a", "b"], [(97,), (98,)]), ([1, 2], [(1, 2)]), ([[1], [2, 3]], [(1,), (2, 3)])],
)
def test_the_four_kinds_of_prompts(prompt: object, ids: list[tuple[int, ...]]) -> None:
    assert list(read_request({"model": "m", "prompt": prompt}, SERVED).prompts) == ids


def test_a_prompt_that_the_tokenizer_has_no_ids_for_is_named() -> None:
    with pytest.raises(ApiError, match="cannot be encoded: 'a' has a word outside the vocabulary"):
        read_request({"model": "m", "prompt": "a"}, Served("m", digit_tokenizer(), 10, True, True, LIMITS))


@pytest.mark.parametrize(
    ("wrong", "status", "param"),
    [
        ({"model": "other"}, 404, "model"),
        ({"max_tokens": 51}, 400, "max_tokens"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"n": 5}, 400, "n"),
        ({"prompt": "a" * 21}, 400, "prompt"),
        ({"prompt": "a" * 11, "echo": True, "logprobs": 1}, 400, "logprobs"),
        ({"temperature": "1"}, 400, "temperature"),
        ({"top_p": -0.1}, 400, "top_p"),
        ({"tolerance": 0.003}, 400, "tolerance"),
        ({"tolerance": 1e-30, "max_evaluations": 1000}, 400, "tolerance"),
        ({"max_evaluations": 26}, 400, "max_evaluations"),
        ({"colour": 1}, 400, "colour"),
        ({"stop": [""]}, 400, "stop"),
        ({"logit_bias": {"1": 5}}, 400, "logit_bias"),
        ({"\ud800x": 1}, 400, "?x"),
        ({"stream": True, "stream_options": {"\ud800": 1}}, 400, "stream_options"),
        ({"prompt": [[]]}, 400, "prompt"),
    ],
)
def test_what_is_wrong_is_named(wrong: dict[str, Any], status: int, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_request({"model": "m", "prompt": "text", **wrong}, SERVED)
    assert (caught.value.status, caught.value.param) == (status, param)
    json.dumps(caught.value.body, ensure_ascii=False).encode()


def test_all_wrong_fields_are_named_at_once() -> None:
    with pytest.raises(ApiError) as caught:
        read_request({"prompt": 1, "top_p": 2, "stream_options": {"include_usage": "yes"}, "colour": 1}, SERVED)
    assert caught.value.param == "stream_options.include_usage"
    for part in (
        "prompt must be a string, a list of",
        "top_p must be from 0 to 1, found 2",
        'stream_options.include_usage must be true or false, found "yes"',
        "'colour' is not a field",
    ):
        assert part in caught.value.message


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temprature", 1, "'temprature' is not a field of a completion request; did you mean 'temperature'?"),
        ("prompt", 5, "a list of token ids, or a list of those, found 5"),
        ("prompt", {"a": 1}, "or a list of those, found an object"),
        ("prompt", ["a", 1], 'or a list of those, found "a" and 1 in a list'),
        ("prompt", [1.5, 2], "or a list of those, found 1.5 and 2 in a list"),
        ("prompt", [[]], "found an empty list; the start of a passage is the empty string"),
        ("n", "2" * 50, "n must be an integer, found a string"),
        ("n", "\ud800", r'n must be an integer, found "\ud800"'),
    ],
)
def test_what_was_found_is_said(field: str, value: object, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_request({"model": "m", "prompt": "a", field: value}, SERVED)
    assert message in caught.value.message
    caught.value.message.encode()


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "bot", "content": ""}], 'one of system, developer, user, assistant, found "bot"'),
        ([{"role": "user", "contnt": ""}], "'contnt' is not a field of messages; did you mean 'content'?"),
        ([], "a list of messages, at least one, found none"),
        ("hello", 'a list of messages, at least one, found "hello"'),
    ],
)
def test_what_was_found_in_messages_is_said(messages: object, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_request({"model": "m", "messages": messages}, SERVED, ChatFields)
    assert message in caught.value.message


def test_a_key_that_stands_twice_is_named() -> None:
    with pytest.raises(ApiError, match='the key "n" stands twice in one object'):
        parse_json(b'{"n": 1, "m": 2, "n": 1}')


def test_null_counts_as_absent() -> None:
    nulls = dict.fromkeys(FIELDS) | {"model": "m", "prompt": "a"}
    tight = Served("m", byte_tokenizer(), 10, True, True, ServerLimits(max_tokens=5))
    assert read_request(nulls, tight).texts[0].max_new_tokens == 5


def test_the_effort_of_a_model_without_a_solver_is_refused() -> None:
    with pytest.raises(ApiError, match="no solver that can be limited"):
        read_request(
            {"model": "m", "prompt": "a", "tolerance": 0.1}, Served("m", byte_tokenizer(), 10, False, True, LIMITS)
        )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_tokens", -1, "must be at least 0, found -1"),
        ("temperature", -200, "from 0 to 100, found -200"),
        ("temperature", 10**400, "found a number of more than 18 digits"),
        ("tolerance", -3, "above 0 and at most 1, found -3"),
        ("tolerance", float("inf"), "found inf"),
    ],
)
def test_a_number_out_of_its_range_is_shown_with_the_range(field: str, value: float, message: str) -> None:
    with pytest.raises(ApiError, match=message):
        read_request({"model": "m", "prompt": "a", field: value}, SERVED)


def test_a_model_that_does_not_continue_its_prompt_has_no_probabilities_of_it() -> None:
    asked = {"model": "m", "prompt": "a", "logprobs": 1}
    served = Served("m", byte_tokenizer(), 10, True, False, LIMITS)
    assert read_request(asked, served).top == 1
    with pytest.raises(ApiError, match="omit echo") as caught:
        read_request({**asked, "echo": True}, served)
    assert caught.value.param == "logprobs"


@pytest.mark.parametrize("seconds", [0.0, float("inf"), float("nan")])
def test_limits_are_positive_and_finite(seconds: float) -> None:
    with pytest.raises(ValueError, match="shutdown_timeout must be above 0 and finite"):
        ServerLimits(shutdown_timeout=seconds)


@pytest.mark.parametrize("depth", [2, 100, 900, 100_000])
@pytest.mark.parametrize("field", ["prompt", "stop", "logit_bias", "stream_options", "user"])
def test_a_deep_request_is_the_client_s_error(field: str, depth: int) -> None:
    value = "[" * depth + "]" * depth
    with pytest.raises(ApiError) as refused:
        read_request(parse_json(f'{{"prompt": "a", "{field}": {value}}}'.encode()), SERVED)
    assert refused.value.status == 400


@pytest.mark.parametrize("length", [21 * 32, 10**6])
def test_a_prompt_is_too_long_before_it_is_encoded(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(text: str) -> list[int]:
        raise AssertionError("it was encoded")

    monkeypatch.setattr(SERVED.tokenizer, "encode", never)
    with pytest.raises(ApiError, match="maximum context length is 20 tokens") as refused:
        read_request({"model": "m", "prompt": "a" * length}, SERVED)
    assert (refused.value.param, refused.value.code) == ("prompt", "context_length_exceeded")


def test_a_prompt_of_too_many_tokens_is_refused_in_the_words_that_clients_look_for() -> None:
    for prompt in ("a" * 21, [1] * 21, [10**30] * 10**5):
        with pytest.raises(ApiError, match="maximum context length is 20 tokens"):
            read_request({"model": "m", "prompt": prompt}, SERVED)


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        ({"tolerance": 0.5}, Effort(tolerance=0.3)),
        ({"tolerance": 0.3}, Effort(tolerance=0.3)),
        ({"tolerance": 0.0299}, Effort(tolerance=0.01)),
        ({"tolerance": 0.004}, Effort(tolerance=0.004)),
        ({"tolerance": 1}, Effort(tolerance=1.0)),
        ({"max_evaluations": 25}, Effort(max_evaluations=25)),
        ({"max_evaluations": 23}, Effort(max_evaluations=16)),
        ({"max_evaluations": 7, "tolerance": 0.12}, Effort(tolerance=0.1, max_evaluations=6)),
        ({}, Effort()),
    ],
)
def test_efforts_are_of_few_kinds_within_the_limits(asked: dict[str, float], taken: Effort) -> None:
    assert read_request({"model": "m", "prompt": "a", **asked}, SERVED).effort == taken


@settings(deadline=None)
@given(st.floats(1e-300, 1), st.integers(1, 1000))
def test_an_effort_is_at_most_a_rung_from_what_was_asked(tolerance: float, evaluations: int) -> None:
    served = Served("m", byte_tokenizer(), 10, True, True, ServerLimits())
    asked = {"model": "m", "prompt": "a", "tolerance": tolerance, "max_evaluations": evaluations}
    effort = read_request(asked, served).effort
    assert effort.tolerance is not None
    assert effort.max_evaluations is not None
    assert effort.tolerance <= tolerance <= 3.4 * effort.tolerance
    assert effort.max_evaluations <= evaluations <= 1.5 * effort.max_evaluations


def chat(**more: Any) -> TextsRequest:
    said = [{"type": "text", "text": "a"}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": said}]
    return read_request({"model": "m", "messages": messages, **more}, SERVED, ChatFields)


def test_a_chat_is_a_prompt() -> None:
    request = chat(max_completion_tokens=7, logprobs=True, top_logprobs=3, stop="x", seed=3, n=2)
    assert request.prompts == (tuple(b"Be brief.\na"),)
    assert (request.top, request.copies, request.scores, request.write) == (3, 2, False, True)
    assert (request.texts[0].max_new_tokens, request.texts[0].seed, request.texts[0].stop) == (7, 3, ("x",))
    assert (chat().texts[0].max_new_tokens, chat().top, chat(logprobs=True).top) == (50, None, 0)
    harmless = {"service_tier": "default", "metadata": {}, "tools": [], "tool_choice": "none", "store": False}
    assert chat(seed=1, **harmless).texts == chat(seed=1).texts


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.role"),
        ({"messages": [{"role": "user"}]}, "messages.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.content"),
        ({"messages": None}, "messages"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"metadata": {"run": "1"}}, "metadata"),
        ({"prompt": "a"}, "prompt"),
    ],
)
def test_what_is_wrong_with_a_chat_is_named(wrong: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        chat(**wrong)
    assert (caught.value.status, caught.value.param) == (400, param)
