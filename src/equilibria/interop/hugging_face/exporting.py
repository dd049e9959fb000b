"""A run as a folder that transformers loads: written whole or not at all"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from safetensors import SafetensorError
from tokenizers import AddedToken
from transformers import GenerationConfig, PreTrainedTokenizerFast

from equilibria.data import Tokenizer
from equilibria.data.tokenizers import END
from equilibria.errors import UserError, unwritable
from equilibria.files.durable import new_folder
from equilibria.files.formats import read_json
from equilibria.inference.effort import Effort
from equilibria.inference.loading import LoadedRun
from equilibria.interop.hugging_face.modeling import EquilibriaConfig, EquilibriaForCausalLM
from equilibria.models.causal import CausalModel
from equilibria.runs.weights import distinct_state, fill

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

A passage ends with {end!r}, the token that a text also begins after. A generated token sees {window} tokens at most.
The recipe is in `config.json` under `recipe`.
"""


def export_folder(loaded: LoadedRun, out: Path) -> dict[str, object]:
    """Writes a run's model with its tokenizer, for `AutoModelForCausalLM` and `AutoTokenizer`; returns a summary.

    Raises:
        UserError: the folder exists already or cannot be written, or the model does not continue text.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; choose another name or remove it")
    model = _wrapped(loaded)
    tokenizer = stock_tokenizer(loaded.tokenizer, model.config.max_position_embeddings)
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
    """A tokenizer that `AutoTokenizer` loads without our package, with the same ids for the same text and back.

    `eos` is declared as the token of the beginning, the end and padding, so decoding with `skip_special_tokens=True`,
    which is not the default, drops newlines. If truncation is asked for, the last `window` tokens of a prompt stay.
    """
    word = AddedToken(END, single_word=True, normalized=True, special=True)
    end = tokenizer.stock.get_added_tokens_decoder().get(tokenizer.eos, word)
    limit = {} if window is None else {"model_max_length": window}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.stock,
        bos_token=end,
        eos_token=end,
        pad_token=end,
        padding_side="left",
        truncation_side="left",
        clean_up_tokenization_spaces=False,
        **limit,
    )


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
