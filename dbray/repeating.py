"""Work that is repeated from a thread of its own while something else goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeating(work: Callable[[], object], every_seconds: float) -> Iterator[None]:
    """Call `work` regularly, as long as the block lasts; it must not raise."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(every_seconds):
            work()

    thread = threading.Thread(target=repeat, name="repeating", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
