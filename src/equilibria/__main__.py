"""`python -m equilibria` is `equilibria`, which Ctrl-C ends without a traceback from its first moment on."""

import os
import signal
import sys
from types import FrameType

_INTERRUPTED = 128 + signal.SIGINT


def run() -> int:
    """Runs the command of this process's arguments; returns its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    from equilibria.cli.app import main

    return main()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt; in an import, which may swallow it or leave half a module, it ends the process."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
            os.write(2, b"interrupted\n")
            os._exit(_INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(run())
