"""Ctrl-C and SIGTERM as a request, not as an exception."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeVar

Batch = TypeVar("Batch")


def fetch(batches: Iterator[Batch], asked: Callable[[], bool]) -> Iterator[Batch | None]:
    """The batches; None where the request has ended the workers that fetch them too, and there will be no more."""
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError:  # torch's, for a worker that has gone
            if not asked():
                raise
            yield None
            return
        yield batch
        del batch


@contextlib.contextmanager
def asking(stop: Callable[[], None], *, quiet: bool = False) -> Iterator[None]:
    """Until the block ends, the first Ctrl-C or SIGTERM calls `stop`; the second does what it always does.

    Only where nobody else handles them, and in the main thread, which alone may.

    Args:
        stop: Ends the work soon.
        quiet: Print nothing then.
    """
    usual: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    ours = threading.current_thread() is threading.main_thread()
    mine = {number: action for number, action in usual.items() if ours and signal.getsignal(number) is action}
    process = os.getpid()

    def ask(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, usual[signal.Signals(number)])
        if os.getpid() != process:  # a worker of a DataLoader, which has inherited this
            return
        if hasattr(signal, "SIGCHLD") and signal.SIGCHLD not in mine:
            # The signal may end the workers of a DataLoader too: torch would say so by an error in mid-step.
            mine[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        stop()
        if not quiet:
            print("\nstopping after this batch (once more: at once)", file=sys.stderr)

    for number in mine:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, action in mine.items():
            signal.signal(number, action)
