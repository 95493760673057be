"""Ctrl-C and SIGTERM as a request to stop, and what becomes of the program afterwards."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

TERMINATED = 128 + signal.SIGTERM
"""The exit status of a program that SIGTERM ended, as a shell reports it."""


@contextlib.contextmanager
def stop_on_signal(stop: Callable[[int], None], *, quiet: bool = False) -> Iterator[None]:
    """Call `stop` at the first Ctrl-C or SIGTERM in the block; the second does what it always does.

    Only the main thread may handle signals, and only those that nobody else handles are taken over.

    Args:
        stop: Is given the number of the signal, and ends the work soon.
        quiet: Print nothing.
    """
    usual: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    is_main_thread = threading.current_thread() is threading.main_thread()
    taken = {
        number: action for number, action in usual.items() if is_main_thread and signal.getsignal(number) is action
    }
    process = os.getpid()

    def handle(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, usual[signal.Signals(number)])
        if os.getpid() != process:  # a worker of a DataLoader, which has inherited this handler
            return
        if hasattr(signal, "SIGCHLD") and signal.SIGCHLD not in taken:
            # The signal may end the workers of a DataLoader too: torch would raise in the middle of a step.
            taken[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        stop(number)
        if not quiet:
            print("\nstopping after this batch (once more: at once)", file=sys.stderr)

    for number in taken:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, action in taken.items():
            signal.signal(number, action)


def end_program(number: int) -> None:
    """Do what the signal asked for, once the work is saved.

    SIGTERM exits with status 143; `SystemExit` runs the program's own `finally` blocks, and works for the first process
    of a container too, which the signal's default action spares. Ctrl-C raises KeyboardInterrupt, except in an
    interactive session, where people want their objects back.

    Raises:
        SystemExit: The signal was SIGTERM.
        KeyboardInterrupt: It was Ctrl-C, and this is a script.
    """
    if number == signal.SIGTERM:
        raise SystemExit(TERMINATED)
    if number == signal.SIGINT and not is_interactive():
        raise KeyboardInterrupt


def is_interactive() -> bool:
    """Whether a person types at a Python prompt, in IPython or in a notebook."""
    return hasattr(sys, "ps1") or bool(sys.flags.interactive) or "__IPYTHON__" in vars(sys.modules["builtins"])
