"""`equilibria export`: a run's model for use without this package"""

import json as json_format
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from equilibria.inference.loading import LoadedRun, load_run
from equilibria.interop.torch_export import Part, export_program, save_program, with_fixed_budget

command = App(name="export")


@command.default
def export(
    run: Path,
    out: Path,
    /,
    *,
    to: Literal["torch"],
    part: Part = "solve",
    evaluations: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    checkpoint: str = "best",
    json: bool = False,
) -> int:
    """Write a run's model for use without this package.

    Args:
        run: the run folder.
        out: where to: a .pt2 file that torch.export.load reads.
        to: "torch", a program of torch.export for any batch and length.
        part: a solve of a fixed budget, from tokens to logits, or one evaluation, from state and tokens to state.
        evaluations: of the solve; left out: as many as the recipe's eval_solver or applications say.
        checkpoint: "best" by validation loss, "last" or "step-N".
        json: print what was written as one JSON object.
    """
    loaded = load_run(run, checkpoint)
    metadata = write_program(loaded, out, part, evaluations)
    print(json_format.dumps({"file": str(out), **metadata}) if json else out)
    return 0


def write_program(loaded: LoadedRun, out: Path, part: Part, evaluations: int | None) -> dict[str, object]:
    """Exports and saves; returns what the file says of itself."""
    program = export_program(loaded.model, part, evaluations)
    metadata: dict[str, object] = {
        "run": loaded.folder.path.resolve().name,
        "checkpoint": loaded.checkpoint.name,
        "part": part,
        "depth": repr(with_fixed_budget(loaded.model, evaluations).depth) if part == "solve" else "one evaluation",
        "vocabulary_size": loaded.model.embedding.vocabulary_size,
    }
    save_program(program, out, metadata)
    return metadata
