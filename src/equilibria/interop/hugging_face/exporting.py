"""A run as a folder that transformers loads: written whole or not at all"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from safetensors import SafetensorError
from transformers import GenerationConfig

from equilibria.data import Tokenizer
from equilibria.errors import UserError, unwritable
from equilibria.files.durable import new_folder
from equilibria.files.formats import read_json
from equilibria.inference.effort import Effort
from equilibria.inference.loading import LoadedRun
from equilibria.interop.hugging_face.configuration import EquilibriaConfig
from equilibria.interop.hugging_face.modeling import EquilibriaForCausalLM
from equilibria.interop.hugging_face.tokenizer import stock_tokenizer
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

The end of a passage is {end!r}, which is also the token that a text begins after. A generated token sees {window}
tokens at most. The recipe is in `config.json` under `recipe`.
"""


def export_folder(loaded: LoadedRun, out: Path) -> dict[str, object]:
    """Writes a run's model with its tokenizer, for `AutoModelForCausalLM` and `AutoTokenizer`.

    Args:
        loaded: the run.
        out: a folder that does not exist or is empty.

    Returns:
        What was written, for a person or a program.

    Raises:
        UserError: the folder is there already or cannot be written, or the model continues no text.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; choose another name or remove it")
    model = wrapped(loaded)
    tokenizer = stock_tokenizer(loaded.tokenizer, model.config.max_position_embeddings)
    out = out.resolve()
    try:
        with new_folder(out) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            (folder / "README.md").write_text(_card(loaded, model, out.name), encoding="utf-8")
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


def wrapped(loaded: LoadedRun) -> EquilibriaForCausalLM:
    """A run's model as transformers knows models, in evaluation mode.

    Raises:
        UserError: it continues no text.
    """
    if not isinstance(loaded.model, CausalModel):
        raise UserError(f"a {type(loaded.model).__name__} does not continue a text; it is not exported")
    config = EquilibriaConfig.of(loaded.recipe.model, loaded.tokenizer.vocabulary_size, loaded.window)
    model = EquilibriaForCausalLM(config).eval()
    fill(distinct_state(model.model), distinct_state(loaded.model), loaded.checkpoint)
    # As in `equilibria generate`, a text begins as one does after a passage, and goes on when a passage ends.
    model.generation_config = GenerationConfig(
        bos_token_id=loaded.tokenizer.eos, use_cache=model.generation_config.use_cache
    )
    return model


def _card(loaded: LoadedRun, model: EquilibriaForCausalLM, name: str) -> str:
    return _CARD.format(
        name=name,
        parameters=model.num_parameters(),
        vocabulary=model.config.vocab_size,
        figures=_figures(loaded),
        prompt=_prompt(loaded.tokenizer),
        end=loaded.tokenizer.decode([loaded.tokenizer.eos]),
        window=model.config.max_position_embeddings,
    )


def _prompt(tokenizer: Tokenizer) -> str:
    """A text that every tokenizer of its kind has tokens for."""
    try:
        tokenizer.encode("The")
        return "The"
    except UserError:  # its tokens are numbers, or words without one for others
        return tokenizer.decode([0])


_EFFORT = tuple(field.name for field in fields(Effort))


def _figures(loaded: LoadedRun) -> str:
    """What the run's last evaluation says, where it was of these weights, solved as the recipe says."""
    try:
        figures = read_json(loaded.folder.evaluation, dict)
        if figures["step"] != loaded.step or any(figures[name] is not None for name in _EFFORT):
            return ""
        return f", {figures['loss']:.4g} nats per token of its {figures['split']} text"
    except (ValueError, KeyError, TypeError):
        return ""
