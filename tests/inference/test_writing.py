"""Texts that are written together: each as it would be alone."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import equilibria as eq
from equilibria.cells import ContractiveCell
from equilibria.data.tokenizers import byte_tokenizer
from equilibria.depths import Equilibrium
from equilibria.inference.writing import Text, TextRequest, Writer
from equilibria.models import LanguageModel
from equilibria.models.sampling import Sampling
from equilibria.nn import TiedEmbedding

WINDOW = 40


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    depth = Equilibrium(eval_solver=eq.Picard(tol=1e-3, max_evaluations=8, scope="prefix"))
    return LanguageModel(TiedEmbedding(256, 16), ContractiveCell(16, 2, 24), depth).eval()


def request(number: int) -> TextRequest:
    choose = random.Random(number)
    return TextRequest(
        prompt=tuple(choose.choices(range(97, 123), k=choose.randint(1, 30))),
        max_new_tokens=choose.randint(1, 12),
        sampling=choose.choice([Sampling(0.9), Sampling(0.0), Sampling(1.5, 40, 0.9, 0.01, 1.3, 0.2, 0.1)]),
        seed=100 * number,
        copies=choose.randint(1, 3),
        stop=choose.choice([(), ("a",)]),
        top=choose.choice([None, 2]),
    )


def alone(model: LanguageModel, wanted: TextRequest, copy: int) -> list[int]:
    """The tokens of one text, by the model itself."""
    seed = (wanted.seed or 0) + copy
    prompt = torch.tensor([wanted.prompt])
    written = model.generate(prompt, wanted.max_new_tokens, seed=seed, window=WINDOW, sampling=wanted.sampling)
    return written[0, prompt.shape[1] :].tolist()


def test_texts_that_join_and_leave_are_written_as_alone(model: LanguageModel) -> None:
    writer, waiting, found = Writer(model, byte_tokenizer(), WINDOW), [request(number) for number in range(12)], {}
    left: list[Text] = []
    for round_ in range(200):
        written = writer.step()
        if waiting and round_ % 2 == 0:
            written += writer.join(waiting.pop())
        for text, piece in written:
            assert text not in left
            found.setdefault(text, []).append(piece)
        if round_ == 7:
            left.append(writer.texts[0])
            writer.leave(left[0])
        if not waiting and not writer.texts:
            break
    assert len(found) == sum(request(number).copies for number in range(12))
    for text, pieces in found.items():
        expected = alone(model, text.request, text.copy)
        tokens = [piece.token for piece in pieces]
        assert tokens == expected[: len(tokens)] == text.tokens
        finish = pieces[-1].finish
        assert all(piece.finish is None for piece in pieces[:-1])
        said = "".join(piece.text for piece in pieces)
        if text in left:
            assert finish is None
        elif finish == "stop":
            assert said == bytes(tokens).decode("utf-8", "replace").split("a")[0]
        else:
            assert (finish, len(tokens)) == ("length", text.request.max_new_tokens)
            assert said == bytes(tokens).decode("utf-8", "replace")
        for piece in pieces:
            assert (piece.likelihood is None) == (text.request.top is None)
            assert piece.evaluations is not None


def test_likelihoods_are_those_of_the_model(model: LanguageModel) -> None:
    wanted = TextRequest(prompt=tuple(b"some text"), max_new_tokens=1, seed=1, top=3)
    writer = Writer(model, byte_tokenizer(), WINDOW)
    with torch.no_grad():
        expected = model(torch.tensor([wanted.prompt])).logits[0].log_softmax(-1)
    read = writer.likelihoods(wanted)
    for place, likelihood in enumerate(read):
        assert abs(likelihood.logprob - float(expected[place, wanted.prompt[place + 1]])) < 1e-4
        assert [token for token, _ in likelihood.top] == expected[place].topk(3).indices.tolist()
    ((_, piece),) = writer.join(wanted)
    assert piece.likelihood is not None
    assert abs(piece.likelihood.logprob - float(expected[-1, piece.token])) < 1e-4


def test_a_text_ends_with_its_passage_where_that_is_asked_for(model: LanguageModel) -> None:
    plain = TextRequest(prompt=tuple(b"some text"), max_new_tokens=8, seed=4)
    tokens = alone(model, plain, 0)

    tokenizer = byte_tokenizer()
    tokenizer.eos = tokens[5]  # a byte that is drawn
    for asked in (True, False):
        writer = Writer(model, tokenizer, WINDOW)
        pieces = [piece for _, piece in writer.join(replace(plain, stop_at_end=asked))]
        while writer.texts:
            pieces += [piece for _, piece in writer.step()]
        length = tokens.index(tokens[5]) + 1 if asked else 8
        assert [piece.token for piece in pieces] == tokens[:length]
        assert pieces[-1].finish == ("end" if asked else "length")
        shown = tokens[: length - 1] if asked else tokens
        assert "".join(piece.text for piece in pieces) == bytes(shown).decode("utf-8", "replace")


def test_a_prompt_that_cannot_be_gone_on_from_leaves_the_others_alone(model: LanguageModel) -> None:
    writer, wanted = Writer(model, byte_tokenizer(), WINDOW), replace(request(1), copies=1, max_new_tokens=9, stop=())
    pieces = [piece for _, piece in writer.join(wanted)]
    weight = model.embedding.weight
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        kept = weight[7].clone()
        weight[7] = torch.nan
        with pytest.raises(ValueError, match="not finite"):
            writer.join(replace(wanted, prompt=(7,), copies=3))
        weight[7] = kept
    while writer.texts:
        pieces += [piece for _, piece in writer.step()]
    assert [piece.token for piece in pieces] == alone(model, wanted, 0)


def test_a_text_that_fails_at_its_first_token_leaves_the_others_alone(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(text: Text, *what: object) -> None:
        raise ValueError("no such token")

    wanted = replace(request(1), copies=1, max_new_tokens=6, stop=())
    writer = Writer(model, byte_tokenizer(), WINDOW)
    pieces = [piece for _, piece in writer.join(wanted)]
    with monkeypatch.context() as patch:
        patch.setattr(Text, "take", failing)
        with pytest.raises(ValueError, match="no such token"):
            writer.join(replace(wanted, seed=5, copies=2))
    while writer.texts:
        pieces += [piece for _, piece in writer.step()]
    assert [piece.token for piece in pieces] == alone(model, wanted, 0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompt": ()}, "prompt must have at least 1 token"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, found 0"),
        ({"copies": 0}, "copies must be at least 1, found 0"),
        ({"top": -1}, "top must be at least 0, found -1"),
        ({"stop": ("a", "")}, "stop string must have at least 1 character"),
    ],
)
def test_an_order_that_cannot_be_carried_out_is_none(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(request(0), **wrong)
