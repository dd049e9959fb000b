"""The whole page, from real runs and from what is left of them."""

import errno
import json
import os
import re
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from equilibria.depths import UnrolledDepth
from equilibria.errors import UserError
from equilibria.inference import load_run
from equilibria.report import write_report, writing
from own_kinds import NamedCellModel, Settled
from tiny import tiny_recipe, tiny_trainer, with_model

_VOID = {"meta", "br", "hr", "img", "input", "link"}


class Outline(HTMLParser):
    """Tags that are opened and closed, ids, and attributes that make a browser load something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in _VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id" and value is not None:
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "srcset", "data") and not (value or "").startswith("#"):
                self.loaded.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(path: Path) -> str:
    """The page, once it is known to be well formed and to load nothing."""
    html = path.read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(html)
    outline.close()
    assert outline.open == []
    assert outline.loaded == []
    assert len(outline.ids) == len(set(outline.ids))
    assert not outline.tags & {"script", "link", "iframe", "img", "object"}
    assert not re.search(r"@import|url\((?!#)", html)
    return html


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_trainer(tiny_recipe(tmp_path_factory.mktemp("equilibrium"))).run().folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "a <b> run"))


def test_the_report_of_a_run(run: Path) -> None:
    (run / "sample.json").write_text(
        json.dumps({"prompt": "the", "text": " </pre><script>x", "seed": 1, "top_k": None})
    )
    (run / "evaluation.json").write_text(
        '{"split": "test", "perplexity": 123.0, "residual": {"mean": 0.0042}, "evaluations_per_solve": 9.5, '
        '"unigram_perplexity": 31.25, "trigram_perplexity": 7.5}'
    )
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "event", "step": 8, "message": "resuming <from> step 8", "time": 0.0}\n')
    assert write_report(str(run)) == run / "report.html"
    assert write_report(load_run(run)) == run / "report.html"
    html = read(run / "report.html")
    for expected in (
        "a &lt;b&gt; run",
        "Loss against steps",
        "Loss against time",
        "Evaluations over training",
        "Residual over training",
        "Residual against evaluations",
        '<p class="passage">',
        "&lt;/pre&gt;&lt;script&gt;x",
        "segment_length = 16",
        "1970-01-01 00:00 UTC, step 8: resuming &lt;from&gt; step 8",
        "unigram model 31.25",
        "Test perplexity",
        "123.00",
        "0.0042",
    ):
        assert expected in html, expected
    assert "Missing from this report" not in html
    assert "top k" not in html
    assert sorted(path.name for path in run.iterdir() if "report" in path.name) == ["report.html"]


def test_the_passage_is_validation_text(run: Path) -> None:
    html = read(write_report(run))
    passage = html.partition('<p class="passage">')[2].partition("</p>")[0]
    shown = re.sub(r"<i>.</i>|<[^>]*>", "", passage)
    assert shown.startswith("0 the cat sat on the mat and looked at the moon\n1 a fixed point")


def test_an_explicit_depth_has_no_solves(tmp_path: Path) -> None:
    recipe = with_model(tiny_recipe(tmp_path), depth=UnrolledDepth(3))
    html = read(write_report(tiny_trainer(recipe).run().folder))
    assert "3 applications" in html
    assert "Loss against steps" in html
    for absent in ("Residual", 'passage">', "Evaluations"):
        assert absent not in html


def test_a_model_of_ones_own_is_described_by_its_kind(tmp_path: Path) -> None:
    recipe = replace(tiny_recipe(tmp_path), model=NamedCellModel())
    html = read(write_report(tiny_trainer(recipe).run().folder))
    assert "12 of 12 steps · NamedCellModel · written" in html
    assert "Loss against steps" in html


def test_a_depth_of_ones_own_that_solves_has_its_residuals_shown(tmp_path: Path) -> None:
    recipe = with_model(tiny_recipe(tmp_path), depth=Settled())
    html = read(write_report(tiny_trainer(recipe).run().folder))
    for expected in ("Residual", 'passage">', "Evaluations per solve"):
        assert expected in html
    assert "One validation solve" not in html  # there is no solver to follow


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": 2.0, "seconds": 0.5}\n')
    html = read(write_report(tmp_path))
    assert "Loss against steps" in html
    for missing in ("config.toml", "a folder without a run", "evaluation.json", "sample.json"):
        assert missing in html


def test_text_that_is_gone_costs_the_passage_alone(run: Path, trained: Path) -> None:
    text = trained.parents[1] / "text"
    hidden = text.rename(text.with_name("hidden"))
    try:
        html = read(write_report(run))
    finally:
        hidden.rename(text)
    assert str(text) in html
    assert '<p class="passage">' not in html
    assert "Parameters" in html
    assert "Residual over training" in html


def test_a_page_that_cannot_be_written_is_an_error_and_the_old_one_stays(run: Path) -> None:
    (run / "report.html").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write_report(run)
    assert not list(run.glob(".report*"))


def test_a_page_may_be_written_elsewhere(run: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    out = tmp_path / "page.html"
    assert write_report(run, out) == out
    assert "a &lt;b&gt; run" in read(out)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    for folder in (tmp_path, Path(".")):
        with pytest.raises(UserError, match="cannot be written: it is a folder; name a file with --out FILE"):
            write_report(run, folder)


@pytest.mark.parametrize(
    ("number", "mend"),
    [
        (errno.EROFS, "Read-only file system); make its disk writable, or write elsewhere with --out FILE"),
        (errno.ENOSPC, "No space left on device); free some space, or"),
        (errno.EACCES, "Permission denied); get permission to write there, or"),
    ],
)
def test_what_keeps_a_page_from_being_written_is_what_is_said(
    number: int, mend: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(writing, "write_durably", fail)
    with pytest.raises(UserError) as problem:
        write_report(run)
    assert mend in str(problem.value)


def test_the_folder_of_a_page_is_made(run: Path, tmp_path: Path) -> None:
    assert write_report(run, tmp_path / "new" / "page.html").is_file()


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (ModuleNotFoundError("No module named 'numpy.x'", name="numpy.x"), r"matplotlib cannot be loaded \(No module"),
        (ImportError("libx.so: failed to map segment"), r"matplotlib cannot be loaded \(libx"),
    ],
)
def test_matplotlib_that_cannot_be_loaded_is_said(
    problem: ImportError, message: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing:
        def find_spec(self, name: str, *_: object) -> None:
            if name.startswith("matplotlib"):
                raise problem

    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Refusing(), *sys.meta_path])
    with pytest.raises(UserError, match=message):
        write_report(run)
