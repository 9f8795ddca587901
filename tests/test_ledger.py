from __future__ import annotations

import gc
import logging
import os
import sys
import threading

import pytest
from reading import counted, value

from session_metrics_otel import SessionMetrics, catalog
from session_metrics_otel.ledger import (
    LEDGER,
    MAX_ERROR_TYPES,
    MAX_FACTORIES,
    PENDING_LIMIT,
    Exemplar,
    Histogram,
    Tally,
)

THREADS = 16


@pytest.fixture
def eager_switching():
    """Let threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(work) -> None:
    begin = threading.Barrier(THREADS)

    def run():
        begin.wait()
        work()

    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class TestTally:
    def test_reading_takes_nothing(self):
        tally = Tally()
        for _ in range(3):
            tally.hit()
        assert [tally.read(), tally.read(), tally.read()] == [3, 3, 3]
        tally.hit()
        assert tally.read() == 4

    def test_adding_more_than_one(self):
        tally = Tally()
        tally.add(1)
        tally.add(10)
        tally.add(0)
        tally.add(-5)
        assert tally.read() == 11

    @pytest.mark.usefixtures("eager_switching")
    def test_is_exact_under_threads_that_count_and_read(self):
        tally = Tally()
        seen = []

        def work():
            for n in range(3000):
                tally.hit()
                if n % 100 == 0:
                    seen.append(tally.read())

        in_threads(work)
        assert tally.read() == THREADS * 3000
        assert max(seen) <= THREADS * 3000


class TestHistogram:
    def test_bounds_are_inclusive(self):
        histogram = Histogram((1.0, 5.0))
        for number in (0.5, 1.0, 1.1, 5.0, 5.1):
            histogram.observe(number)
        counts, total, _ = histogram.read()
        assert counts == [2, 2, 1]
        assert total == pytest.approx(12.7)

    @pytest.mark.parametrize("observed", [PENDING_LIMIT - 1, PENDING_LIMIT + 1, 5 * PENDING_LIMIT])
    def test_nothing_is_lost_when_it_is_folded(self, observed):
        histogram = Histogram((1.0,))
        for _ in range(observed):
            histogram.observe(0.5)
        assert histogram.read() == ([observed, 0], observed * 0.5, {})

    def test_nothing_waits_without_end(self):
        histogram = Histogram((1.0,))
        for _ in range(10 * PENDING_LIMIT):
            histogram.observe(0.5)
        assert len(histogram.pending) <= PENDING_LIMIT

    @pytest.mark.usefixtures("eager_switching")
    def test_is_exact_under_threads_that_observe_and_read(self):
        histogram = Histogram((1.0, 2.0))

        def work():
            for n in range(1500):
                histogram.observe(n % 3 + 0.5)
                if n % 200 == 0:
                    histogram.read()

        in_threads(work)
        assert histogram.read() == ([THREADS * 500] * 3, THREADS * 500 * 4.5, {})

    def test_keeps_the_newest_exemplar_of_each_bucket(self):
        histogram = Histogram((1.0,))
        old, new, above = (
            Exemplar(number, f"{trace}", "s", 0.0) for number, trace in ((0.5, 1), (0.7, 2), (3, 3))
        )
        for exemplar in (old, new, above):
            histogram.exemplify(exemplar)
        assert histogram.read().exemplars == {0: new, 1: above}


class TestThreads:
    @pytest.mark.usefixtures("eager_switching")
    def test_every_count_of_records_is_exact(self):
        each = 150

        def work():
            for n in range(each):
                metrics = SessionMetrics(factory="busy")
                metrics.state = "active"
                metrics.increment_query_count()
                if n % 3 == 0:
                    metrics.record_error(OSError())
                    metrics.state = "rolled_back"
                    metrics.increment_transaction_count(outcome="rolled_back")
                else:
                    metrics.state = "committed"
                    metrics.increment_transaction_count(outcome="committed")
                if n % 5:
                    metrics.close()

        in_threads(work)
        gc.collect()
        found = counted("busy")
        peak = found.pop("peak")
        assert 1 <= peak <= THREADS * each
        sessions = THREADS * each
        failed = sessions // 3
        closed = sessions - sessions // 5
        assert found == {
            "creations success": sessions,
            "creation_duration_seconds_count": sessions,
            "queries": sessions,
            "errors OSError": failed,
            "transactions committed": sessions - failed,
            "transactions rolled_back": failed,
            "state_transitions created active": sessions,
            "state_transitions active error": failed,
            "state_transitions error rolled_back": failed,
            "state_transitions active committed": sessions - failed,
            "state_transitions committed closed": sessions - failed,
            "state_transitions rolled_back closed": failed,
            "duration_seconds_count": closed,
            "queries_per_session_count": closed,
        }

    @pytest.mark.usefixtures("eager_switching")
    def test_creations_never_go_down_while_others_count(self):
        stop = threading.Event()
        readings = []

        def read():
            while not stop.is_set():
                found = counted("busy")
                readings.append([found.get(f"creations {end}", 0) for end in ("success", "unused")])

        reader = threading.Thread(target=read)
        reader.start()

        def work():
            for n in range(100):
                metrics = SessionMetrics(factory="busy")
                if n % 2:
                    metrics.query_count += 1
                metrics.close()

        in_threads(work)
        stop.set()
        reader.join()
        assert readings == sorted(readings, key=lambda pair: pair[0])
        assert [pair[1] for pair in readings] == sorted(pair[1] for pair in readings)
        assert counted("busy")["creations success"] == THREADS * 50
        assert counted("busy")["creations unused"] == THREADS * 50


class TestBounds:
    def test_error_types_end_in_other(self):
        metrics = SessionMetrics(factory="odd")
        for n in range(MAX_ERROR_TYPES + 10):
            metrics.record_error(type(f"Odd{n}", (Exception,), {})())
        found = {key: n for key, n in counted("odd").items() if key.startswith("errors")}
        assert len(found) == MAX_ERROR_TYPES + 1
        assert found["errors _OTHER"] == 10
        assert found["errors Odd0"] == 1

    def test_factories_end_in_other_with_a_warning(self, caplog):
        kept = []
        with caplog.at_level(logging.WARNING, logger="session_metrics_otel"):
            kept += [SessionMetrics(factory=f"factory-{n}") for n in range(MAX_FACTORIES + 5)]
        assert len(LEDGER._factories) == MAX_FACTORIES + 1
        assert kept[-1].factory == "_OTHER"
        assert counted("_OTHER")["sqlalchemy_sessions created"] == 6
        (warning,) = caplog.records
        assert "give one per sessionmaker, not per request" in warning.getMessage()


class TestDefaultFactory:
    def test_is_not_shown_before_its_first_session(self):
        assert value("sqlalchemy_session_queries_total", factory="default") is None
        SessionMetrics().close()
        assert value("sqlalchemy_session_queries_total", factory="default") == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
class TestFork:
    def test_a_child_begins_at_nothing_and_the_parent_goes_on(self):
        inherited = SessionMetrics(factory="forked")
        inherited.state = "active"
        inherited.increment_query_count(3)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                before = counted("forked")
                inherited.increment_query_count()
                inherited.close()
                own = SessionMetrics(factory="forked")
                own.increment_query_count(2)
                own.close()
                os.write(writing, repr((before, counted("forked"))).encode())
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as answer:
            before, after = eval(answer.read())
        os.waitpid(child, 0)
        assert before == {}
        assert after == {
            "creations success": 1,
            "duration_seconds_count": 1,
            "peak": 1,
            "queries": 2,
            "queries_per_session_count": 1,
            "state_transitions created closed": 1,
        }
        inherited.close()
        assert counted("forked")["queries"] == 3
        assert counted("forked")["duration_seconds_count"] == 1


def test_the_catalogue_declares_each_name_once():
    names = [metric.name for metric in catalog.CATALOG]
    assert len(names) == len(set(names))
    assert len({metric.prometheus_name for metric in catalog.CATALOG}) == len(names)
