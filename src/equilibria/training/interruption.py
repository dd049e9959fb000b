"""Ctrl-C and SIGTERM: finish the step, then stop."""

import signal
import threading
from types import FrameType, TracebackType


class Interruption:
    """While entered, the first SIGINT or SIGTERM is remembered and the second stops the process at once.

    Outside the main thread, where Python allows no signal handlers, it does nothing.

    Args:
        patient: remember the second too. torchrun passes on to its workers what a terminal has sent them already, and
            kills them itself when they take too long.

    Attributes:
        signal: the number of the signal that arrived, or None.
    """

    def __init__(self, patient: bool = False) -> None:
        self._patient = patient
        self.signal: int | None = None
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._put_back()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        if not self._patient:
            self._put_back()

    def _put_back(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
