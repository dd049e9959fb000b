"""Texts that are written together: each as it would be alone."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import equilibria as eq
from equilibria.cells import ContractiveCell
from equilibria.data.tokenizers import byte_tokenizer
from equilibria.depths import Equilibrium, UnrolledDepth
from equilibria.inference.writing import Piece, Text, TextRequest, Writer, Written
from equilibria.models import LanguageModel, TokenModel
from equilibria.models.sampling import NOT_FINITE, Sampling
from equilibria.nn import TiedEmbedding, UntiedEmbedding

WINDOW = 40


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    depth = Equilibrium(eval_solver=eq.Picard(tol=1e-3, max_evaluations=30, scope="prefix"))
    return LanguageModel(TiedEmbedding(256, 16), ContractiveCell(16, 2, 24, carry=0.3), depth).eval()


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


def alone(model: TokenModel, wanted: TextRequest, number: int) -> list[int]:
    """The tokens of one text, by the model itself."""
    seed = (wanted.seed or 0) + number
    prompt = torch.tensor([wanted.prompt])
    written = model.generate(prompt, wanted.max_new_tokens, seed=seed, window=WINDOW, sampling=wanted.sampling)
    return written[0, prompt.shape[1] :].tolist()


def going(written: Written) -> list[tuple[Text, Piece]]:
    """Pieces of texts that have not failed."""
    return [(text, piece) for text, piece in written if isinstance(piece, Piece)]


def test_texts_that_join_and_leave_are_written_as_alone(model: LanguageModel) -> None:
    writer, waiting, found = Writer(model, byte_tokenizer(), WINDOW), [request(number) for number in range(12)], {}
    left: list[Text] = []
    for round_ in range(200):
        written = writer.step()
        if waiting and round_ % 2 == 0:
            written += writer.join(waiting.pop())
        for text, piece in going(written):
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
    ((_, piece),) = going(writer.join(wanted))
    assert piece.likelihood is not None
    assert abs(piece.likelihood.logprob - float(expected[-1, piece.token])) < 1e-4


def test_a_text_ends_with_its_passage_where_that_is_asked_for(model: LanguageModel) -> None:
    plain = TextRequest(prompt=tuple(b"some text"), max_new_tokens=8, seed=4)
    tokens = alone(model, plain, 0)

    tokenizer = byte_tokenizer()
    tokenizer.eos = tokens[5]  # a byte that is drawn
    for asked in (True, False):
        writer = Writer(model, tokenizer, WINDOW)
        pieces = [piece for _, piece in going(writer.join(replace(plain, stop_at_end=asked)))]
        while writer.texts:
            pieces += [piece for _, piece in going(writer.step())]
        length = tokens.index(tokens[5]) + 1 if asked else 8
        assert [piece.token for piece in pieces] == tokens[:length]
        assert pieces[-1].finish == ("end" if asked else "length")
        shown = tokens[: length - 1] if asked else tokens
        assert "".join(piece.text for piece in pieces) == bytes(shown).decode("utf-8", "replace")


def failures_beside(writer: Writer, wanted: TextRequest, others: TextRequest) -> list[str]:
    """Why texts fail that are written beside another, which does not."""
    expected = alone(writer._model, wanted, 0)
    written = [*writer.join(wanted), *writer.join(others)]
    while writer.texts:
        written += writer.step()
    assert [piece.token for text, piece in going(written) if text.request is wanted] == expected
    return [f"{len(text.tokens)}: {piece}" for text, piece in written if isinstance(piece, Exception)]


@pytest.mark.parametrize("place", [0, 2])
def test_texts_whose_logits_are_not_finite_leave_the_others_alone(place: int) -> None:
    torch.manual_seed(0)
    embedding = UntiedEmbedding(256, 16)
    explicit = LanguageModel(embedding, ContractiveCell(16, 2, 24, injection_norm=False), UnrolledDepth(2)).eval()
    wanted = TextRequest(prompt=tuple(b"some text"), max_new_tokens=6, seed=1)
    others = replace(wanted, prompt=tuple(b"OTHERS"), sampling=Sampling(0.0), copies=2)
    bad = (others.prompt + tuple(alone(explicit, others, 0)))[len(others.prompt) + place - 1]
    assert bad not in (*wanted.prompt, *alone(explicit, wanted, 0))
    with torch.no_grad():
        embedding.rows.weight[bad] = torch.nan
    failures = failures_beside(Writer(explicit, byte_tokenizer(), WINDOW), wanted, others)
    assert failures == [f"{place}: {NOT_FINITE}"] * 2


@pytest.mark.parametrize("place", [0, 2])
def test_texts_that_cannot_take_a_token_leave_the_others_alone(
    model: LanguageModel, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = replace(request(1), copies=1, max_new_tokens=6, stop=())
    others, take = replace(wanted, seed=5, copies=2), Text.take

    def failing(text: Text, *what: Any) -> Piece:
        if text.request is others and len(text.tokens) == place:
            raise ValueError("no such token")
        return take(text, *what)

    monkeypatch.setattr(Text, "take", failing)
    assert failures_beside(Writer(model, byte_tokenizer(), WINDOW), wanted, others) == [f"{place}: no such token"] * 2


def test_every_solve_that_fails_is_told_of(model: LanguageModel) -> None:
    wanted = TextRequest(prompt=tuple(b"some text"), max_new_tokens=3, seed=1, top=0)
    few = Equilibrium(eval_solver=eq.Picard(tol=1e-9, max_evaluations=2, scope="prefix"))
    for depth, expected in ((None, True), (few, False), (UnrolledDepth(2), None)):
        writer = Writer(model, byte_tokenizer(), WINDOW, depth)
        assert {one.converged for one in writer.likelihoods(wanted)} == {expected}
        pieces = [piece for _, piece in going(writer.join(wanted))]
        while writer.texts:
            pieces += [piece for _, piece in going(writer.step())]
        assert [piece.converged for piece in pieces] == [expected] * 3
        assert all(piece.likelihood and piece.likelihood.converged is expected for piece in pieces)


def test_prompts_are_read_on_the_models_device(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere, found = copy.deepcopy(model).to("meta"), []

    def read(tokens: Tensor, *rest: object, **more: object) -> None:
        found.append(tokens.device.type)
        raise ValueError("read")

    for name in ("begin_in_parts", "forward"):
        monkeypatch.setattr(elsewhere, name, read)
    writer, wanted = Writer(elsewhere, byte_tokenizer(), WINDOW), TextRequest(prompt=(1, 2), max_new_tokens=1)
    for reading in (writer.join, writer.likelihoods):
        with pytest.raises(ValueError, match="read"):
            reading(wanted)
    assert found == ["meta", "meta"]


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
def test_what_is_wrong_with_a_request_for_texts_is_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(request(0), **wrong)
