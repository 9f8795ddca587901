"""Threads and tasks at once: every family equals the workload's own account.

The same at full size is in tests/servers.
"""

from __future__ import annotations

import asyncio
import gc
import sys

import pytest
from load import (
    give_back_and_take_again,
    in_tasks,
    in_threads,
    nothing_is_open,
    pool_and_statements_agree,
)


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


def test_nothing_is_kept_of_what_has_finished():
    def work(threads, tasks):
        in_threads(threads, 20, lambda maker: None)
        asyncio.run(in_tasks(tasks, at_once=10))
        gc.collect()
        return sys.getallocatedblocks()

    work(20, 100)
    before = work(20, 100)
    assert work(100, 500) - before < 300  # of 2,500 sessions, 100 threads and 500 tasks
