"""Many threads, or many tasks, with everything that can end a session; and their own account."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY
from reading import counted, value
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


def in_threads(threads: int, each: int, meanwhile: Callable[[Any], None]) -> Account:
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


async def in_tasks(
    tasks: int, at_once: int, meanwhile: Callable[[Any], None] = lambda _: None
) -> Account:
    """``tasks`` tasks make a session each; ``meanwhile`` is called again and again."""
    engine = create_async_engine(
        "sqlite+aiosqlite://", poolclass=AsyncAdaptedQueuePool, pool_size=at_once
    )
    maker = async_sessionmaker(engine)
    instrument(maker, name="load", spans="off")
    work = Tasks(maker)
    working = asyncio.create_task(work.run_tasks(tasks, at_once))
    while not working.done():
        meanwhile(maker)
        await asyncio.sleep(0.005)
    await working
    gc.collect()
    found = counted("load")
    uninstrument(maker)
    await engine.dispose()
    return found, dict(work.books)


def give_back_and_take_again() -> Callable[[Any], None]:
    """What does one of the two at each call, in turn."""
    turns = itertools.cycle([uninstrument, partial(instrument, name="load", spans="off")])

    def turn(maker: Any) -> None:
        next(turns)(maker)

    return turn


def pool_and_statements_agree(found: dict[str, float]) -> bool:
    """Each session that worked had one connection and gave it back; nobody else used the engine."""
    pool = {"db_client_connection_pool_name": "sqlite/"}
    worked = found["creations success"]
    assert value("db_client_connection_wait_time_seconds_count", **pool) == worked
    assert value("db_client_connection_use_time_seconds_count", **pool) == worked
    assert value("db_client_connection_pending_requests", **pool) == 0
    statements = [
        sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name == "db_client_operation_duration_seconds_count"
    ]
    return sum(statements) == found["queries"]


def nothing_is_open(found: dict[str, float]) -> bool:
    assert not LEDGER.factory("load").live
    return not [key for key in found if key.startswith("sqlalchemy_sessions")]
