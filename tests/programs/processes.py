"""A service of several processes, in prometheus_client's multi-process mode where that is set.

python processes.py WHAT FOLDER ...: each process writes what it should have counted into a file of
FOLDER, in the words of ``reading.counted``.
"""

from __future__ import annotations

import gc
import json
import logging
import multiprocessing
import os
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from reading import counted
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool
from workload import ONE, Sessions, new_database

from session_metrics_otel import SessionMetrics, SystemSessionMetrics, bind, instrument
from session_metrics_otel.ledger import LEDGER

engine = new_database(pool_size=8, pool_timeout=30)
maker = sessionmaker(engine)
instrument(maker, name="orders")


def keep_books(folder: str, books: Counter[str]) -> None:
    for _ in range(100):
        gc.collect()  # which does nothing where another thread is at it
        if not LEDGER.factory("orders").live:
            break
        time.sleep(0.01)
    Path(folder, f"books-{os.getpid()}.json").write_text(json.dumps(books))


def work(folder: str, seed: int, number: int) -> None:
    sessions = Sessions(maker, seed)
    sessions.run(number)
    keep_books(folder, sessions.books)


def children(folder: str, method: str) -> None:
    """The parent has counted, and has a session open, when its children begin."""
    context = multiprocessing.get_context(method)
    sessions = Sessions(maker)
    sessions.run(10)
    with maker() as inherited:
        inherited.execute(ONE)
        inherited.commit()
        processes = [context.Process(target=work, args=(folder, seed, 100)) for seed in range(4)]
        for process in processes:
            process.start()
        sessions.run(50)
        for process in processes:
            process.join()
            assert process.exitcode == 0
    sessions._book(inherited, "active", "committed", queries=1, transactions_committed=1)
    keep_books(folder, sessions.books)


def fork_and_look(folder: str) -> None:
    """A child that counts nothing adds nothing; what it inherits is its parent's to count."""
    sessions = Sessions(maker)
    sessions.run_each_way()
    inherited = maker()
    inherited.execute(ONE)
    record = SessionMetrics(factory="orders")
    record.state = "active"
    child = os.fork()
    if child == 0:
        record.query_count += 1
        record.close()
        inherited.invalidate()
        mine = counted("orders")
        os._exit(1 if mine else 0)
    assert os.waitpid(child, 0)[1] == 0, "the child has counts of its own"
    record.close()
    inherited.close()
    sessions._book(inherited, "active", queries=1, transactions_closed=1)
    sessions.books.update(counted_of_a_record())
    keep_books(folder, sessions.books)


def counted_of_a_record() -> dict[str, int]:
    return {
        "creations success": 1,
        "creation_duration_seconds_count": 1,
        "duration_seconds_count": 1,
        "queries_per_session_count": 1,
        "state_transitions created active": 1,
        "state_transitions active closed": 1,
    }


def until_killed(_: str) -> None:
    """Says a byte on stdout for each session that ended, and holds three open meanwhile."""
    held = [maker() for _ in range(3)]
    for session in held:
        session.execute(ONE)

    def commit_for_ever() -> None:
        sessions = Sessions(maker)
        while True:
            sessions.commits()
            os.write(1, b".")

    threads = [threading.Thread(target=commit_for_ever, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    threads[0].join()


def ends_with_one_open(_: str) -> None:
    global left_open  # noqa: PLW0603
    left_open = maker()
    left_open.execute(ONE)
    LEDGER.kept._write_gauges()


def all_families(_: str) -> None:
    """Prints every series with its value, as this process's own /metrics has it."""
    sessions = Sessions(maker)
    gc.disable()  # or the peak would be by when it comes for the session that nobody closes
    with bind(route="/orders"):
        sessions.run_each_way()
    gc.enable()
    gc.collect()
    refused = create_engine("sqlite:////nowhere/at/all.db", poolclass=NullPool)
    elsewhere = sessionmaker(refused)
    instrument(elsewhere, name="elsewhere")
    with suppress(OperationalError), elsewhere() as session:
        session.execute(ONE)
    small = new_database(pool_size=1, max_overflow=0, pool_timeout=0.01, pool_logging_name="small")
    crowded = sessionmaker(small)
    logging.getLogger("session_metrics_otel").setLevel(logging.ERROR)  # it names the holder
    instrument(crowded, name="crowded")
    with crowded() as holder:
        holder.execute(ONE)
        with suppress(PoolTimeoutError), crowded() as waiter:
            waiter.execute(ONE)
    record = SessionMetrics(factory="by hand")
    for state in ("active", "idle", "error", "rolled_back", "closing", "closed", "created"):
        record.state = state
    record.record_error("text")
    application = SystemSessionMetrics()
    application.increment_total_sessions()
    application.increment_active_sessions()
    application.update_average_duration(2)
    held = maker()
    held.execute(ONE)
    if hasattr(LEDGER.kept, "_write_gauges"):
        LEDGER.kept._write_gauges()
        from prometheus_client import CollectorRegistry
        from prometheus_client.multiprocess import MultiProcessCollector

        registry = CollectorRegistry()
        MultiProcessCollector(registry)
    else:
        from prometheus_client import REGISTRY as registry  # noqa: N811
    sys.stdout.write(json.dumps([
        [family.name, family.type, family.documentation, sample.name, sample.labels, sample.value]
        for family in registry.collect() for sample in family.samples
    ]))  # fmt: skip
    held.close()


if __name__ == "__main__":
    {
        "children": children,
        "fork": fork_and_look,
        "until_killed": until_killed,
        "ends_with_one_open": ends_with_one_open,
        "all_families": all_families,
    }[sys.argv[1]](*sys.argv[2:])
    engine.dispose()
