"""Threads and tasks at once: every family equals the workload's own account.

The same at full size is in tests/servers.
"""

from __future__ import annotations

import gc
import sys
import threading
from itertools import pairwise

import pytest
from load import (
    give_back_and_take_again,
    in_tasks,
    in_threads,
    nothing_is_open,
    pool_and_statements_agree,
)
from reading import counted
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import AsyncAdaptedQueuePool
from workload import Sessions, Tasks, new_database

from session_metrics_otel import instrument, uninstrument


@pytest.mark.usefixtures("eager_switching")
def test_threads():
    found, books = in_threads(16, 60, lambda maker: None)
    assert 1 <= found.pop("peak") <= 16 * 60
    assert found == books
    assert pool_and_statements_agree(found)
    assert nothing_is_open(found)


@pytest.mark.usefixtures("eager_switching")
def test_threads_whose_factory_is_given_back_and_taken_again_meanwhile():
    found, books = in_threads(16, 60, give_back_and_take_again())
    found.pop("peak")
    assert found == books
    assert nothing_is_open(found)


async def test_tasks_whose_factory_is_given_back_and_taken_again_meanwhile():
    found, books = await in_tasks(200, 20, give_back_and_take_again())
    found.pop("peak")
    assert found == books
    assert nothing_is_open(found)


async def test_tasks():
    found, books = await in_tasks(200, at_once=20)
    assert 1 <= found.pop("peak") <= 20
    assert found == books
    assert nothing_is_open(found)


async def test_nothing_is_kept_of_what_has_finished():
    engine = new_database(max_overflow=-1)
    async_engine = create_async_engine("sqlite+aiosqlite://", poolclass=AsyncAdaptedQueuePool)
    maker, async_maker = sessionmaker(engine), async_sessionmaker(async_engine)
    for each in (maker, async_maker):
        instrument(each, name="load", spans="off")

    async def work():
        threads = [threading.Thread(target=Sessions(maker, n).run, args=(15,)) for n in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        await Tasks(async_maker).run_tasks(150, at_once=10)
        for _ in range(3):
            gc.collect()
        counted("load")  # what waits to be put into the buckets
        return sys.getallocatedblocks()

    blocks = [await work() for _ in range(6)]
    # Caches fill now and then; one block kept for a thread, a task or a session is there each time.
    assert min(after - before for before, after in pairwise(blocks)) < 50
    for each in (maker, async_maker):
        uninstrument(each)
    engine.dispose()
    await async_engine.dispose()
