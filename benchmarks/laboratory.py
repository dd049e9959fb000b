"""The laboratory: what is tried for an equilibrium that learns as well as depth, each beside its explicit rivals.

Contenders are the recipes of `laboratory/`, and variants of its default that are given as keys, so that every
row of the lab notes is one command away. All rows of a run see the same batches, step by step in turn; some take more
steps than the default, for a comparison at equal time. The results file grows by rows and seeds. Proxies are English
as 4,096 byte pairs, and the bytes of that English and of the text that Python carries, both shuffled.

    equilibria bench laboratory --proxy pairs|bytes --data-path FOLDER [--rows NAME ...] [--variant NAME KEY=VALUE ...]
                                [--set KEY=VALUE ...] [--characters N] [--width N] [--seeds S ...] [--steps N]
                                [--evaluations N] [--evaluate-tokens N] [--threads N] [--json] [--out FILE]
                                [--picture FILE]
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks._harness import given_keys, options_of, prepare, publish
from benchmarks._laboratory_table import draw, sheet_of
from benchmarks._race import run
from benchmarks._shuffled_text import shuffled_folder
from benchmarks._solved import figures_of
from equilibria.configuration import Recipe, read_recipe
from equilibria.configuration.comparing import settings
from equilibria.configuration.shipped import FOLDER
from equilibria.data import EmbeddedText, FolderText
from equilibria.errors import UserError
from equilibria.files.durable import save_text

FEATURES = ("model.embedding.d_embed", "model.cell.d_model", "model.cell.inner", "model.coda_inner")
RECIPES = FOLDER / "laboratory"
WIDTH = 128
PROXIES: Mapping[str, Mapping[str, object]] = {
    "pairs": {"data.tokenizer.kind": "bpe", "data.tokenizer.vocabulary_size": 4096, "training.segment_length": 64},
    "bytes": {"data.tokenizer.kind": "bytes", "training.segment_length": 128, "training.batch_size": 8},
}


def recipes_of(options: Namespace) -> dict[str, Recipe]:
    """The rows that are asked for, by name.

    Raises:
        UserError: there is no such row, or a variant is not well formed.
    """
    names = [path.stem for path in sorted(RECIPES.glob("*.toml"))]
    if not (options.rows or options.variant):
        raise UserError(f"name rows with --rows ({', '.join(names)}) or variants with --variant")
    changed: dict[str, tuple[str, dict[str, Any]]] = {}
    for name in options.rows:
        if name not in names:
            raise UserError(f"--rows {name}: there is no such recipe in {RECIPES}; it has {', '.join(names)}")
        changed[name] = name, _width(options, name)
    for name, *changes in options.variant:
        if name in names or not all("=" in change for change in changes):
            raise UserError(f"--variant {name}: give a new name and the keys it changes in the default, KEY=VALUE …")
        changed[name] = "default", _width(options, "default") | dict(change.split("=", 1) for change in changes)
    text = {"data.source": "folder", "data.path": _text(options), "training.evaluate_tokens": options.evaluate_tokens}
    common = dict(PROXIES[options.proxy]) | text
    given = given_keys(options.set)
    return {
        name: _recipe(base, common | _steps(options, base) | changes | given)
        for name, (base, changes) in changed.items()
    }


def _text(options: Namespace) -> Path:
    """The folder of the proxy's text."""
    source = FolderText(options.data_path)
    sources = [source, EmbeddedText()] if options.proxy == "bytes" else [source]
    return shuffled_folder(sources, options.out.parent, options.characters)


def _steps(options: Namespace, name: str) -> dict[str, int]:
    """The keys that give a row its steps: as many times those of the default as the recipes have them."""
    whole, own = (_recipe(row, {}).training.steps for row in ("default", name))
    steps = own if options.steps is None else round(options.steps * own / whole)
    return {"training.steps": steps, "training.evaluate_every": max(1, steps // options.evaluations)}


def _recipe(name: str, changes: Mapping[str, object]) -> Recipe:
    return read_recipe(RECIPES / f"{name}.toml", [f"--{key}={value}" for key, value in changes.items()])


def _width(options: Namespace, name: str) -> dict[str, int]:
    """The keys that give a row another width: all that it says of features, in proportion."""
    if options.width == WIDTH:
        return {}
    written = settings(_recipe(name, {}))
    features = {key: written.get(key) for key in FEATURES}
    return {key: value * options.width // WIDTH for key, value in features.items() if isinstance(value, int)}


def show(result: dict[str, Any], console: Console) -> None:
    """The table, and what its columns are."""
    sheet_of(result).show(console)


def parse(arguments: list[str]) -> Namespace:
    """The options."""
    parser = options_of("laboratory", __doc__)
    parser.add_argument("--proxy", choices=sorted(PROXIES), default="pairs", help="how the text becomes tokens")
    parser.add_argument("--data-path", type=Path, required=True, help="folder of train/valid text")
    parser.add_argument("--characters", type=int, help="of the training text, for many passes over little; else all")
    parser.add_argument("--rows", nargs="+", default=[], help="recipes of laboratory/")
    parser.add_argument(
        "--variant", nargs="+", action="append", default=[], help="a name, and KEY=VALUE of the default"
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="keys that all rows get")
    parser.add_argument("--width", type=int, default=WIDTH, help="of the default, other rows in proportion")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds")
    parser.add_argument("--steps", type=int, help="training steps of the default, others in proportion; else their own")
    parser.add_argument("--evaluations", type=int, default=10, help="in the course of training, evenly")
    parser.add_argument("--evaluate-tokens", type=int, default=40_000, help="of the validation text, each time")
    parser.add_argument("--checkpoint-every", type=int, default=250, help="steps between checkpoints")
    parser.add_argument("--picture", type=Path, help="where to draw the curves, .svg or .png")
    parser.set_defaults(out=Path("runs/bench/laboratory.json"))
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the benchmark; 0 when it ran."""
    options = parse(arguments)
    result = run(options, recipes_of(options), prepare(options), figures_of)
    result["data"] += f", width {options.width}"
    save_text(options.out.with_suffix(".md"), sheet_of(result, whole=True).markdown())
    if options.picture is not None:
        draw(result, options.picture)
    publish("laboratory", arguments, options, result, show)
    return 0
