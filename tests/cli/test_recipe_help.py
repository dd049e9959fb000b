"""What `--help` says of a recipe."""

import re
from collections import Counter
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from equilibria.cli.recipe_help import print_settings, sections
from equilibria.errors import UserError


def printed(below: str = "", width: int = 80) -> str:
    console = Console(width=width, file=StringIO())
    print_settings(console, below)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_every_section_is_there_once() -> None:
    titles = Counter(section.title for section in sections())
    assert titles.most_common(1)[0][1] == 1
    keys = {section.key for section in sections()}
    assert keys >= {"run", "data", "data.tokenizer", "model", "model.cell", "model.depth", "model.depth.solver"}
    assert keys >= {"model.depth.gradient", "model.depth.schedule", "training", "training.optimizer", "distributed"}


def test_without_a_key_there_is_a_line_for_each_section() -> None:
    shown = printed()
    lines = [line for line in shown.splitlines() if line.startswith("  ")]
    assert len(shown.splitlines()) < 36
    keys = [line.split()[0] for line in lines]
    assert keys == sorted(set(keys), key=keys.index)
    assert {"run", "model.depth.solver", "training.optimizer"} <= set(keys)
    assert "model.depth.solver       picard (default), anderson" in shown
    assert "--lr for --training.learning_rate" in " ".join(shown.split())
    assert not [line for line in lines if line.rstrip().endswith((";", ":", "."))]


def test_below_a_key_all_kinds_are_explained_and_what_is_further_below_is_named() -> None:
    shown = printed("model.depth")
    assert 'model.depth.kind = "stack"' in shown
    assert "residual_penalty FLOAT" in shown
    assert 'method = "broyden"' not in shown
    assert any(line.startswith("  model.depth.solver ") for line in shown.splitlines())
    trellis = next(section for section in sections() if section.kind == 'kind = "trellis"')
    assert ("scan true|false") in {flag for flag, _ in trellis.flags}
    assert all(text.partition("[")[0] for _, text in trellis.flags)


def test_all_is_everything() -> None:
    shown = printed("all", width=200)
    assert all(section.title[:100] in shown for section in sections())


def test_a_section_that_there_is_not_is_answered_with_the_nearest() -> None:
    for key, instead in (
        ("model.dept", "the nearest is model.depth"),
        ("xyzzy", "there are run, data, model, "),
    ):
        with pytest.raises(UserError, match=f"--help {key}: no such section; {instead}"):
            printed(key)


def test_every_flag_says_what_it_is_and_its_default() -> None:
    for section in sections():
        for flag, text in section.flags:
            assert len(text) > 10, f"{section.title}: {flag}"
            assert text.endswith("]"), f"{section.title}: {flag}"


def test_a_module_with_a_mistake_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mistaken.py").write_text("class C\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match='--help "mistaken:C" cannot be imported: SyntaxError: '):
        print_settings(Console(quiet=True), "mistaken:C")


def test_what_is_said_of_a_flag_is_what_the_flag_takes() -> None:
    for section in sections():
        for text in (section.title, *(text for _, text in section.flags)):
            assert not re.search(r"\b(None|True|False)\b", text), f"{section.title}: {text}"


@pytest.mark.parametrize("below", ["", "model.depth.solver", "all"])
def test_it_is_printed_within_eighty_columns(below: str) -> None:
    lines = printed(below).splitlines()
    assert max(map(len, lines)) <= 80
