"""The documentation site builds without a warning: every link, anchor and name of the reference leads somewhere."""

import logging
import re
from pathlib import Path

import pytest
import yaml

import equilibria as eq

pytest.importorskip("mkdocs", reason="pip install 'equilibria[docs]'")

from mkdocs.commands.build import build
from mkdocs.config import load_config

ROOT = Path(__file__).parents[1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_site_builds_and_refers_to_every_public_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    with caplog.at_level(logging.WARNING):
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path)))
    assert caplog.messages == []
    for package in eq._PACKAGES:
        page = (tmp_path / "reference" / package / "index.html").read_text(encoding="utf-8")
        for name in eq._public(package):
            assert f'id="equilibria.{package}.{name}"' in page, name
    commands = (tmp_path / "commands" / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<h2 id=\"equilibria-(\w+)", commands)


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert re.search(rf": {re.escape(page.name)}$", text, re.MULTILINE), page.name
    assert yaml.safe_load(text)["strict"]
