"""Calls into native code that hears no signal: a thread makes them, so that Ctrl-C ends the wait at once."""

from collections.abc import Callable
from threading import Event, Thread


def call_interruptibly(call: Callable[[], object]) -> None:
    """Calls a function in a thread of its own and waits for it; its exception is raised here.

    An interrupted call goes on unheard until it ends or the process does.

    Args:
        call: gives up the interpreter while it works, as native code should.
    """
    problems: list[BaseException] = []
    ended = Event()

    def run() -> None:
        try:
            call()
        except BaseException as problem:
            problems.append(problem)
        finally:
            ended.set()

    Thread(target=run, daemon=True).start()
    ended.wait()
    for problem in problems:
        raise problem
