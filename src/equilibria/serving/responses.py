"""Answers to requests: the protocols' objects, whole or in pieces.

Besides the protocols' fields a choice has `token_ids`, `evaluations` (cell evaluations that the prediction of each
token took; null for models of a fixed depth), `converged` (whether the solve behind it did; null likewise), `residual`
(the largest of that solve; null likewise) and `stop_reason`, the stop string that ended the text. The `logprobs` of a
completion have `converged` too, for the tokens of an echo. An answer has the `effort` that was taken, where a request
asks for one.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from equilibria.inference.effort import Effort
from equilibria.inference.text_stream import INCOMPLETE, TextStream
from equilibria.inference.writing import Likelihood
from equilibria.serving.request import Served, TextsRequest
from equilibria.serving.worker import Scored, Wrote

DONE = b"data: [DONE]\n\n"
"""The last event of a stream."""

_LEAST = -9999.0  # JSON has no infinity


class Answer:
    """Makes the objects of one request's answer from the worker's events, in their order."""

    prefix, kind, kind_in_parts = "cmpl", "text_completion", "text_completion"

    def __init__(self, request: TextsRequest, served: Served) -> None:
        self._request, self._served = request, served
        self._head: dict[str, Any] = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time())}
        self._head["model"] = served.name
        if request.effort != Effort():
            taken = {"tolerance": request.effort.tolerance, "max_evaluations": request.effort.max_evaluations}
            self._head["effort"] = taken
        texts = len(request.texts) * request.copies
        self._open = texts if request.write else 0
        self._unscored = len(request.texts) if request.scores else 0
        self._offsets: dict[int, int] = {}
        self._echoed: dict[int, dict[str, Any]] = {}
        self._completion_tokens = 0
        lasts = [prompt[-1] if prompt else None for prompt in request.prompts]
        self._latest = {index: lasts[index // request.copies] for index in range(texts)}
        if not request.scores:
            for number in range(len(request.texts)):
                self._echo(number, None)

    @property
    def finished(self) -> bool:
        """Whether the answer is complete."""
        return not self._open and not self._unscored

    def choice(self, event: Scored | Wrote) -> dict[str, Any] | None:
        """One more piece of a choice, the first with the prompt if that is echoed; None for scores of a later one."""
        if isinstance(event, Scored):
            self._unscored -= 1
            self._echo(event.prompt, event.likelihoods)
            return None
        index, piece = event.index, event.piece
        self._completion_tokens += 1
        self._open -= piece.finish is not None
        found = self._echoed.pop(index, None) or self._empty(index)
        found["text"] += piece.text
        found["token_ids"].append(piece.token)
        found["evaluations"].append(piece.evaluations)
        found["converged"].append(piece.converged)
        found["residual"].append(piece.residual)
        if self._request.top is not None:
            offset = self._offsets.get(index, 0) + piece.offset
            self._add(found["logprobs"], self._latest[index], piece.token, piece.likelihood, offset)
        self._latest[index] = piece.token
        if piece.finish is not None:
            found["finish_reason"] = "length" if piece.finish == "length" else "stop"
            found["stop_reason"] = piece.stopped
        return found

    def echoes(self) -> list[dict[str, Any]]:
        """The choices of a request for no new tokens: the prompts."""
        return [{**choice, "finish_reason": "length"} for _, choice in sorted(self._echoed.items())]

    def whole(self, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The answer to a request without a stream, from all pieces of its choices."""
        joined: dict[int, dict[str, Any]] = {}
        for piece in choices:
            if (index := piece["index"]) in joined:
                _append(joined[index], piece)
            else:
                joined[index] = piece
        shaped = [self._whole(joined[index]) for index in sorted(joined)]
        return {"object": self.kind, **self._head, "choices": shaped, "usage": self._usage()}

    def chunk(self, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A part of a stream."""
        shaped = [self._part(choice) for choice in choices]
        return self._chunk(shaped) | ({"usage": None} if self._request.usage else {})

    def last_chunk(self) -> dict[str, Any]:
        """What ends a stream whose usage is asked for."""
        return self._chunk([]) | {"usage": self._usage()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"object": self.kind_in_parts, **self._head, "choices": choices}

    def _whole(self, choice: dict[str, Any]) -> dict[str, Any]:
        """A choice as the protocol has it."""
        return choice

    def _part(self, choice: dict[str, Any]) -> dict[str, Any]:
        """A piece of a choice as the protocol has it."""
        return choice

    def _usage(self) -> dict[str, int]:
        prompt = sum(map(len, self._request.prompts))
        written = self._completion_tokens
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}

    def _empty(self, index: int) -> dict[str, Any]:
        return {
            "index": index,
            "text": "",
            "logprobs": self._no_logprobs() if self._request.top is not None else None,
            "finish_reason": None,
            "stop_reason": None,
            "token_ids": [],
            "evaluations": [],
            "converged": [],
            "residual": [],
        }

    def _no_logprobs(self) -> dict[str, list[Any]]:
        return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": [], "converged": []}

    def _echo(self, number: int, likelihoods: Sequence[Likelihood] | None) -> None:
        """Prepares the choices of a prompt to begin with it."""
        if not self._request.echo:
            return
        prompt, copies = self._request.prompts[number], self._request.copies
        stream, offsets, text = TextStream(self._served.tokenizer), [], ""
        for token in prompt:
            text += stream.write(token)
            offsets.append(stream.offset)
        if not (self._request.write and stream.begun):  # a character that the text completes is said there
            text += stream.finish()
        for index in range(number * copies, (number + 1) * copies):
            choice = self._empty(index)
            choice["text"], self._offsets[index] = text, len(text)
            if likelihoods is not None:
                known = [None, *likelihoods]
                for place, (token, offset) in enumerate(zip(prompt, offsets, strict=True)):
                    before = prompt[place - 1] if place else None
                    self._add(choice["logprobs"], before, token, known[place], offset)
            self._echoed[index] = choice

    def _add(
        self, logprobs: dict[str, list[Any]], before: int | None, token: int, likelihood: Likelihood | None, offset: int
    ) -> None:
        """A token and its likely rivals; nothing is known of the first of all."""
        logprobs["tokens"].append(self._shown(before, token))
        logprobs["text_offset"].append(offset)
        logprobs["converged"].append(None if likelihood is None else likelihood.converged)
        if likelihood is None:
            logprobs["token_logprobs"].append(None)
            logprobs["top_logprobs"].append(None)
            return
        rivals = {self._shown(before, rival): max(value, _LEAST) for rival, value in _ranked(token, likelihood)}
        logprobs["token_logprobs"].append(max(likelihood.logprob, _LEAST))
        logprobs["top_logprobs"].append(rivals)

    def _shown(self, before: int | None, token: int) -> str:
        """A token's text behind another's; its number where it is not whole characters."""
        context = [] if before is None else [before]
        decode = self._served.tokenizer.decode
        text = decode([*context, token])[len(decode(context)) :]
        return f"token_id:{token}" if INCOMPLETE in text or not text else text


def _append(choice: dict[str, Any], piece: dict[str, Any]) -> None:
    """Adds the next piece of a choice."""
    choice["text"] += piece["text"]
    for name in ("token_ids", "evaluations", "converged", "residual"):
        choice[name] += piece[name]
    if choice["logprobs"] is not None:
        for name, values in choice["logprobs"].items():
            values += piece["logprobs"][name]
    for name in ("finish_reason", "stop_reason"):
        choice[name] = piece[name]


def _ranked(token: int, likelihood: Likelihood) -> list[tuple[int, float]]:
    """The likely tokens, and the drawn one behind them if it is none of these: clients look it up among them."""
    top = list(likelihood.top)
    return top if any(rival == token for rival, _ in top) else [*top, (token, likelihood.logprob)]


class ChatAnswer(Answer):
    """An answer to a chat: the text is the assistant's next message."""

    prefix, kind, kind_in_parts = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, request: TextsRequest, served: Served) -> None:
        super().__init__(request, served)
        self._greeted: set[int] = set()

    def _whole(self, choice: dict[str, Any]) -> dict[str, Any]:
        text = choice.pop("text")
        return {"message": {"role": "assistant", "content": text, "refusal": None}, **choice}

    def _part(self, choice: dict[str, Any]) -> dict[str, Any]:
        delta: dict[str, Any] = {"content": choice.pop("text")}
        if choice["index"] not in self._greeted:
            self._greeted.add(choice["index"])
            delta = {"role": "assistant", **delta}
        return {"delta": delta, **choice}

    def _no_logprobs(self) -> dict[str, list[Any]]:
        return {"content": []}

    def _add(
        self, logprobs: dict[str, list[Any]], before: int | None, token: int, likelihood: Likelihood | None, offset: int
    ) -> None:
        assert likelihood is not None  # of every token that is drawn
        top = [self._ranked_token(before, rival, value) for rival, value in likelihood.top]
        logprobs["content"].append({**self._ranked_token(before, token, likelihood.logprob), "top_logprobs": top})

    def _ranked_token(self, before: int | None, token: int, logprob: float) -> dict[str, Any]:
        shown = self._shown(before, token)
        whole = not shown.startswith("token_id:")
        return {"token": shown, "logprob": max(logprob, _LEAST), "bytes": list(shown.encode()) if whole else None}


def event_line(content: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(content, allow_nan=False).encode() + b"\n\n"
