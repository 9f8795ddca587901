from __future__ import annotations

import gc
import logging
import os
import threading

import pytest
from reading import counted, value
from threads import THREADS, in_threads

from session_metrics_otel import SessionMetrics, catalog
from session_metrics_otel.factory_ledger import MAX_ERROR_TYPES
from session_metrics_otel.ledger import COLLECTED, LEDGER, MAX_FACTORIES


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


class TestGarbageCollector:
    def test_a_session_that_it_ends_in_the_middle_of_a_look_is_counted(self):
        """Whatever makes a series may run wherever something is allocated, also in a look."""
        ended = []

        class Forgotten:
            def __init__(self):
                self.itself = self

            def __del__(self):
                if len(ended) < 200:
                    LEDGER.tally(catalog.TELEMETRY_FAULTS, f"part-{len(ended)}").hit()
                    ended.append(1)
                    Forgotten()

        before = gc.get_threshold()
        Forgotten()
        gc.set_threshold(1, 1, 1)
        try:
            while len(ended) < 200:
                LEDGER.snapshot()
        finally:
            gc.set_threshold(*before)
        faults = LEDGER.snapshot()[catalog.TELEMETRY_FAULTS]
        assert faults == {(f"part-{n}",): 1 for n in range(200)}


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
        dropped = [SessionMetrics(factory="forked", state="active")]
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
                dropped.clear()
                gc.collect()
                found = before, counted("forked"), len(COLLECTED)
                os.write(writing, repr(found).encode())
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as answer:
            before, after, reported = eval(answer.read())
        os.waitpid(child, 0)
        assert before == {}
        assert reported == 0
        assert after == {
            "creations success": 1,
            "duration_seconds_count": 1,
            "peak": 1,
            "queries": 2,
            "queries_per_session_count": 1,
            "state_transitions created closed": 1,
        }
        for record in (inherited, *dropped):
            record.close()
        assert counted("forked")["queries"] == 3
        assert counted("forked")["duration_seconds_count"] == 2


def test_the_catalogue_declares_each_name_once():
    names = [metric.name for metric in catalog.CATALOG]
    assert len(names) == len(set(names))
    assert len({metric.prometheus_name for metric in catalog.CATALOG}) == len(names)
