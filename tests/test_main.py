"""`python -m equilibria`, interrupted while it imports."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from processes import environment

DEAF = """
import signal
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    pass  # as some libraries do
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)


def test_an_import_that_swallows_ctrl_c_ends_the_process(tmp_path: Path) -> None:
    (tmp_path / "deaf.py").write_text(DEAF)
    program = (
        "import signal, sys; from equilibria import __main__ as m; signal.signal(signal.SIGINT, m._interrupt);"
        f"sys.path.append({str(tmp_path)!r}); import deaf; print('went on')"
    )
    ended = python("-c", program)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "interrupted\n")


def test_elsewhere_ctrl_c_is_an_exception(tmp_path: Path) -> None:
    program = (
        "import signal; from equilibria import __main__ as m; signal.signal(signal.SIGINT, m._interrupt)\n"
        "try: signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt: print('caught')"
    )
    assert python("-c", program).stdout == "caught\n"


@pytest.mark.parametrize("module", ["cyclopts", "numpy", "torch", "equilibria.training"])
def test_ctrl_c_while_modules_are_imported(tmp_path: Path, module: str) -> None:
    """The interpreter says which it has just imported part of."""
    (tmp_path / "recipe.toml").write_text('[run]\nname = "none"\n')
    command = [sys.executable, "-X", "importtime", "-m", "equilibria", "train", str(tmp_path / "recipe.toml")]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stderr is not None
        said: list[str] = []
        for line in process.stderr:
            if not line.startswith("import time:"):
                said.append(line)
            elif line.rpartition("|")[2].strip().startswith(f"{module}.") and process.returncode is None:
                process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    assert said == ["interrupted\n"]
