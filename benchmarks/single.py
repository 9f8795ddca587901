"""What is measured once in a process of its own: ``single.py NAME`` prints its figures as JSON."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import timeit
import tracemalloc
from statistics import median
from typing import TYPE_CHECKING, Any

import record

if TYPE_CHECKING:
    from collections.abc import Callable

DEPENDENCIES = (
    "import opentelemetry.context, opentelemetry.trace, prometheus_client, sqlalchemy.orm"
)
IMPORT = f"""
import collections, dataclasses, time
{DEPENDENCIES}
made = 0.0
def timed(function):
    def call(*args, **kwargs):
        global made
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            made += time.perf_counter() - began
    return call
dataclasses._process_class = timed(dataclasses._process_class)
collections.namedtuple = timed(collections.namedtuple)
began = time.perf_counter()
import session_metrics_otel
print((time.perf_counter() - began) * 1000, made * 1000)
"""

LIVE = 10_000
MANY = 100_000
FINISHED = 20_000


def the_record() -> dict[str, float]:
    """1,000 records created and read, beside a plain dataclass of the same fields."""
    return record.measure()


def scrape() -> dict[str, float]:
    """Milliseconds of a scrape, by factories and by live sessions."""
    from prometheus_client import REGISTRY, Metric, generate_latest

    from session_metrics_otel import SessionMetrics, SessionState

    found = {}
    made: list[SessionMetrics] = []

    def lived(factory: str) -> None:
        one = SessionMetrics(factory=factory)
        one.state = SessionState.ACTIVE
        one.increment_query_count()
        one.increment_transaction_count(outcome="committed")
        one.close_session()

    def ms() -> float:
        return median(timeit.repeat(generate_latest, number=1, repeat=15)) * 1000

    for factories in (1, 10, 100):
        for number in range(factories):
            lived(f"factory-{number}")
        found[f"{factories} factories"] = ms()
    families = list(REGISTRY.collect())

    class Ready:
        def collect(self) -> list[Metric]:
            return families

    ready: Any = Ready()
    writing = timeit.repeat(lambda: generate_latest(ready), number=1, repeat=15)
    found["100 factories, of that prometheus_client's writing of the lines"] = 1000 * median(
        writing
    )
    made += [SessionMetrics(factory="factory-0") for _ in range(MANY)]
    found[f"100 factories, {MANY} live sessions"] = ms()
    return found


def memory() -> dict[str, float]:
    """Bytes that one live and one finished session cost beyond the bare session."""
    from peers import BARE, METRICS, PEERS
    from works import in_memory

    found = {}
    for name in (BARE, METRICS):
        maker = in_memory(PEERS[name])
        with maker() as session:
            session.connection()
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        live = [maker() for _ in range(LIVE)]
        found[f"live, {name}"] = (tracemalloc.get_traced_memory()[0] - before) / LIVE
        for session in live:
            session.close()
        del live, session
        for kept in (False, True):  # the first time tables grow to their size
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(FINISHED):
                with maker() as session:
                    session.connection()
            gc.collect()
            if kept:
                grown = tracemalloc.get_traced_memory()[0] - before
                found[f"finished, {name}"] = grown / FINISHED
        tracemalloc.stop()
    return {
        "live session": found[f"live, {METRICS}"] - found[f"live, {BARE}"],
        "finished session": found[f"finished, {METRICS}"] - found[f"finished, {BARE}"],
    }


def imports() -> dict[str, float]:
    """Milliseconds that importing the package takes, once its dependencies are imported."""
    command = [sys.executable, "-c", IMPORT]
    runs = [subprocess.run(command, capture_output=True, check=True) for _ in range(9)]  # noqa: S603
    taken = [[float(word) for word in run.stdout.split()] for run in runs]
    whole, made = zip(*taken, strict=True)
    return {"import": median(whole), "of that, making dataclasses and named tuples": median(made)}


def import_by_module() -> dict[str, float]:
    """Milliseconds that each module takes to import, without those that it imports: the dearest."""
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-c",
        f"{DEPENDENCIES}\nimport session_metrics_otel",
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr  # noqa: S603
    lines = [line.split("|") for line in said.splitlines() if "session_metrics_otel" in line]
    taken = {name.strip(): int(own.rpartition(":")[2]) / 1000 for own, _, name in lines}
    dearest = sorted(taken, key=lambda name: -taken[name])[:8]
    return {**{name: taken[name] for name in dearest}, f"all {len(taken)}": sum(taken.values())}


def instructions() -> dict[str, float]:
    """Instructions of Python's virtual machine that a session of one statement runs in our code."""
    import hot_path
    from peers import METRICS, PEERS
    from works import session

    counted = hot_path.count(session(PEERS[METRICS], "").run)
    return {**counted.by_function, "together": counted.instructions}


SINGLE: dict[str, Callable[[], dict[str, float]]] = {
    "record": the_record,
    "scrape": scrape,
    "memory": memory,
    "import": imports,
    "import_by_module": import_by_module,
    "instructions": instructions,
}

if __name__ == "__main__":
    print(json.dumps(SINGLE[sys.argv[1]]()))
