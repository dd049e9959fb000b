"""Ctrl-C, SIGTERM and SIGHUP: finish the step, then stop."""

import signal
import threading
from types import FrameType


class Interruption:
    """While entered, the first SIGINT, SIGTERM or SIGHUP is recorded and the second stops the process at once.

    SIGHUP never counts as the second: a closing terminal may send it several times, and a shutdown sends it after
    SIGTERM. If it is ignored, as under nohup, it stays ignored.

    Outside the main thread, where Python allows no signal handlers, it does nothing.

    Args:
        patient: record the second too. torchrun repeats to its workers the signals that the terminal has sent them, and
            kills them itself if they take too long.

    Attributes:
        signal: the number of the signal that arrived, or None.
    """

    def __init__(self, patient: bool = False) -> None:
        self._patient = patient
        self.signal: int | None = None
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *problem: object) -> None:
        self._put_back(*self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self.signal = self.signal or number
            return
        self.signal = number
        if not self._patient:
            self._put_back(signal.SIGINT, signal.SIGTERM)

    def _put_back(self, *numbers: int) -> None:
        for number in numbers:
            if number in self._previous:
                signal.signal(number, self._previous.pop(number))
