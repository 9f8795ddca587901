"""The watchdog: what leaks is counted once for each reason, and no race lets the counts drift."""

from __future__ import annotations

import copy
import gc
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from reading import changes, counted
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import StaticPool

from session_metrics_otel import SessionMetrics, instrument, metrics_for, uninstrument, watchdog
from session_metrics_otel.ledger import COLLECTED, LEDGER
from session_metrics_otel.watchdog import Watchdog, leak_reports, unwatch, watch

ONE = text("select 1")
NEVER = 1e9


@pytest.fixture(autouse=True)
def _nothing_collected():
    COLLECTED.clear()
    yield
    unwatch()


@pytest.fixture
def orders(instrumented):
    return instrumented(name="orders")


def idle_at_once():
    return Watchdog(overdue=NEVER, idle_in_transaction=-1)


def overdue_at_once(**options):
    return Watchdog(overdue=-1, idle_in_transaction=NEVER, **options)


def states():
    return {
        name.removeprefix("sqlalchemy_sessions "): n
        for name, n in counted("orders").items()
        if name.startswith("sqlalchemy_sessions ")
    }


class TestIdleInTransaction:
    def test_until_the_next_statement(self, orders):
        dog = idle_at_once()
        with orders() as session:
            session.execute(ONE)
            record = metrics_for(session)
            dog.scan()
            assert record.state.value == "idle"
            assert record.to_dict()["state"] == "idle"
            assert states() == {"idle": 1}
            session.execute(ONE)
            assert record.state.value == "active"
            assert states() == {"active": 1}
            dog.scan()
            dog.scan()
            assert states() == {"idle": 1}
        found = counted("orders")
        chain = ("created", "active", "idle", "active", "idle", "active", "closing", "closed")
        transitions = {key: n for key, n in found.items() if key.startswith("state_transitions")}
        assert transitions == changes(*chain)
        assert found["leaks idle_in_transaction"] == 1
        assert [report.reason for report in dog.reports] == ["idle_in_transaction"]
        assert states() == {}

    @pytest.mark.parametrize("end", ["commit", "rollback"])
    def test_to_its_end(self, orders, end):
        with orders() as session:
            session.execute(ONE)
            idle_at_once().scan()
            getattr(session, end)()
            assert states() == {{"commit": "committed", "rollback": "rolled_back"}[end]: 1}

    def test_begun_and_nothing_sent(self, orders):
        with orders() as session:
            session.connection()
            idle_at_once().scan()
            assert states() == {"idle": 1}

    def test_is_not_said_of_a_statement_that_takes_long(self, orders, engine):
        dog, seen = idle_at_once(), []

        @event.listens_for(engine, "connect")
        def add_scan(connection, _):
            def scan():
                dog.scan()
                seen.append(states())
                return 1

            connection.create_function("scan", 0, scan)

        with orders() as session:
            session.execute(text("select scan()"))
            assert seen == [{"active": 1}]
            dog.scan()
            assert states() == {"idle": 1}

    def test_is_not_said_after_the_transaction(self, orders):
        with orders() as session:
            session.execute(ONE)
            session.commit()
            idle_at_once().scan()
            assert states() == {"committed": 1}

    def test_counts_do_not_drift_however_it_races(self, orders):
        """A mark that is set as the session moves on is taken back, whatever came between."""
        stop, dog = threading.Event(), idle_at_once()

        def scan():
            while not stop.is_set():
                dog.scan()

        scanner = threading.Thread(target=scan)
        scanner.start()
        switch = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            for _ in range(300):
                with orders() as session:
                    session.execute(ONE)
                    session.commit()
                    session.execute(ONE)
        finally:
            sys.setswitchinterval(switch)
            stop.set()
            scanner.join()
        found = counted("orders")
        assert states() == {}
        there = found.get("state_transitions active idle", 0)
        assert there == found.get("state_transitions idle active", 0)
        assert found["state_transitions active committed"] == 300
        assert found["state_transitions committed active"] == 300
        assert found["state_transitions closing closed"] == 300

    def test_of_a_session_that_has_moved_on_counts_there_and_back(self, orders):
        with orders() as session:
            session.execute(ONE)
            record = metrics_for(session)
            ended = record.statement_ended
            session.commit()
            LEDGER.factory("orders").rest(record, ended)
            assert record.state.value == "committed"
            assert states() == {"committed": 1}

    def test_of_a_session_that_is_collected(self, orders):
        session = orders()
        session.execute(ONE)
        idle_at_once().scan()
        del session
        gc.collect()
        assert states() == {}
        assert counted("orders")["state_transitions idle active"] == 1
        assert counted("orders")["state_transitions active closed"] == 1


class TestOverdue:
    def test_is_counted_once_and_logged_with_where_it_was_made(self, orders, caplog):
        dog = overdue_at_once()
        with orders() as session:
            line = sys._getframe().f_lineno - 1
            dog.scan()
            dog.scan()
            session_id = metrics_for(session).session_id
        with orders():
            dog.scan()
        assert counted("orders")["leaks overdue"] == 2
        report = dog.reports[0]
        assert (report.reason, report.factory) == ("overdue", "orders")
        assert report.session_id == session_id
        where = f"{__file__}:{line} in test_is_counted_once_and_logged_with_where_it_was_made"
        assert report.place == where
        message = caplog.records[0].getMessage()
        assert message.startswith(f"Session {session_id} of 'orders' leaks (overdue): open for ")
        assert message.endswith(where)

    async def test_of_an_asyncio_session_says_where_it_was_made(self):
        engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
        instrument(engine, name="orders")
        dog = overdue_at_once(close_overdue=True)
        async with AsyncSession(engine) as session:
            await session.execute(ONE)
            dog.scan()
            assert metrics_for(session).state.value == "active"
        uninstrument(engine)
        await engine.dispose()
        assert [report.reason for report in dog.reports] == ["overdue"]

    def test_and_idle_are_two_reasons(self, orders):
        dog = Watchdog(overdue=-1, idle_in_transaction=-1)
        with orders() as session:
            session.execute(ONE)
            dog.scan()
            dog.scan()
        assert counted("orders")["leaks overdue"] == 1
        assert counted("orders")["leaks idle_in_transaction"] == 1

    def test_marks_the_span(self, engine, provider, spans):
        maker = sessionmaker(engine)
        instrument(maker, name="orders", tracer_provider=provider)
        with maker() as session:
            session.execute(ONE)
            overdue_at_once().scan()
        uninstrument(maker)
        (span,) = [each for each in spans.get_finished_spans() if each.name == "session orders"]
        assert span.attributes["sqlalchemy.session.leak"] == "overdue"
        (leak,) = [each for each in span.events if each.name == "sqlalchemy.session.leak"]
        assert leak.attributes == {"reason": "overdue"}

    def test_of_a_record_kept_by_hand(self):
        dog = Watchdog(overdue=-1, idle_in_transaction=-1)
        record = SessionMetrics("by hand", factory="orders")
        record.state = "active"
        dog.scan()
        assert [(report.session_id, report.place) for report in dog.reports] == [("by hand", "")]
        record.close()

    def test_is_closed_only_where_asked_for(self, orders, caplog):
        with orders() as session:
            session.execute(ONE)
            overdue_at_once().scan()
            assert states() == {"active": 1}
            overdue_at_once(close_overdue=True).scan()
            assert metrics_for(session).state.value == "closed"
        assert "was overdue and has been closed" in caplog.text
        assert counted("orders")["transactions closed"] == 1


def test_collected_unclosed_is_reported_by_the_next_scan(orders, caplog):
    session = orders()
    session.execute(ONE)
    session_id = metrics_for(session).session_id
    del session
    gc.collect()
    dog = idle_at_once()
    dog.scan()
    dog.scan()
    (report,) = dog.reports
    assert (report.reason, report.session_id) == ("garbage_collected", session_id)
    assert report.place.startswith(f"{__file__}:")
    assert counted("orders")["leaks garbage_collected"] == 1


def test_a_copy_that_is_collected_is_nobodys_leak(orders):
    with orders() as session:
        session.execute(ONE)
        by_hand = SessionMetrics(state="active", factory="orders")
        for record in (metrics_for(session), by_hand):
            copy.copy(record)
        gc.collect()
        dog = Watchdog(overdue=NEVER, idle_in_transaction=NEVER)
        dog.scan()
        assert list(dog.reports) == []
        by_hand.close()


def test_a_scan_lets_others_in_between_every_few_hundred(orders, monkeypatch):
    records = [SessionMetrics(factory="orders") for _ in range(5 * watchdog.CHUNK)]
    breaths = []
    monkeypatch.setattr(watchdog.time, "sleep", breaths.append)
    idle_at_once().scan()
    assert breaths == [0] * 5
    for record in records:
        record.close()


def threads():
    return [each for each in threading.enumerate() if each.name == "session-metrics-watchdog"]


class TestTheThread:
    def test_is_one_and_ends(self, orders):
        watch()
        dog = watch(idle_in_transaction=0.001)
        (thread,) = threads()
        assert thread.daemon
        with orders() as session:
            session.execute(ONE)
            while not dog.reports:
                threading.Event().wait(0.001)
        assert [report.reason for report in leak_reports()] == ["idle_in_transaction"]
        unwatch()
        assert threads() == []
        assert leak_reports() == []

    @pytest.mark.faults
    def test_outlives_a_fault(self, monkeypatch, caplog):
        twice = threading.Event()

        def scan(self):
            if caplog.records:
                twice.set()
            raise RuntimeError("odd")

        monkeypatch.setattr(Watchdog, "scan", scan)
        watch(interval=0.001)
        assert twice.wait(30)
        assert "Session telemetry (watchdog) failed" in caplog.text

    @pytest.mark.parametrize("option", ["overdue", "idle_in_transaction", "interval"])
    def test_refuses_a_limit_that_is_none(self, option):
        with pytest.raises(ValueError, match=f"{option}=0: give a number of seconds above 0"):
            watch(**{option: 0})

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
    def test_goes_on_in_a_forked_child_and_lets_the_interpreter_end(self, tmp_path):
        program = tmp_path / "program.py"
        program.write_text(
            "import os, threading\n"
            "from session_metrics_otel.watchdog import watch\n"
            "watch()\n"
            "child = os.fork()\n"
            "names = [each.name for each in threading.enumerate() if each.is_alive()]\n"
            "if child:\n"
            "    os.waitpid(child, 0)\n"
            "print(names.count('session-metrics-watchdog'), flush=True)\n"
        )
        done = subprocess.run(
            [sys.executable, "-W", "ignore::DeprecationWarning", program],
            capture_output=True, text=True, timeout=60, check=True, cwd=Path(__file__).parent,
        )  # fmt: skip
        assert done.stdout.split() == ["1", "1"]
        assert done.stderr == ""


def test_its_log_is_ready_for_json(orders, caplog):
    with caplog.at_level(logging.WARNING), orders():
        overdue_at_once().scan()
    (entry,) = caplog.records
    assert entry.session_leak["reason"] == "overdue"
