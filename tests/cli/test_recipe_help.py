"""What `--help` says of a recipe."""

import re
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from equilibria.cli.recipe_help import print_settings, sections
from equilibria.errors import UserError


def test_the_overview_has_every_section_once_and_the_default_kinds() -> None:
    titles = [title for title, _ in sections()]
    assert Counter(titles).most_common(1)[0][1] == 1
    keys = {title.partition(":")[0] for title in titles}
    assert keys >= {"run", "data", "data.tokenizer", "model", "model.cell", "model.depth", "model.depth.solver"}
    assert keys >= {"model.depth.gradient", "model.depth.schedule", "training", "training.optimizer", "distributed"}
    assert not any('kind = "trellis"' in title for title in titles)


def test_below_a_key_all_kinds_are_explained() -> None:
    found = dict(sections("model.cell"))
    trellis = next(flags for title, flags in found.items() if 'kind = "trellis"' in title)
    assert ("scan true|false") in {flag for flag, _ in trellis}
    assert all(text.partition("[")[0] for _, text in trellis)


def test_every_flag_says_what_it_is_and_its_default() -> None:
    for title, flags in sections():
        for flag, text in flags:
            assert len(text) > 10, f"{title}: {flag}"
            assert text.endswith("]"), f"{title}: {flag}"


def test_a_module_with_a_mistake_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mistaken.py").write_text("class C\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match='--help "mistaken:C" cannot be imported: SyntaxError: '):
        print_settings(Console(quiet=True), "mistaken:C")


def test_what_is_said_of_a_flag_is_what_the_flag_takes() -> None:
    for title, flags in sections("model"):
        for text in (title, *(text for _, text in flags)):
            assert not re.search(r"\b(None|True|False)\b", text), f"{title}: {text}"


def test_it_is_printed_within_eighty_columns() -> None:
    console = Console(width=80, record=True, file=None, quiet=False)
    with console.capture() as capture:
        print_settings(console)
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("tol FLOAT" in line for line in lines)
