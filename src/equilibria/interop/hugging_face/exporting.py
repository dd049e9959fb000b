"""A run as a folder that transformers loads: written whole or not at all"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from operator import itemgetter
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedTokenizerFast

from equilibria.data import Tokenizer
from equilibria.data.tokenizers import UNKNOWN, stock_from
from equilibria.errors import UserError, unwritable
from equilibria.files.durable import check_vacant, new_folder
from equilibria.files.formats import read_json
from equilibria.inference.effort import Effort
from equilibria.inference.loading import LoadedRun
from equilibria.interop.hugging_face.modeling import EquilibriaConfig, EquilibriaForCausalLM
from equilibria.models.causal import CausalModel
from equilibria.runs.weights import distinct_state, fill

PADDING, END_OF_TEXT = "<|pad|>", "<|end|>"
"""Tokens that text never has, where tokens are of bytes."""

_SPARE = {"\u00ff": PADDING, "\u00fe": END_OF_TEXT}  # letters of the bytes 255 and 254, which are not in UTF-8

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [equilibria, deep-equilibrium]
---

# {name}

A language model of equilibria: {parameters:,} parameters, {vocabulary:,} tokens{figures}.

```python
import equilibria.interop.hugging_face  # or give trust_remote_code=True below
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
prompt = tokenizer("{prompt}", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=50, do_sample=True)[0]))
```

A passage ends with {end!r}, token {eos}, which a text also begins after. A generated token sees {window} tokens at
most.
The tokenizer alone needs no code of this model: `PreTrainedTokenizerFast.from_pretrained("{name}")`.
The recipe is in `config.json` under `recipe`.
"""


def export_folder(loaded: LoadedRun, out: Path) -> dict[str, object]:
    """Writes a run's model with its tokenizer, for `AutoModelForCausalLM` and `AutoTokenizer`; returns a summary.

    Raises:
        UserError: the folder exists already or cannot be written, or the model does not continue text.
    """
    check_vacant(out)
    model = _wrapped(loaded)
    tokenizer = stock_tokenizer(loaded.tokenizer, model.config.max_position_embeddings)
    if tokenizer.pad_token == PADDING:  # `<unk>` may be in a prompt, where it is no padding
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    out = out.resolve()
    try:
        with new_folder(out) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            card = _CARD.format(
                name=out.name,
                parameters=model.num_parameters(),
                vocabulary=model.config.vocab_size,
                figures=_figures(loaded),
                prompt=_prompt(loaded.tokenizer),
                end=loaded.tokenizer.decode([loaded.tokenizer.eos]),
                eos=loaded.tokenizer.eos,
                window=model.config.max_position_embeddings,
            )
            (folder / "README.md").write_text(card, encoding="utf-8")
    except (OSError, SafetensorError) as problem:
        raise unwritable(out, problem, "choose another folder") from problem
    return {
        "folder": str(out),
        "run": loaded.folder.path.resolve().name,
        "checkpoint": loaded.checkpoint.name,
        "parameters": model.num_parameters(),
        "vocabulary_size": model.config.vocab_size,
        "window": model.config.max_position_embeddings,
        "cache_layers": model.config.num_hidden_layers if model.generation_config.use_cache else 0,
    }


def _wrapped(loaded: LoadedRun) -> EquilibriaForCausalLM:
    """A run's model for transformers, in evaluation mode."""
    if not isinstance(loaded.model, CausalModel):
        raise UserError(f"a {type(loaded.model).__name__} does not continue a text; it cannot be exported")
    loaded.check_continues()  # before its recipe is read as that of a text
    config = EquilibriaConfig.of(loaded.recipe.model, loaded.tokenizer.vocabulary_size, loaded.window)
    model = EquilibriaForCausalLM(config).eval()
    fill(distinct_state(model.model), distinct_state(loaded.model), loaded.checkpoint)
    # As in `equilibria generate`, a text begins as if after a passage, and goes on when a passage ends.
    model.generation_config = GenerationConfig(
        bos_token_id=loaded.tokenizer.eos, use_cache=model.generation_config.use_cache
    )
    return model


def stock_tokenizer(tokenizer: Tokenizer, window: int | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer that transformers loads without our package, with the same ids for the same text and back.

    The token that ends a passage is an ordinary one of text: were it declared as anything else, decoding would drop it
    and batches would mask it. Where tokens are of bytes, two that UTF-8 never has are renamed: `PADDING`, and
    `END_OF_TEXT` for tools that end a text by a token of its own. Among words `<unk>` pads, and where there is neither,
    nothing does. If truncation is asked for, the last `window` tokens of a prompt stay.
    """
    content = json.loads(tokenizer.stock.to_str())
    added = content["added_tokens"]
    for token in added:
        token["special"] = False
    names: dict[str, str] = {}
    if _renamed(content["model"], _SPARE):
        names = {"pad_token": PADDING, "eos_token": END_OF_TEXT}
    elif tokenizer.unknown is not None:
        names = {"pad_token": UNKNOWN, "unk_token": UNKNOWN}
    for name in sorted(set(names.values()), key=content["model"]["vocab"].__getitem__):
        word = name == UNKNOWN
        flags = {"single_word": word, "normalized": word, "lstrip": False, "rstrip": False, "special": True}
        added.append({"id": content["model"]["vocab"][name], "content": name, **flags})
    added.sort(key=itemgetter("id"))
    return PreTrainedTokenizerFast(
        tokenizer_object=stock_from(content),
        padding_side="left",
        truncation_side="left",
        clean_up_tokenization_spaces=False,
        **names,
        **({} if window is None else {"model_max_length": window}),
    )


def _renamed(model: dict[str, Any], names: Mapping[str, str]) -> bool:
    """Renames letters of a vocabulary of bytes and their pairs, if it has them all and no pair has any."""
    vocabulary = model["vocab"]
    pairs = (token for token in vocabulary if len(token) > 1)
    if model["type"] != "BPE" or not names.keys() <= vocabulary.keys() or any(names.keys() & {*pair} for pair in pairs):
        return False
    for letter, name in names.items():
        vocabulary[name] = vocabulary.pop(letter)
    return True


def _prompt(tokenizer: Tokenizer) -> str:
    """A text that the tokenizer has tokens for."""
    try:
        tokenizer.encode("The")
        return "The"
    except UserError:  # its tokens are numbers, or words without `<unk>`
        return tokenizer.decode([0])


def _figures(loaded: LoadedRun) -> str:
    """The loss of the run's last evaluation, if it was of these weights at the recipe's effort."""
    try:
        figures = read_json(loaded.folder.evaluation, dict)
        if figures["step"] != loaded.step or any(figures[option.name] is not None for option in fields(Effort)):
            return ""
        return f", {figures['loss']:.4g} nats per token of its {figures['split']} text"
    except (ValueError, KeyError, TypeError):
        return ""
