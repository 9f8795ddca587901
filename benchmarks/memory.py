"""Resident memory over a million sessions: nothing is left of one but its counts.

python benchmarks/memory.py            a million, about two minutes
python benchmarks/memory.py 200000

Each thousand sessions run in a thread of their own; every tenth session is dropped unclosed, every
tenth fails. Ends with 1 where memory grew by a mebibyte: not one pointer kept for a session.
"""

from __future__ import annotations

import gc
import sys
import threading
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import QueuePool

from session_metrics_otel import instrument
from session_metrics_otel.ledger import LEDGER
from session_metrics_otel.watchdog import Watchdog

A_THREAD = 1000
LIMIT_KIB = 1024
ONE = text("select 1")
NO_TABLE = text("select * from nowhere")


def resident_kib() -> int:
    """Kibibytes of this process that are in memory, as Linux says."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def work(maker: sessionmaker[Any]) -> None:
    for number in range(A_THREAD):
        if number % 10 == 0:
            session = maker()
            session.execute(ONE)
            continue  # dropped unclosed
        with maker() as session:
            try:
                session.execute(NO_TABLE if number % 10 == 1 else ONE)
                session.commit()
            except OperationalError:
                session.rollback()


def main(sessions: int) -> int:
    engine = create_engine(
        "sqlite://",
        poolclass=QueuePool,
        max_overflow=-1,
        connect_args={"check_same_thread": False},
    )
    maker = sessionmaker(engine)
    instrument(maker, name="memory", spans="off")
    watchdog = Watchdog(overdue=300, idle_in_transaction=5)
    step = max(sessions // 10, A_THREAD)
    warm, at = 0, 0
    for done in range(0, sessions, A_THREAD):
        thread = threading.Thread(target=work, args=(maker,))
        thread.start()
        thread.join()
        if (done + A_THREAD) % step == 0:
            gc.collect()
            watchdog.scan()
            at = resident_kib()
            warm = warm or at
            print(f"{done + A_THREAD:>10,} sessions {at:>8,} KiB", flush=True)
    live = len(LEDGER.factory("memory").live)
    engine.dispose()
    grown = at - warm
    flat = grown < LIMIT_KIB and not live
    print(f"{'flat' if flat else 'NOT FLAT'}: {grown:+,} KiB since the first {step:,}, {live} live")
    return 0 if flat else 1


if __name__ == "__main__":
    import logging

    logging.getLogger("session_metrics_otel").setLevel(logging.ERROR)  # of a leak in every tenth
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000))
