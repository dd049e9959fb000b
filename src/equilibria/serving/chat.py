"""Prompts from messages: by the template that a run's folder brings, or one message after another."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from equilibria.data.tokenizers import Tokenizer
from equilibria.errors import UserError
from equilibria.serving.errors import invalid
from equilibria.serving.fields import Message

TEMPLATE = "chat_template.jinja"
"""The name of a template in a run's folder, as Hugging Face's libraries name it."""

Chat = Callable[[Sequence[Message]], str]


def lines(messages: Sequence[Message]) -> str:
    """What was said, each message on lines of its own; the model continues the last."""
    return "\n".join(message.content for message in messages)


def chat_of(folder: Path, tokenizer: Tokenizer) -> Chat:
    """What makes prompts of messages for the run in a folder: its `chat_template.jinja`, otherwise `lines`.

    The template is understood as by Hugging Face's libraries: it sees `messages`, `tools` and `documents` (none),
    `add_generation_prompt`, `bos_token`, `eos_token`, `raise_exception` and `strftime_now`; `tojson` escapes nothing,
    and loops may have `break` and `continue`. It is rendered in a sandbox, whose objects it cannot change.

    Raises:
        UserError: the template cannot be read, or is none.
    """
    path = folder / TEMPLATE
    if not path.is_file():
        return lines
    try:
        from jinja2 import nodes
        from jinja2.exceptions import TemplateError
        from jinja2.ext import Extension, LoopControlExtension
        from jinja2.parser import Parser
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError as missing:
        raise UserError(f"{path} needs jinja2; pip install 'equilibria[serve]'") from missing

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    class Generation(Extension):
        """`{% generation %}` marks what the assistant has said, for training: here it is text like other."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, LoopControlExtension]
    )
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    try:
        template = environment.from_string(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, TemplateError) as problem:
        raise UserError(f"{path} is not a template: {problem}") from problem
    end = tokenizer.decode([tokenizer.eos])
    names = {
        "tools": None,
        "documents": None,
        "add_generation_prompt": True,
        "bos_token": end,
        "eos_token": end,
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
    }

    def rendered(messages: Sequence[Message]) -> str:
        said: list[dict[str, Any]] = [
            {name: value for name, value in vars(message).items() if value is not None} for message in messages
        ]
        try:
            return template.render(messages=said, **names)
        except Exception as problem:  # whatever a template does wrong, or says that the messages do
            raise invalid("messages", f"the model's template refuses these messages: {problem!s:.300}") from problem

    return rendered
