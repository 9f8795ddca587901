"""64 threads and 10,000 tasks: needs no server, but more time than ``make test`` has."""

from __future__ import annotations

import pytest
from load import (
    give_back_and_take_again,
    in_tasks,
    in_threads,
    nothing_is_open,
    pool_and_statements_agree,
)

THREADS = 64
TASKS = 10_000


@pytest.mark.usefixtures("eager_switching")
def test_threads():
    found, books = in_threads(THREADS, 250, lambda maker: None)
    assert 1 <= found.pop("peak") <= THREADS * 250
    assert found == books
    assert sum(n for key, n in found.items() if key.startswith("creations")) == THREADS * 250
    assert pool_and_statements_agree(found)
    assert nothing_is_open(found)


@pytest.mark.usefixtures("eager_switching")
def test_threads_whose_factory_is_given_back_and_taken_again_meanwhile():
    found, books = in_threads(THREADS, 150, give_back_and_take_again())
    found.pop("peak")
    assert found == books
    assert 0 < sum(n for key, n in found.items() if key.startswith("creations")) < THREADS * 150
    assert nothing_is_open(found)


async def test_tasks():
    found, books = await in_tasks(TASKS // 4, 50)
    assert 1 <= found.pop("peak") <= TASKS // 4
    assert found == books
    assert sum(n for key, n in found.items() if key.startswith("creations")) == TASKS // 4
    assert nothing_is_open(found)


async def test_tasks_whose_factory_is_given_back_and_taken_again_meanwhile():
    found, books = await in_tasks(TASKS, 50, give_back_and_take_again())
    found.pop("peak")
    assert found == books
    assert 0 < sum(n for key, n in found.items() if key.startswith("creations")) < TASKS
    assert nothing_is_open(found)
