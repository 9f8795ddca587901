"""How long a scan of 100,000 live sessions takes, and how long it holds up a request meanwhile.

python benchmarks/watchdog.py
"""

from __future__ import annotations

import threading
import time

from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from session_metrics_otel import instrument
from session_metrics_otel.watchdog import Watchdog

SESSIONS = 100_000


def main() -> None:
    engine = create_engine("sqlite://")
    maker = sessionmaker(engine)
    instrument(maker, name="bench")
    sessions = [maker() for _ in range(SESSIONS)]
    watchdog = Watchdog(overdue=300, idle_in_transaction=5)
    done, waits = threading.Event(), []

    def request() -> None:
        while not done.is_set():
            began = time.perf_counter()
            time.sleep(0.001)
            waits.append(time.perf_counter() - began - 0.001)

    requests = threading.Thread(target=request)
    requests.start()
    time.sleep(0.5)
    quiet, waits[:] = sorted(waits), []
    began = time.perf_counter()
    watchdog.scan()
    took = time.perf_counter() - began
    done.set()
    requests.join()
    during = sorted(waits)
    print(f"scan of {SESSIONS} sessions: {took * 1000:.0f} ms")
    for name, found in (("without a scan", quiet), ("during the scan", during)):
        print(f"a 1 ms pause is late by {found[-1] * 1000:.2f} ms at most, {name}")
    for session in sessions:
        session.close()
    engine.dispose()


if __name__ == "__main__":
    main()
