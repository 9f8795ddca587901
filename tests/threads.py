"""Work done by many threads at once."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

THREADS = 16


def in_threads(work: Callable[[], object]) -> None:
    """Call ``work`` in ``THREADS`` threads, which begin together."""
    begin = threading.Barrier(THREADS)

    def run() -> None:
        begin.wait()
        work()

    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
