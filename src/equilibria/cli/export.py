"""`equilibria export`: a run's model, to give away or for use without this package."""

import json as json_format
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from torch.export import ExportedProgram

from equilibria.cli.progress import ConsoleProgress, side_console
from equilibria.cli.settings import Count
from equilibria.errors import UserError
from equilibria.files.durable import check_vacant
from equilibria.inference.loading import LoadedRun, load_run
from equilibria.interop.torch_export import Part, check_new, export_program, fixed_depth, save_onnx, save_program
from equilibria.interop.weights import export_weights

_SUFFIXES = {"torch": ".pt2", "onnx": ".onnx"}


def export(
    run: Path,
    out: Path,
    /,
    *,
    to: Literal["torch", "onnx", "hf", "equilibria"],
    part: Part | None = None,
    evaluations: Count | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
    checkpoint: str = "best",
    json: bool = False,
) -> int:
    """Write a run's model, to give away or for use without this package.

    Args:
        run: the run folder.
        out: where to: a .pt2 file that torch.export.load reads, an .onnx file, or a new folder.
        to: "torch", a program of torch.export for any batch and length, "onnx", the same for ONNX runtimes, "hf", a
            folder for Hugging Face's transformers, with its tokenizer, or "equilibria", a folder for this package:
            weights, recipe, tokenizer and a card.
        part: of a program, a solve of a fixed budget, from tokens to logits (default), or one evaluation, from
            state and tokens to state.
        evaluations: of the solve of a program; default: as many as the recipe's eval_solver or applications say.
        dtype: of the weights in an "equilibria" folder; default: float32.
        checkpoint: "best" by validation loss, "last" or "step-N".
        json: print what was written as one JSON object.
    """
    if to not in _SUFFIXES and (part is not None or evaluations is not None):
        raise UserError(f'--part and --evaluations are for programs; a "{to}" folder is solved as the recipe says')
    if to != "equilibria" and dtype is not None:
        raise UserError(f'--dtype is for folders of this package, "equilibria"; a "{to}" export is in float32')
    if to in _SUFFIXES:  # before what takes long
        check_new(out, _SUFFIXES[to])
    else:
        check_vacant(out)
    if to == "onnx" and find_spec("onnxscript") is None:
        raise UserError("--to onnx needs onnxscript; pip install 'equilibria[onnx]'")
    loaded = load_run(run, checkpoint)
    if to == "hf":
        written = _write_folder(loaded, out)
    elif to == "equilibria":
        written = export_weights(loaded, out, torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    else:
        save = save_program if to == "torch" else save_onnx
        with ConsoleProgress(side_console(json)).bar("tracing the model", None, "steps"):
            written = _write_program(loaded, out, part or "solve", evaluations, save)
    print(json_format.dumps(written) if json else out)
    return 0


def _write_folder(loaded: LoadedRun, out: Path) -> dict[str, object]:
    try:
        from equilibria.interop.hugging_face.exporting import export_folder
    except ModuleNotFoundError as problem:
        raise UserError(f"--to hf needs {problem.name}; pip install 'equilibria[hf]'") from problem
    return export_folder(loaded, out)


def _write_program(
    loaded: LoadedRun,
    out: Path,
    part: Part,
    evaluations: int | None,
    save: Callable[[ExportedProgram, Path, dict[str, object]], None],
) -> dict[str, object]:
    program = export_program(loaded.model, part, evaluations)
    metadata: dict[str, object] = {
        "run": loaded.folder.path.resolve().name,
        "checkpoint": loaded.checkpoint.name,
        "part": part,
        "depth": repr(fixed_depth(loaded.model, evaluations)) if part == "solve" else "one evaluation",
        "vocabulary_size": loaded.model.embedding.vocabulary_size,
    }
    save(program, out, metadata)
    return {"file": str(out), **metadata}
