"""The playground looks like a run's report: the same colours, and the shades that the command line has."""

import re
from pathlib import Path

from equilibria import report, serving
from equilibria.cli.colours import _SHADES, shade

REPORT = Path(report.__file__).with_name("page.css").read_text(encoding="utf-8")
FOLDER = Path(serving.__file__).with_name("playground")


def test_shades_and_colours_are_the_reports() -> None:
    page = (FOLDER / "page.css").read_text(encoding="utf-8")
    for pattern in (r"^\.e\d.*$", r"--heat: [^;]+;", r"--strong: [^;]+;", r"--(?:page|card|ink|muted|line): [^;]+;"):
        assert re.findall(pattern, page, re.MULTILINE) == re.findall(pattern, REPORT, re.MULTILINE) != []


def test_levels_are_the_command_lines() -> None:
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    rule = re.search(r"function level\(evaluations\) \{\n(.*?)\n\}", script, re.DOTALL)
    assert rule is not None
    python = re.sub(r"if \((.*?)\) return (\d);", r"if \1: return \2", rule.group(1))
    python = python.replace("Math.", "").replace(";", "")
    scope: dict[str, object] = {}
    exec(f"def level(evaluations):\n{python}", scope)
    level = scope["level"]
    assert callable(level)
    for evaluations in range(1, 40):
        number = level(evaluations)
        assert isinstance(number, int)
        background = _SHADES[number][1]
        assert shade(evaluations).bgcolor is not None
        assert str(shade(evaluations)).endswith(background)


def test_nothing_comes_from_elsewhere() -> None:
    for file in FOLDER.iterdir():
        assert not re.search(r"https?://|url\(|@import", file.read_text(encoding="utf-8")), file
