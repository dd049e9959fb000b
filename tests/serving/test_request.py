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
from equilibria.serving.fields import parse_json
from equilibria.serving.request import CompletionRequest, Served, ServerLimits, read_request

LIMITS = ServerLimits(max_tokens=50, max_batch=4, max_prompt_tokens=20)
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
]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=2)
)


def refusal(read: Callable[[], object]) -> ApiError | None:
    """The error that reading ends with, if it does; no other may come."""
    try:
        read()
    except ApiError as problem:
        return problem
    return None


def check(request: CompletionRequest) -> None:
    assert all(0 < text.max_new_tokens <= 50 and text.copies <= 4 for text in request.texts)


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=4), VALUES, max_size=5), st.booleans())
def test_any_object_is_in_order_or_refused(content: dict[str, Any], begun: bool) -> None:
    if begun:
        content = {"model": "m", "prompt": "text"} | content
    body = json.dumps(content).encode()
    problem = refusal(lambda: check(read_request(parse_json(body), SERVED)))
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
    assert (request.asked.stream, request.usage, request.asked.echo, request.scores) == (True, True, True, True)
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
        ({"top_p": 0}, 400, "top_p"),
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
    assert caught.value.param == "prompt"
    for part in (
        "prompt must be a string, a list of",
        "top_p must be above 0 and at most 1, found 2",
        "stream_options.include_usage must be true or false, found a string",
        "'colour' is not a field",
    ):
        assert part in caught.value.message


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
    assert read_request(asked, served).asked.logprobs == 1
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
