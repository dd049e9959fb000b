"""Prompts from messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from equilibria.data.tokenizers import byte_tokenizer
from equilibria.errors import UserError
from equilibria.serving.chat import TEMPLATE, chat_of
from equilibria.serving.errors import ApiError
from equilibria.serving.fields import Message

MESSAGES = [Message(role="system", content="Be brief."), Message(role="user", content="Hi <b>", name="me")]
CHATML = """{% for message in messages %}
<|{{ message.role }}|>{{ message['content'] | trim }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>
{%- endif %}"""


def test_without_a_template_messages_follow_one_another(tmp_path: Path) -> None:
    assert chat_of(tmp_path, byte_tokenizer())(MESSAGES) == "Be brief.\nHi <b>"


def test_a_template_says_how_messages_are_told(tmp_path: Path) -> None:
    (tmp_path / TEMPLATE).write_text(CHATML, encoding="utf-8")
    told = chat_of(tmp_path, byte_tokenizer())(MESSAGES)
    assert told == "<|system|>Be brief.\n\n<|user|>Hi <b>\n\n<|assistant|>"  # a newline ends a passage


OTHER = """{%- if tools is not none or documents is not none %}{{ raise_exception('no tools') }}{% endif %}
{%- for message in messages %}
    {%- generation %}{{ message | tojson }}{% endgeneration %}
    {%- if loop.index == limit | default(2) %}{% break %}{% endif %}
{%- endfor %}
{{ strftime_now('%d') | length }}{{ {'a': 1} | tojson(indent=1) }}"""


@pytest.mark.parametrize("template", [CHATML, OTHER])
def test_templates_say_what_they_say_to_hugging_face(tmp_path: Path, template: str) -> None:
    utilities = pytest.importorskip("transformers.utils.chat_template_utils")
    (tmp_path / TEMPLATE).write_text(template, encoding="utf-8")
    messages = [*MESSAGES, Message(role="assistant", content="é 'a' & b"), Message(role="user", content="?")]
    said = [{name: value for name, value in vars(one).items() if value is not None} for one in messages]
    (told,), _ = utilities.render_jinja_template(
        [said], chat_template=template, add_generation_prompt=True, bos_token="\n", eos_token="\n"
    )
    assert chat_of(tmp_path, byte_tokenizer())(messages) == told


def test_a_template_that_is_none_is_the_folder_s_fault(tmp_path: Path) -> None:
    (tmp_path / TEMPLATE).write_text("{% for %}", encoding="utf-8")
    with pytest.raises(UserError, match=r"chat_template\.jinja is not a template"):
        chat_of(tmp_path, byte_tokenizer())


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[7].content }}", "has no element 7"),
        ("{{ messages.append(1) }}", "is unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_what_a_template_does_not_do_is_said(tmp_path: Path, template: str, message: str) -> None:
    (tmp_path / TEMPLATE).write_text(template, encoding="utf-8")
    with pytest.raises(ApiError, match=message) as refused:
        chat_of(tmp_path, byte_tokenizer())(MESSAGES)
    assert (refused.value.status, refused.value.param) == (400, "messages")
