"""lm-evaluation-harness against `equilibria eval`: the same run, exported, on the same text, window for window.

The harness reads a text in windows of as many tokens as the model's configuration says, each after one token of the
window before; so does an evaluation without a memory, segment for segment. The first token of the text is what the
harness is told to begin after. Nothing is fetched.

    equilibria bench lm_evaluation RUN [--windows N] [--json] [--out FILE]
"""

from __future__ import annotations

import math
import os
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

# Before datasets and transformers are imported, which read them then.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

import lm_eval
import numpy as np
import transformers
import yaml
from lm_eval.tasks import TaskManager
from rich.console import Console
from rich.table import Table

from benchmarks._harness import options_of, prepare, publish
from equilibria.data.prepared import EncodedSplit
from equilibria.errors import UserError
from equilibria.inference.evaluation import evaluate_model
from equilibria.inference.loading import LoadedRun, load_run, load_task
from equilibria.interop.hugging_face.exporting import export_folder

TASK = "rolling_text"


def measure(run: LoadedRun, tokens: np.ndarray, folder: Path, batch_size: int) -> dict[str, Any]:
    """Both evaluations of a text.

    Args:
        run: the run, which is exported to `folder`.
        tokens: of the text, the first of which is given; the others are as many windows as fit.
        folder: for what the harness reads.
        batch_size: windows that it reads at once.
    """
    written = export_folder(run, folder / "model")
    window = written["window"]
    assert isinstance(window, int)
    text = run.tokenizer.decode(tokens[1:].tolist())
    theirs = harness(folder, text, int(tokens[0]), batch_size)
    size = len(text.encode())
    split = EncodedSplit(tokens, len(text.split()), size)
    ours = evaluate_model(run.model, split, batch_size=1, segment_length=window, memory_length=0)
    return {"window": window, "tokens": ours.tokens} | compared(ours.loss, theirs, ours.tokens, size)


def harness(folder: Path, text: str, prefix: int, batch_size: int) -> dict[str, Any]:
    """What lm-evaluation-harness makes of the folder's model and a text."""
    (folder / "text.txt").write_text(text, encoding="utf-8")
    task = yaml.safe_load((Path(__file__).parent / "lm-eval" / f"{TASK}.yaml").read_text(encoding="utf-8"))
    task["dataset_kwargs"]["data_files"]["test"] = str(folder / "text.txt")
    (folder / "tasks").mkdir()
    (folder / "tasks" / f"{TASK}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    simple_evaluate: Any = lm_eval.simple_evaluate
    result = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder / "model"), "trust_remote_code": True, "prefix_token_id": prefix},
        tasks=[TASK],
        task_manager=TaskManager(include_path=str(folder / "tasks"), include_defaults=False),
        device="cpu",
        batch_size=batch_size,
        log_samples=True,
        bootstrap_iters=0,
    )
    (sample,) = result["samples"][TASK]
    if sample["target"] != text:
        raise UserError("the harness has read another text than it was given")
    return {"loglikelihood": sample["resps"][0][0], "bits_per_byte": result["results"][TASK]["bits_per_byte,none"]}


def compared(loss: float, theirs: dict[str, Any], tokens: int, size: int) -> dict[str, Any]:
    """The figures of both, and how far they are apart, of a text of so many tokens and bytes."""
    bits = loss * tokens / math.log(2) / size
    nats = -theirs["loglikelihood"] / tokens
    return {
        "equilibria": {"loss": loss, "perplexity": math.exp(loss), "bits_per_byte": bits},
        "lm_eval": {"loss": nats, "perplexity": math.exp(nats), "bits_per_byte": theirs["bits_per_byte"]},
        "difference": {
            "nats": abs(nats - loss),
            "perplexity": abs(math.exp(nats - loss) - 1),
            "bits_per_byte": abs(theirs["bits_per_byte"] / bits - 1),
        },
    }


def show(result: dict[str, Any], console: Console) -> None:
    """The table a person reads."""
    table = Table("", "nats per token", "perplexity", "bits per byte", title=result["model"])
    for name in ("equilibria", "lm_eval"):
        table.add_row(name, *(f"{figure:.6f}" for figure in result[name].values()))
    table.add_row("difference", *(f"{figure:.1e}" for figure in result["difference"].values()))
    console.print(table)


def parse(arguments: list[str]) -> Namespace:
    """The options."""
    parser = options_of("lm_evaluation", __doc__)
    parser.add_argument("run", type=Path, help="folder of a trained run on a text")
    parser.add_argument("--windows", type=int, help="windows of validation text that are read; default: all")
    parser.add_argument("--batch-size", type=int, default=8, help="windows that the harness reads at once")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the benchmark; 0 when it ran."""
    options = parse(arguments)
    prepare(options)
    run = load_run(options.run)
    split = load_task(run).split("valid")
    assert isinstance(split, EncodedSplit)
    window = run.recipe.training.segment_length + run.model.memory_length
    windows = min((len(split.tokens) - 1) // window, options.windows or len(split.tokens))
    with tempfile.TemporaryDirectory() as temporary:
        figures = measure(run, split.tokens[: 1 + windows * window], Path(temporary), options.batch_size)
    title = f"{run.recipe.run.name}, {run.checkpoint.name}"
    versions = {"transformers": transformers.__version__, "lm-eval": lm_eval.__version__}
    publish("lm_evaluation", arguments, options, {"model": title, **versions, "windows": windows, **figures}, show)
    return 0
