"""Many threads, or many tasks, with everything that can end a session; and their own account."""

from __future__ import annotations

import gc
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from reading import counted
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import AsyncAdaptedQueuePool
from workload import Sessions, Tasks, new_database

from session_metrics_otel import instrument, uninstrument
from session_metrics_otel.ledger import LEDGER

if TYPE_CHECKING:
    from collections.abc import Callable

Account = tuple[dict[str, float], dict[str, int]]
"""What was counted, and what should have been."""


def in_threads(threads: int, each: int, meanwhile: Callable[[sessionmaker], None]) -> Account:
    """``threads`` threads make ``each`` sessions; ``meanwhile`` is called again and again."""
    engine = new_database(max_overflow=-1)  # a session that is collected gives back late
    maker = sessionmaker(engine)
    instrument(maker, name="load", spans="off")
    workers = [Sessions(maker, seed) for seed in range(threads)]
    begin = threading.Barrier(threads)

    def run(sessions: Sessions) -> None:
        begin.wait()
        sessions.run(each)

    running = [threading.Thread(target=run, args=(sessions,)) for sessions in workers]
    for thread in running:
        thread.start()
    while any(thread.is_alive() for thread in running):
        meanwhile(maker)
        time.sleep(0.001)
    for thread in running:
        thread.join()
    books: Counter[str] = Counter()
    for sessions in workers:
        assert sessions.done == each
        books.update(sessions.books)
    gc.collect()
    found = counted("load")
    uninstrument(maker)
    engine.dispose()
    return found, dict(books)


async def in_tasks(tasks: int, at_once: int) -> Account:
    engine = create_async_engine(
        "sqlite+aiosqlite://", poolclass=AsyncAdaptedQueuePool, pool_size=at_once
    )
    maker = async_sessionmaker(engine)
    instrument(maker, name="load", spans="off")
    work = Tasks(maker)
    await work.run_tasks(tasks, at_once)
    gc.collect()
    found = counted("load")
    uninstrument(maker)
    await engine.dispose()
    return found, dict(work.books)


def give_back_and_take_again(maker: sessionmaker) -> None:
    uninstrument(maker)
    instrument(maker, name="load", spans="off")


def nothing_is_open(found: dict[str, float]) -> bool:
    assert not LEDGER.factory("load").live
    return not [key for key in found if key.startswith("sqlalchemy_sessions")]
