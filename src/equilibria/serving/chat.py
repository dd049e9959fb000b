"""Prompts from messages: by the template that a run's folder brings, or one message after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    The template sees `messages`, `add_generation_prompt`, `bos_token`, `eos_token` and `raise_exception`, as those of
    Hugging Face's libraries do. It is rendered in a sandbox, whose objects it cannot change.

    Raises:
        UserError: the template cannot be read, or is none.
    """
    path = folder / TEMPLATE
    if not path.is_file():
        return lines
    try:
        from jinja2.exceptions import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError as missing:
        raise UserError(f"{path} needs jinja2; pip install 'equilibria[serve]'") from missing

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    try:
        template = environment.from_string(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, TemplateError) as problem:
        raise UserError(f"{path} is not a template: {problem}") from problem
    end = tokenizer.decode([tokenizer.eos])
    names = {"add_generation_prompt": True, "bos_token": end, "eos_token": end, "raise_exception": raise_exception}

    def rendered(messages: Sequence[Message]) -> str:
        said: list[dict[str, Any]] = [
            {name: value for name, value in vars(message).items() if value is not None} for message in messages
        ]
        try:
            return template.render(messages=said, **names)
        except Exception as problem:  # whatever a template does wrong, or says that the messages do
            raise invalid("messages", f"the model's template refuses these messages: {problem!s:.300}") from problem

    return rendered
