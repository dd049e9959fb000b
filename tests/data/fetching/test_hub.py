"""Data sets of the hub, from a server on loopback that speaks as the hub does; the libraries are the real ones."""

import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from equilibria.data.fetching.hub import HubText
from loopback import Fault, serve_hub, serving

pyarrow = pytest.importorskip("pyarrow")
pytest.importorskip("datasets")

CARD = b"""---
configs:
- config_name: small
  data_files:
  - {split: train, path: small/train-*}
  - {split: validation, path: small/validation-*}
- config_name: rows
  data_files:
  - {split: train, path: rows/*}
---
"""
MEGABYTE = 1 << 20
LONG = [f"a long row {number} " + "word " * 2500 + "\n" for number in range(2000)]  # 25 MB
ROWS = [f"row {number} of {number % 7}\n" if number % 3 else "" for number in range(3000)]
COMMIT = "c0ffee" + "0" * 34
PLACE = f"/datasets/someone/texts/resolve/{COMMIT}/small/train-00000-of-00002.parquet"

FETCH = """
import json, sys
from pathlib import Path
from equilibria.data.fetching.download import Patience
from equilibria.data.fetching.folder import fetch_text
from equilibria.data.fetching.hub import HubText
from equilibria.errors import UserError
for order in json.loads(sys.argv[1]):
    text = HubText(**{"name": "someone/texts", "patience": Patience(3, 0.001), **order.get("text", {})})
    try:
        fetched = fetch_text(text, Path(order["folder"]), offline=order.get("offline", False))
        print(json.dumps({"new": fetched.new, **fetched.manifest}), flush=True)
    except UserError as problem:
        print(json.dumps({"error": str(problem)}), flush=True)
"""


def parquet(rows: list[str], column: str = "text") -> bytes:
    import pyarrow.parquet

    buffer = io.BytesIO()
    table = pyarrow.table({column: rows, "number": list(range(len(rows)))})
    pyarrow.parquet.write_table(table, buffer, compression="none", use_dictionary=False)
    return buffer.getvalue()


FILES = {
    "README.md": CARD,
    "small/train-00000-of-00002.parquet": parquet(LONG),
    "small/train-00001-of-00002.parquet": parquet(ROWS),
    "small/validation-00000-of-00001.parquet": parquet(["held\nout", "more"]),
    "rows/all.parquet": parquet(ROWS),
}


SMALL = {"config": "small"}
ORDERS: dict[str, dict[str, Any]] = {
    "down": {"folder": "small", "text": SMALL},
    "first": {"folder": "small", "text": SMALL},
    "second": {"folder": "small", "text": SMALL, "offline": True},
    "held out": {"folder": "rows", "text": {"config": "rows", "held_out": 0.2}},
    "which": {"folder": "none"},
    "column": {"folder": "none", "text": {"config": "small", "column": "sentence"}},
    "missing": {"folder": "none", "text": {"name": "someone/else"}},
    "script": {"folder": "none", "text": {"name": "someone/script"}},
    "wrong": {"folder": "none", "text": {"name": "someone/wrong", "config": "rows"}},
}


@dataclass(frozen=True)
class Outcome:
    """What came of the orders, one after another, in a process that knows a server on loopback as the hub."""

    folder: Path
    answers: dict[str, dict[str, Any]]
    requests: list[tuple[str, str, str | None]]

    def texts(self, name: str) -> dict[str, str]:
        return {path.stem: path.read_text() for path in (self.folder / name).glob("*.txt")}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("hub")
    environment = os.environ | {
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DISABLE_XET": "1",
        # The tests of Hugging Face's models set these for their process.
        **{"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"},
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(Path(__file__).parents[3] / "src"),
    }
    with serving() as server:
        environment["HF_ENDPOINT"] = serve_hub(server, "someone/texts", FILES)
        breaks = [Fault(after=12 * MEGABYTE)] * 2
        server.files[PLACE].faults = [*[Fault(status=500)] * 3, Fault(status=500), *breaks]
        serve_hub(server, "someone/script", {"README.md": b"", "script.py": b"raise AssertionError"})
        serve_hub(server, "someone/wrong", FILES)
        wrong = server.files[f"/datasets/someone/wrong/resolve/{COMMIT}/rows/all.parquet"]
        wrong.etag = f'"{"0" * 64}"'
        command = [sys.executable, "-c", FETCH, json.dumps(list(ORDERS.values()))]
        process = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder, timeout=300)
        assert process.returncode == 0, process.stderr
        answers = [json.loads(line) for line in process.stdout.splitlines()]
        return Outcome(folder, dict(zip(ORDERS, answers, strict=True)), server.requests)


def test_a_data_set_becomes_a_folder(outcome: Outcome) -> None:
    first = outcome.answers["first"]
    assert first["new"]
    expected = {"train": "".join(row or "\n" for row in [*LONG, *ROWS]), "valid": "held\nout\nmore\n"}
    assert outcome.texts("small") == expected
    assert [source["verified"] for source in first["sources"]] == [True] * 3
    assert all(f"@{COMMIT}/small/" in source["url"] for source in first["sources"])
    assert {path.name for path in outcome.folder.glob("[!.]*")} == {"home", "small", "rows"}


def test_a_hub_that_is_down_leaves_nothing_and_what_breaks_is_gone_on_with(outcome: Outcome) -> None:
    assert "500" in outcome.answers["down"]["error"]
    asked = [begin for method, path, begin in outcome.requests if (method, path) == ("GET", PLACE)]
    assert asked[:5] == [None] * 5  # four times 500, then 12 MB arrived
    assert asked[5].startswith("bytes=") if asked[5] else False
    assert len(asked) == 7


def test_what_is_here_needs_no_hub(outcome: Outcome) -> None:
    assert outcome.answers["second"] == outcome.answers["first"] | {"new": False}


def test_rows_are_held_out_where_there_is_no_validation_split(outcome: Outcome) -> None:
    split = {name: text.splitlines() for name, text in outcome.texts("rows").items()}
    assert sorted([*split["train"], *split["valid"]]) == sorted(row.removesuffix("\n") for row in ROWS)
    assert not set(split["train"]) & set(split["valid"])
    assert 0.1 < len(set(split["valid"])) / len(set(ROWS)) < 0.3


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("which", "'rows'"),
        ("column", "no column 'sentence'; name one with --column: number, text"),
        ("missing", "someone/else"),
        ("script", "no longer supported"),
        ("wrong", f"expected {'0' * 64}; it was not kept"),
    ],
)
def test_errors_say_what_is_wrong(outcome: Outcome, order: str, message: str) -> None:
    assert message in outcome.answers[order]["error"]


def test_another_held_out_share_is_another_text() -> None:
    assert HubText("someone/texts", held_out=0.2).request() != HubText("someone/texts").request()
