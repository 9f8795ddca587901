"""What the process does around sessions: clashing names, clocks, signals, the interpreter's end."""

from __future__ import annotations

import datetime as dt
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from faults.outcomes import FACTORY, bare, instrumented, shop
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from reading import counted, value
from sqlalchemy import text
from sqlalchemy.pool import QueuePool

from session_metrics_otel import prometheus


def run(program, *arguments, **environment):
    """Run ``program`` in a process of its own: (exit code, standard output, standard error)."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )
    return ran.returncode, ran.stdout, ran.stderr


class Clashing(Collector):
    """Somebody else's collector, with one of our names."""

    def describe(self):
        return self.collect()

    def collect(self):
        family = Metric("sqlalchemy_sessions", "somebody else's", "gauge")
        family.add_sample("sqlalchemy_sessions", {}, 7)
        return [family]


class TestRegistry:
    @pytest.mark.faults
    def test_a_name_that_is_taken_is_logged_once_and_left_to_its_owner(self, caplog):
        registry = CollectorRegistry()
        registry.register(Clashing())
        with caplog.at_level(logging.INFO, logger="session_metrics_otel"):
            assert prometheus.register(registry) is None
            assert prometheus.register(registry) is None
        [record] = [r for r in caplog.records if r.name == "session_metrics_otel"]
        assert "sqlalchemy_sessions" in record.getMessage()
        assert registry.get_sample_value("sqlalchemy_sessions") == 7

    @pytest.mark.faults
    def test_a_registry_that_raises_is_no_trouble_of_the_application(self):
        class Refusing(CollectorRegistry):
            def register(self, collector):
                raise RuntimeError("no more collectors")

        assert prometheus.register(Refusing()) is None

    def test_an_import_into_a_registry_that_holds_our_name_succeeds(self):
        code, out, err = run(
            """
            from prometheus_client import Gauge, generate_latest
            Gauge("sqlalchemy_sessions", "somebody else's").set(7)
            import session_metrics_otel
            from sqlalchemy import create_engine, text
            from sqlalchemy.orm import sessionmaker
            engine = create_engine("sqlite://")
            Session = sessionmaker(engine)
            session_metrics_otel.instrument(Session, name="orders")
            with Session() as session:
                print(session.scalar(text("select 1")))
            engine.dispose()
            print(generate_latest().decode().count("sqlalchemy_"))
            """
        )
        assert (code, out.split()) == (0, ["1", "3"])  # HELP, TYPE and the sample of the owner
        assert err.count("Session telemetry (registry) failed") == 1
        assert "sqlalchemy_sessions" in err


class JumpingClock:
    """The wall clock, each reading of it a day before or after the last."""

    def __init__(self, monkeypatch, days):
        self.at = time.time()
        self.days = days
        monkeypatch.setattr(time, "time", self.now)
        monkeypatch.setattr(time, "time_ns", lambda: int(self.now() * 1e9))
        from session_metrics_otel import tracing
        from session_metrics_otel.hooks import observed_record

        monkeypatch.setattr(tracing, "time", self.now)
        monkeypatch.setattr(observed_record, "time_ns", lambda: int(self.now() * 1e9))

    def now(self):
        self.at += self.days * 86400
        return self.at


class TestClock:
    @pytest.mark.parametrize("days", [-1, 1])
    def test_durations_are_the_monotonic_clocks(self, new_engine, monkeypatch, days, provider):
        expected = bare(new_engine)
        JumpingClock(monkeypatch, days)
        assert instrumented(new_engine, tracer_provider=provider) == expected
        for name in ("duration", "creation_duration"):
            total = value(f"sqlalchemy_session_{name}_seconds_sum", factory=FACTORY)
            assert 0 < total < 60

    @pytest.mark.parametrize("days", [-1, 1])
    def test_a_records_own_times_stay_in_order(self, new_engine, monkeypatch, days):
        from session_metrics_otel import metrics_for

        def work(maker):
            session = maker()
            record = metrics_for(session)
            JumpingClock(monkeypatch, days)
            shop(maker)
            session.close()
            return record

        record = instrumented(new_engine, work)
        assert record.created_at <= record.last_activity_at <= record.closed_at
        open_for = record.closed_at - record.created_at
        assert dt.timedelta() <= open_for < dt.timedelta(minutes=1)
        assert 0 <= record.get_age_seconds() < 60

    @pytest.mark.parametrize("days", [-1, 1])
    def test_a_sessions_span_is_as_long_as_the_session(
        self, new_engine, monkeypatch, provider, spans, days
    ):
        JumpingClock(monkeypatch, days)
        instrumented(new_engine, tracer_provider=provider)
        sessions = [s for s in spans.get_finished_spans() if s.name == f"session {FACTORY}"]
        assert len(sessions) == 3
        for span in sessions:
            assert 0 < span.end_time - span.start_time < 60e9

    def test_a_record_kept_by_hand_never_has_a_negative_age(self):
        from session_metrics_otel import SessionMetrics

        ahead = dt.datetime.now(dt.timezone.utc) + dt.timedelta(days=1)
        record = SessionMetrics(created_at=ahead)
        record.close_session()
        assert record.total_time_ms == 0
        assert value("sqlalchemy_session_duration_seconds_sum", factory="default") == 0


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the signal needs a timer of POSIX")
class TestSignals:
    def test_a_handler_that_uses_a_session_while_another_is_in_use(self, new_engine):
        """One made before: SQLAlchemy takes a lock to make one, and a handler may come inside."""
        handled = []

        def work(maker):
            # Both connections are there: to open one the pool takes a lock, too.
            with maker() as mine, maker() as others:
                for session in (mine, others):
                    session.scalar(text("select 1"))
            mine, handlers = maker(), maker()

            def handler(_signal, _frame):
                with handlers:
                    handled.append(handlers.scalar(text("select 1")))

            before = signal.signal(signal.SIGALRM, handler)
            done = 0
            try:
                for awaited in range(1, 21):
                    signal.setitimer(signal.ITIMER_REAL, 0.001)
                    while len(handled) < awaited:
                        with mine:
                            mine.scalar(text("select 1"))
                        done += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)
            return done

        done = instrumented(
            lambda: new_engine(poolclass=QueuePool, connect_args={"check_same_thread": False}),
            work,
        )
        assert handled == [1] * 20
        found = counted(FACTORY)
        assert found["creations success"] == found["queries"] == done + 20 + 2
        assert not [key for key in found if key.startswith("sqlalchemy_sessions ")]

    @pytest.mark.parametrize("where", ["in a statement", "between two"])
    def test_a_handler_that_raises_ends_the_work_as_it_would(self, new_engine, monkeypatch, where):
        """Not anywhere: what is raised in a finalizer reaches nobody, and the work would go on."""

        class Stop(BaseException):
            pass

        def handler(_signal, _frame):
            raise Stop

        def interrupted(*_given):
            signal.raise_signal(signal.SIGALRM)

        def work(maker):
            before = signal.signal(signal.SIGALRM, handler)
            try:
                with maker() as session:
                    session.scalar(text("select 1"))
                    if where == "in a statement":
                        monkeypatch.setattr(session.bind.dialect, "do_execute", interrupted)
                        session.scalar(text("select 1"))
                    interrupted()
            except Stop:
                return "stopped"
            finally:
                signal.signal(signal.SIGALRM, before)

        assert instrumented(new_engine, work) == "stopped"
        found = counted(FACTORY)
        assert found["queries"] == (2 if where == "in a statement" else 1)
        assert not [key for key in found if key.startswith("sqlalchemy_sessions ")]


SHUTDOWN = """
import sys
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker

engine = create_engine("sqlite://")
Session = sessionmaker(engine)
if "instrumented" in sys.argv:
    import session_metrics_otel
    from session_metrics_otel.watchdog import watch

    if "traced" in sys.argv:
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(InMemorySpanExporter()))
        trace.set_tracer_provider(provider)
    session_metrics_otel.instrument(Session, name="orders")
    watch()

held = Session()
print(held.scalar(text("select 1")))
idle = Session()
cycle = [Session()]
cycle.append(cycle)
cycle[0].execute(text("select 1"))
del cycle
if "exit" in sys.argv:
    sys.exit(3)
if "raise" in sys.argv:
    raise RuntimeError("the application's own")
if "thread" in sys.argv:
    import threading, time

    def work():
        with Session() as session:
            while True:
                time.sleep(0.001)

    threading.Thread(target=work, daemon=True).start()
"""


@pytest.mark.parametrize("end", ["return", "exit", "raise", "thread"])
@pytest.mark.parametrize("traced", ["traced", "untraced"])
def test_the_interpreter_ends_with_sessions_open_as_it_would(end, traced):
    # Not by -W error: SQLite's own ResourceWarning at the end is neither here nor there.
    def ended(*arguments):
        ran = subprocess.run(
            [sys.executable, "-c", SHUTDOWN, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return ran.returncode, ran.stdout, ran.stderr

    assert ended(end, traced, "instrumented") == ended(end, traced)


def test_the_interpreter_ends_in_peace_with_records_kept_by_hand():
    program = """
    from session_metrics_otel import SessionMetrics

    kept, cycle = SessionMetrics(state="active"), [SessionMetrics(state="active")]
    cycle.append(cycle)

    def serve():
        return kept, cycle
    """
    assert run(program) == (0, "", "")
