"""What sessions of every kind of use must count, to the last one."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import gc
import json
import sqlite3
from datetime import datetime, timezone
from typing import Any

import pytest
from hooks.conftest import Base, Order, Versioned
from opentelemetry.sdk.trace import TracerProvider
from reading import changes, counted, since_2_0_31, value
from sqlalchemy import event, text
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    InvalidRequestError,
    OperationalError,
    PendingRollbackError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, close_all_sessions, scoped_session, sessionmaker
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, QueuePool, StaticPool

from session_metrics_otel import SessionMetrics, bind, instrument, metrics_for, uninstrument
from session_metrics_otel.ledger import LEDGER

ONE = text("select 1")
NO_TABLE = text("select * from nowhere")


def expect(factory: str = "orders", *, of: int = 1, **more: Any) -> None:
    """Compare all that is counted with what ``of`` used and closed sessions count, and more."""
    usual = {
        "creations success": of,
        "creation_duration_seconds_count": of,
        "duration_seconds_count": of,
        "queries_per_session_count": of,
        "peak": 1,
    }
    expected = {**usual, **more.pop("also", {}), **more}
    assert counted(factory) == {key: n for key, n in expected.items() if n}


def ended(outcome: str, n: int = 1) -> dict[str, int]:
    return {f"transactions {outcome}": n, f"transaction_duration_seconds_count {outcome}": n}


def test_a_replaced_record_is_another_that_no_hook_keeps(orders):
    with orders() as session:
        session.execute(ONE)
        record = metrics_for(session)
        other = dataclasses.replace(record, session_id="other")
        assert type(other) is SessionMetrics
        assert (other.session_id, other.query_count, other.state) == ("other", 1, "active")
        assert other.created_at == record.created_at
        session.execute(ONE)
        assert (record.query_count, other.query_count) == (2, 1)
        other.close()
    assert counted("orders")["queries"] == 2
    assert counted("default")["state_transitions active closed"] == 1


def test_dates_that_are_assigned_are_those_that_are_read(orders):
    with orders() as session:
        record = metrics_for(session)
        session.execute(ONE)
        record.created_at = datetime(2020, 1, 1, tzinfo=timezone.utc)
        record.last_activity_at = datetime(2100, 1, 1, tzinfo=timezone.utc)
        assert record.last_activity == datetime(2100, 1, 1, tzinfo=timezone.utc)
    record.closed_at = datetime(2020, 1, 2, tzinfo=timezone.utc)
    said = record.to_dict()
    assert said["created_at"] == "2020-01-01T00:00:00+00:00"
    assert said["closed_at"] == "2020-01-02T00:00:00+00:00"


@pytest.mark.parametrize("date", ["2020-01-01T00:00:00Z", "yesterday", 5, datetime(2020, 1, 1)])
def test_dates_may_be_set_to_anything(orders, date):
    before = datetime.now(timezone.utc)
    with orders() as session:
        record = metrics_for(session)
        record.created_at = date
        session.execute(ONE)
        assert record.last_activity_at >= before
        record.last_activity_at = date
        assert record.last_activity_at == date
    assert record.closed_at >= before
    said = json.loads(json.dumps(record.to_dict()))
    assert said["created_at"] == (date.isoformat() if isinstance(date, datetime) else date)
    assert copy.copy(record).to_dict()["created_at"] == said["created_at"]


class TestTransactions:
    def test_committed(self, orders):
        with orders() as session:
            session.execute(ONE)
            session.commit()
        expect(
            queries=1,
            also=changes("created", "active", "committed", "closing", "closed")
            | ended("committed"),
        )

    def test_rolled_back(self, orders):
        with orders() as session:
            session.execute(ONE)
            session.rollback()
        expect(
            queries=1,
            also=changes("created", "active", "rolled_back", "closing", "closed")
            | ended("rolled_back"),
        )

    def test_reading_ends_closed(self, orders):
        with orders() as session:
            session.execute(ONE)
            session.execute(ONE)
        expect(
            queries=2,
            also=changes("created", "active", "closing", "closed") | ended("closed"),
        )

    def test_two_in_one_session(self, orders):
        with orders() as session:
            session.execute(ONE)
            session.commit()
            session.execute(ONE)
            session.rollback()
        states = ("created", "active", "committed", "active", "rolled_back", "closing", "closed")
        expect(queries=2, also=changes(*states) | ended("committed") | ended("rolled_back"))

    def test_begin_block_commits(self, orders):
        with orders.begin() as session:
            session.execute(ONE)
        expect(
            queries=1,
            also=changes("created", "active", "committed", "closing", "closed")
            | ended("committed"),
        )

    def test_begin_block_inside_a_session(self, orders):
        with orders() as session, session.begin():
            session.execute(ONE)
        expect(
            queries=1,
            also=changes("created", "active", "committed", "closing", "closed")
            | ended("committed"),
        )

    def test_without_autobegin(self, orders):
        with orders(autobegin=False) as session:
            with pytest.raises(InvalidRequestError):
                session.execute(ONE)
            with session.begin():
                session.execute(ONE)
        expect(
            queries=1,
            also=changes("created", "active", "committed", "closing", "closed")
            | ended("committed"),
        )

    def test_an_exception_in_a_begin_block_rolls_back(self, orders):
        with pytest.raises(ZeroDivisionError), orders.begin() as session:
            session.execute(ONE)
            raise ZeroDivisionError
        expect(
            queries=1,
            also=changes("created", "active", "rolled_back", "closing", "closed")
            | ended("rolled_back"),
        )

    def test_an_exception_in_a_with_block_closes(self, orders):
        with pytest.raises(ZeroDivisionError), orders() as session:
            session.execute(ONE)
            raise ZeroDivisionError
        expect(
            queries=1,
            also=changes("created", "active", "closing", "closed") | ended("closed"),
        )

    def test_a_commit_that_reached_no_database_is_none(self, orders):
        with orders() as session:
            session.commit()
            session.rollback()
        assert counted("orders") == {
            **changes("created", "closing", "closed"),
            "creations unused": 1,
            "duration_seconds_count": 1,
            "queries_per_session_count": 1,
            "peak": 1,
        }

    def test_savepoints_are_no_transactions(self, orders):
        with orders() as session:
            session.execute(ONE)
            with session.begin_nested():
                session.execute(ONE)
            with pytest.raises(ZeroDivisionError), session.begin_nested():
                session.execute(ONE)
                raise ZeroDivisionError
            session.commit()
        # SAVEPOINT, RELEASE; SAVEPOINT, ROLLBACK TO: sent like any statement.
        expect(
            queries=3 + 4,
            also=changes("created", "active", "committed", "closing", "closed")
            | ended("committed"),
        )

    def test_a_close_inside_a_savepoint_goes_straight_to_its_end(self, orders):
        session = orders()
        session.begin_nested()
        session.execute(ONE)
        session.close()
        # SAVEPOINT, ROLLBACK TO: the latter is sent while it closes.
        expect(queries=3, also=changes("created", "active", "closing", "closed") | ended("closed"))

    def test_commit_from_inside_a_savepoint_is_one(self, orders):
        with orders() as session:
            session.begin_nested()
            session.execute(ONE)
            session.commit()
        expect(
            queries=3,
            also=changes("created", "active", "committed", "closing", "closed")
            | ended("committed"),
        )

    def test_two_phase(self, orders, monkeypatch):
        # SQLite has no two-phase commit: stand in for the four calls that would reach the driver.
        dialect = orders.kw["bind"].dialect
        for name in ("begin", "prepare", "rollback", "commit"):
            monkeypatch.setattr(dialect, f"do_{name}_twophase", lambda *args, **kw: None)
        with orders(twophase=True) as session:
            session.execute(ONE)
            session.prepare()
            session.commit()
            session.execute(ONE)
            session.rollback()
        states = ("created", "active", "committed", "active", "rolled_back", "closing", "closed")
        expect(queries=2, also=changes(*states) | ended("committed") | ended("rolled_back"))

    def test_two_engines_in_one_transaction_are_one(self, orders, new_engine):
        other = new_engine()
        with orders() as session:
            session.execute(ONE)
            session.execute(ONE, bind_arguments={"bind": other})
            session.commit()
        expect(
            queries=2,
            also=changes("created", "active", "committed", "closing", "closed")
            | ended("committed"),
        )

    def test_a_session_on_a_callers_connection(self, orders):
        with orders.kw["bind"].connect() as connection, connection.begin():
            with orders(bind=connection, join_transaction_mode="create_savepoint") as session:
                session.execute(ONE)
                session.commit()
            connection.execute(ONE)  # the caller's own, after the session ended
        found = counted("orders")
        assert found["transactions committed"] == 1
        assert found["queries"] == 2  # SELECT, RELEASE; its SAVEPOINT came before it had begun


class TestLives:
    def test_never_used(self, orders):
        with orders():
            pass
        assert counted("orders") == {
            **changes("created", "closing", "closed"),
            "creations unused": 1,
            "duration_seconds_count": 1,
            "queries_per_session_count": 1,
            "peak": 1,
        }

    @pytest.mark.parametrize(
        "end",
        [
            "close",
            pytest.param("reset", marks=since_2_0_31),
            pytest.param("invalidate", marks=since_2_0_31),
        ],
    )
    def test_used_again_after_its_end_is_a_new_record(self, orders, end):
        session = orders()
        session.execute(ONE)
        first = metrics_for(session)
        getattr(session, end)()
        session.execute(ONE)
        second = metrics_for(session)
        session.close()
        assert first is not second
        assert first.session_id != second.session_id
        expect(
            of=2,
            queries=2,
            also={k: 2 * n for k, n in changes("created", "active", "closing", "closed").items()}
            | ended("closed", 2),
        )

    def test_one_that_is_used_in_its_own_constructor_is_one(self, engine):
        class WithRole(Session):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                self.execute(ONE)

        maker = sessionmaker(engine, class_=WithRole)
        instrument(maker, name="orders")
        with maker() as session:
            session.execute(ONE)
            session.commit()
        uninstrument(maker)
        gc.collect()
        expect(
            queries=2,
            also=changes("created", "active", "committed", "closing", "closed")
            | ended("committed"),
        )

    def test_closing_twice_counts_once(self, orders):
        session = orders()
        session.execute(ONE)
        session.close()
        session.close()
        close_all_sessions()
        expect(
            queries=1,
            also=changes("created", "active", "closing", "closed") | ended("closed"),
        )

    def test_open_sessions_are_in_the_gauges(self, orders):
        fresh, busy, done = orders(), orders(), orders()
        busy.execute(ONE)
        done.execute(ONE)
        done.commit()
        found = counted("orders")
        assert {k: v for k, v in found.items() if k.startswith("sqlalchemy_sessions")} == {
            "sqlalchemy_sessions created": 1,
            "sqlalchemy_sessions active": 1,
            "sqlalchemy_sessions committed": 1,
        }
        assert found["peak"] == 3
        for session in (fresh, busy, done):
            session.close()
        assert not [k for k in counted("orders") if k.startswith("sqlalchemy_sessions")]

    def test_dropped_while_holding_a_connection(self, orders):
        session = orders()
        session.execute(ONE)
        del session
        gc.collect()
        assert counted("orders") == {
            **changes("created", "active", "closed"),
            "creations success": 1,
            "creation_duration_seconds_count": 1,
            "leaks garbage_collected": 1,
            "queries": 1,
            "peak": 1,
        }

    def test_ids_never_repeat(self, orders):
        sessions = [orders() for _ in range(100)]
        assert len({metrics_for(session).session_id for session in sessions}) == 100

    def test_tags_come_from_the_binding_at_birth(self, orders):
        with bind(request_id="r-1", user_id="u-1", route="/orders/{id}"):
            session = orders()
        record = metrics_for(session)
        assert (record.request_id, record.user_id, record.route) == ("r-1", "u-1", "/orders/{id}")


class TestErrors:
    def test_a_statement_that_fails(self, orders):
        with orders() as session, pytest.raises(OperationalError):
            session.execute(NO_TABLE)
        expect(
            queries=1,
            also=changes("created", "active", "error", "closing", "closed")
            | ended("closed")
            | {"errors OperationalError": 1},
        )

    def test_a_statement_whose_error_the_application_replaces(self, engine, provider, spans):
        class Unavailable(Exception):
            pass

        def replace(context):
            raise Unavailable from context.original_exception

        event.listen(engine, "handle_error", replace)  # before ours, which is not asked then
        maker = sessionmaker(engine)
        instrument(maker, name="orders", tracer_provider=provider)
        with maker() as session, pytest.raises(Unavailable):
            session.execute(text("select :secret from nowhere"), {"secret": "hunter2"})
        uninstrument(maker)
        expect(
            queries=1,
            also=changes("created", "active", "error", "closing", "closed")
            | ended("closed")
            | {"errors OperationalError": 1},
        )
        statement = next(span for span in spans.get_finished_spans() if span.name != "connect")
        assert statement.name == "SELECT nowhere"
        assert statement.status.description == "no such table: nowhere"

    def test_the_text_kept_is_the_drivers_and_quotes_no_parameter(self, orders):
        with orders() as session:
            with pytest.raises(OperationalError):
                session.execute(text("select :secret from nowhere"), {"secret": "hunter2"})
            assert metrics_for(session).last_error == "no such table: nowhere"

    def test_it_is_active_again_after_a_rollback_and_a_statement(self, orders):
        with orders() as session:
            with pytest.raises(OperationalError):
                session.execute(NO_TABLE)
            session.rollback()
            session.execute(ONE)
        states = ("created", "active", "error", "rolled_back", "active", "closing", "closed")
        expect(
            queries=2,
            also=changes(*states)
            | ended("rolled_back")
            | ended("closed")
            | {"errors OperationalError": 1},
        )

    def test_a_flush_that_fails(self, orders):
        with orders() as session:
            session.add_all([Order(id=1), Order(id=1)])
            with pytest.raises((IntegrityError, InvalidRequestError)):
                session.flush()
            with pytest.raises(PendingRollbackError):
                session.execute(ONE)
            session.rollback()
        states = ("created", "active", "error", "rolled_back", "closing", "closed")
        expect(
            queries=1,
            also=changes(*states) | ended("rolled_back") | {"errors IntegrityError": 1},
        )

    def test_inside_a_savepoint(self, orders):
        with orders() as session:
            session.add(Order(id=1))
            session.flush()
            with pytest.raises(IntegrityError), session.begin_nested():
                session.execute(text("insert into orders (id, item) values (1, 'x')"))
            session.commit()
        found = counted("orders")
        assert found["errors IntegrityError"] == 1
        assert found["transactions committed"] == 1
        assert "transactions rolled_back" not in found
        # ROLLBACK TO SAVEPOINT is a statement after the error: the session is active again.
        assert found["state_transitions error active"] == 1
        assert found["state_transitions active committed"] == 1

    def test_a_commit_that_fails(self, orders, monkeypatch):
        def refuse(_connection):
            raise sqlite3.OperationalError("disk full")

        with orders() as session:
            session.execute(ONE)
            monkeypatch.setattr(session.connection().dialect, "do_commit", refuse)
            with pytest.raises(OperationalError):
                session.commit()
        found = counted("orders")
        assert found["errors OperationalError"] == 1
        assert found["state_transitions active error"] == 1
        assert "transactions committed" not in found
        assert not [k for k in found if k.startswith("sqlalchemy_sessions")]

    @since_2_0_31
    def test_an_optimistic_lock_that_fails(self, orders):
        with orders.begin() as session:
            session.add(Versioned(id=1))
        with orders() as session:
            versioned = session.get(Versioned, 1)
            session.execute(text("update versioned set version = 99"))
            versioned.item = "coffee"
            with pytest.raises(StaleDataError):
                session.flush()
            assert metrics_for(session).state == "rolled_back"
        found = counted("orders")
        assert found["optimistic_lock_failures"] == 1
        assert found["errors StaleDataError"] == 1
        assert found["state_transitions active error"] == 1
        assert found["state_transitions error rolled_back"] == 1

    @since_2_0_31
    def test_another_sessions_rollback_is_not_blamed_for_it(self, orders):
        with orders.begin() as session:
            session.add(Versioned(id=1))
        with orders() as session, orders() as other:
            other.execute(ONE)
            versioned = session.get(Versioned, 1)
            session.execute(text("update versioned set version = 99"))
            versioned.item = "coffee"
            try:
                session.flush()
            except StaleDataError:
                other.rollback()
        assert counted("orders")["optimistic_lock_failures"] == 1


class TestRefusedConnections:
    @pytest.fixture
    def nowhere(self, tmp_path, new_engine):
        maker = sessionmaker(new_engine(f"sqlite:///{tmp_path}/no/such/folder/db"))
        instrument(maker, name="nowhere")
        yield maker
        uninstrument(maker)

    failed = {
        "creations failure OperationalError": 1,
        "errors OperationalError": 1,
        "duration_seconds_count": 1,
        "queries_per_session_count": 1,
        "peak": 1,
    }

    def test_by_a_statement(self, nowhere):
        with nowhere() as session, pytest.raises(OperationalError):
            session.execute(ONE)
        assert counted("nowhere") == self.failed | changes("created", "error", "closing", "closed")

    def test_by_a_flush(self, nowhere):
        with nowhere() as session, pytest.raises(OperationalError):
            session.add(Order())
            session.flush()
        assert counted("nowhere") == self.failed | changes("created", "error", "closing", "closed")

    def test_by_connection(self, nowhere):
        with nowhere() as session, pytest.raises(OperationalError):
            session.connection()
        assert counted("nowhere") == self.failed | changes("created", "error", "closing", "closed")

    def test_a_pool_that_is_exhausted(self, new_engine):
        engine = new_engine(
            "sqlite://", poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.01
        )
        maker = sessionmaker(engine)
        instrument(maker, name="small")
        with maker() as holder, maker() as waiter:
            holder.execute(ONE)
            with pytest.raises(PoolTimeoutError):
                waiter.execute(ONE)
        assert counted("small")["creations failure TimeoutError"] == 1
        assert counted("small")["creations success"] == 1
        uninstrument(maker)

    def test_one_that_recovers_failed_once(self, new_engine):
        attempts = iter([True, False])

        def connect():
            if next(attempts):
                raise sqlite3.OperationalError("not yet")
            return sqlite3.connect(":memory:")

        maker = sessionmaker(new_engine(creator=connect, poolclass=NullPool))
        instrument(maker, name="shaky")
        with maker() as session:
            with pytest.raises(OperationalError):
                session.execute(ONE)
            session.execute(ONE)
        found = counted("shaky")
        assert found["creations failure OperationalError"] == 1
        assert "creations success" not in found
        assert found["state_transitions error active"] == 1
        uninstrument(maker)

    def test_a_core_connection_is_no_sessions_failure(self, nowhere):
        with nowhere() as bystander:
            with pytest.raises(OperationalError):
                nowhere.kw["bind"].connect()
            assert metrics_for(bystander).error_count == 0

    def test_a_session_used_again_is_blamed_with_a_new_record(self, new_engine):
        refuse = False

        def connect():
            if refuse:
                raise sqlite3.OperationalError("gone")
            return sqlite3.connect(":memory:")

        maker = sessionmaker(new_engine(creator=connect, poolclass=NullPool))
        instrument(maker, name="again")
        session = maker()
        session.execute(ONE)
        session.close()
        refuse = True
        with pytest.raises(OperationalError):
            session.execute(ONE)
        session.close()
        assert counted("again")["creations success"] == 1
        assert counted("again")["creations failure OperationalError"] == 1
        uninstrument(maker)


class TestFlushes:
    def test_entities_by_operation(self, orders):
        with orders() as session:
            session.add_all([Order(id=n) for n in range(1, 4)])
            session.commit()
            changed, deleted, unchanged = (session.get(Order, n) for n in range(1, 4))
            changed.item = "milk"
            session.delete(deleted)
            unchanged.item = str(unchanged.item)
            session.commit()
        found = counted("orders")
        assert found["flushes"] == 2
        assert found["entities insert"] == 3
        assert found["entities update"] == 1
        assert found["entities delete"] == 1

    def test_a_flush_with_nothing_to_write_is_none(self, orders):
        with orders() as session:
            session.execute(ONE)
            session.flush()
        assert "flushes" not in counted("orders")

    def test_objects_expired_by_the_commit_are_read_again(self, orders):
        with orders() as session:
            order = Order(id=1)
            session.add(order)
            session.commit()
            assert order.item == "tea"
        assert counted("orders")["queries"] == 2

    def test_and_are_not_where_expire_on_commit_is_off(self, orders):
        with orders(expire_on_commit=False) as session:
            order = Order(id=1)
            session.add(order)
            session.commit()
            assert order.item == "tea"
        assert counted("orders")["queries"] == 1


class TestEndsWithinEnds:
    @pytest.mark.parametrize("spans", ["off", "span"])
    def test_a_close_that_invalidates_is_one_end(self, engine, spans):
        class Careful(Session):
            def close(self):
                self.invalidate()
                super().close()

        maker = sessionmaker(engine, class_=Careful)
        provider = TracerProvider(shutdown_on_exit=False)
        instrument(maker, name="careful", spans=spans, tracer_provider=provider)
        with bind(route="/orders"), maker() as session:
            session.execute(ONE)
        uninstrument(maker)
        ended = {"from_state": "closing", "to_state": "closed"}
        labels = {"factory": "careful"}
        assert value("sqlalchemy_session_state_transitions_total", **labels, **ended) == 1
        assert value("sqlalchemy_session_transactions_total", **labels, outcome="closed") == 1
        assert value("sqlalchemy_session_duration_seconds_count", **labels) == 1
        assert value("sqlalchemy_route_sessions_total", **labels, http_route="/orders") == 1


class TestBehaviourIsUnchanged:
    @since_2_0_31
    def test_closing_for_good(self, orders):
        session = orders(close_resets_only=False)
        session.close()
        with pytest.raises(InvalidRequestError):
            session.execute(ONE)

    @since_2_0_31
    def test_an_error_of_close_is_the_applications(self, orders, monkeypatch):
        def refuse(_connection):
            raise sqlite3.OperationalError("gone")

        session = orders()
        session.execute(ONE)
        with monkeypatch.context() as patch:
            patch.setattr(session.connection().dialect, "do_rollback", refuse)
            with pytest.raises(DBAPIError):
                session.close()
        assert metrics_for(session).state == "error"
        session.close()
        assert metrics_for(session).state == "closed"

    @pytest.mark.faults
    def test_a_fault_of_ours_is_logged_once_and_counted(self, orders, monkeypatch, caplog):
        class Broken:
            def __getattr__(self, name):
                raise RuntimeError("a bug of ours")

            __getitem__ = __getattr__

        for name in ("queries", "flushes", "transaction_ends", "duration"):
            monkeypatch.setattr(LEDGER.factory("orders"), name, Broken())
        for _ in range(2):
            with orders() as session:
                session.add(Order())
                session.commit()
                assert session.scalar(text("select count(*) from orders")) > 0
        logged = [r for r in caplog.records if r.name == "session_metrics_otel"]
        assert [record.levelname for record in logged] == ["ERROR"] * 2
        assert {record.getMessage().split(")")[0] for record in logged} == {
            "Session telemetry (sessions",
            "Session telemetry (statements",
        }
        monkeypatch.undo()
        from reading import value

        assert value("sqlalchemy_session_telemetry_faults_total", component="statements") == 4
        assert value("sqlalchemy_session_telemetry_faults_total", component="sessions") == 6


class TestWithASpan:
    def test_the_counts_are_those_without_one(self, engine):
        """A session with a span is counted by the record's methods, one without by the hooks."""

        def work(maker):
            with maker() as session:
                session.execute(ONE)
                session.commit()
                session.execute(ONE)
                session.rollback()
                session.execute(ONE)
            with maker() as session:
                session.execute(ONE)
                with session.begin_nested():
                    session.execute(ONE)
                session.commit()
                session.close()
                session.execute(ONE)
            with maker() as session:
                with pytest.raises(OperationalError):
                    session.execute(text("no such"))
                session.commit()
            with maker():
                pass
            dropped = maker()
            dropped.execute(ONE)
            dropped.invalidate()

        provider = TracerProvider(shutdown_on_exit=False)
        makers = {"plain": {"spans": "off"}, "traced": {"tracer_provider": provider}}
        for name, options in makers.items():
            maker = sessionmaker(engine)
            instrument(maker, name=name, **options)
            work(maker)
            uninstrument(maker)
        assert counted("plain") == counted("traced")
        assert counted("plain")["creations success"] == 5


class TestScoped:
    def test_counts_like_any(self, engine):
        registry = scoped_session(sessionmaker(engine))
        instrument(registry, name="scoped")
        registry.execute(ONE)
        registry.commit()
        assert metrics_for(registry).query_count == 1
        registry.remove()
        expect(
            "scoped",
            queries=1,
            also=changes("created", "active", "committed", "closing", "closed")
            | ended("committed"),
        )
        uninstrument(registry)


class TestAsync:
    @pytest.fixture
    def make(self, tmp_path):
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{tmp_path}/db", poolclass=AsyncAdaptedQueuePool, pool_size=20
        )
        maker = async_sessionmaker(engine)
        instrument(maker, name="async")
        yield maker
        uninstrument(maker)

    @staticmethod
    def run(work, maker):
        async def whole():
            try:
                return await work()
            finally:
                await maker.kw["bind"].dispose()

        return asyncio.run(whole())

    def test_committed(self, make):
        async def work():
            async with make() as session:
                await session.execute(ONE)
                await session.commit()
                assert metrics_for(session).query_count == 1

        self.run(work, make)
        expect(
            "async",
            queries=1,
            also=changes("created", "active", "committed", "closing", "closed")
            | ended("committed"),
        )

    def test_tasks_have_each_their_own_tags(self, make):
        async def one(n):
            with bind(request_id=f"request-{n}"):
                async with make() as session:
                    await asyncio.sleep(0)
                    await session.execute(ONE)
                    return metrics_for(session).request_id

        async def work():
            return await asyncio.gather(*(one(n) for n in range(20)))

        assert self.run(work, make) == [f"request-{n}" for n in range(20)]
        assert counted("async")["queries"] == 20

    def test_a_cancelled_task_is_closed_and_counted(self, make):
        async def hold(session, begun):
            async with session:
                await session.execute(ONE)
                begun.set()
                await asyncio.sleep(60)

        async def work():
            begun = asyncio.Event()
            task = asyncio.create_task(hold(make(), begun))
            await begun.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return task.cancelled()

        assert self.run(work, make) is True
        expect(
            "async",
            queries=1,
            also=changes("created", "active", "closing", "closed") | ended("closed"),
        )

    def test_begin_block_that_raises(self, make):
        async def work():
            with pytest.raises(ZeroDivisionError):
                async with make.begin() as session:
                    await session.execute(ONE)
                    raise ZeroDivisionError

        self.run(work, make)
        assert counted("async")["transactions rolled_back"] == 1

    def test_an_async_session_class_of_ones_own(self):
        class Mine(AsyncSession):
            pass

        engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
        instrument(Mine, name="mine")

        async def work():
            async with Mine(engine) as session:
                await session.execute(ONE)
            await engine.dispose()

        asyncio.run(work())
        uninstrument(Mine)
        assert Mine.sync_session_class is Session
        assert counted("mine")["queries"] == 1

    def test_a_sync_session_class_that_was_given(self):
        class Mine(Session):
            pass

        engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
        maker = async_sessionmaker(engine, sync_session_class=Mine)
        instrument(maker, name="given")

        async def work():
            async with maker() as session:
                assert isinstance(session.sync_session, Mine)
                await session.execute(ONE)
            await engine.dispose()

        asyncio.run(work())
        uninstrument(maker)
        assert maker.kw["sync_session_class"] is Mine
        assert counted("given")["queries"] == 1


def test_tables_are_there():
    assert set(Base.metadata.tables) == {"orders", "versioned"}
