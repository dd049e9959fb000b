"""A run's model as a folder to give away: weights, recipe, tokenizer and a card, for this package."""

import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from equilibria.errors import unwritable
from equilibria.files.durable import check_vacant, new_folder
from equilibria.files.manifest import write_manifest
from equilibria.inference.loading import LoadedRun
from equilibria.inference.trained import CARD
from equilibria.runs.index import MODEL_FILE
from equilibria.runs.weights import distinct_state

_CARD = """\
# {name}

{about}

- {parameters:,} parameters in {dtype}, {vocabulary:,} tokens in the vocabulary
- trained on {text}
- trained by `equilibria train config.toml`, with the `config.toml` of this folder

`eq.load("{name}")` returns the model, and `equilibria eval {name}` evaluates it; `generate` and `serve` take it, too.
"""


def export_weights(loaded: LoadedRun, out: Path, dtype: torch.dtype) -> dict[str, object]:
    """Writes a run's model for this package, whole or not at all; returns a summary.

    Floating-point weights are rounded to `dtype`; the model that is loaded computes in float32 again.

    Raises:
        UserError: the folder exists already or cannot be written.
    """
    check_vacant(out)
    state = distinct_state(loaded.model)
    tensors = {
        name: tensor.detach().to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in state.items()
    }
    parameters = sum(tensor.numel() for tensor in tensors.values())
    out, precision = out.resolve(), str(dtype).removeprefix("torch.")
    try:
        with new_folder(out) as folder:
            save_file(tensors, folder / MODEL_FILE)
            for file in (loaded.folder.config, loaded.folder.tokenizer):
                shutil.copyfile(file, folder / file.name)
            write_manifest(folder)
            card = _CARD.format(
                name=out.name,
                about=f"A model of equilibria, from the run {loaded.folder.path.resolve().name}.",
                parameters=parameters,
                dtype=precision,
                vocabulary=loaded.tokenizer.vocabulary_size,
                text=loaded.recipe.data.name,
            )
            (folder / CARD).write_text(card, encoding="utf-8")
    except (OSError, SafetensorError) as problem:
        raise unwritable(out, problem, "choose another folder") from problem
    return {
        "folder": str(out),
        "run": loaded.folder.path.resolve().name,
        "checkpoint": loaded.checkpoint.name,
        "parameters": parameters,
        "dtype": precision,
    }
