"""One engine or many, one pool or several of a session's: each connection is counted once."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from reading import counted, shown
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import (
    AsyncAdaptedQueuePool,
    NullPool,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
)

from session_metrics_otel import instrument, metrics_for, uninstrument

ONE = text("select 1")


def told(*keys, name="sqlite/"):
    """What is shown under these keys; None where one is not there."""
    found = shown(name)
    return tuple(found.get(key) for key in keys)


BOTH = ("count used", "count idle")
TIMES = ("create_time_seconds_count", "wait_time_seconds_count", "use_time_seconds_count")


class TestConnections:
    def test_one_that_is_invalidated_softly_is_replaced_when_it_is_wanted_again(self, observe):
        engine = observe(poolclass=QueuePool)
        taken = engine.raw_connection()
        taken.invalidate(soft=True)
        assert told(*BOTH, "sqlalchemy_pool_invalidations_total") == (1, 0, 1)
        taken.close()
        assert told(*BOTH) == (0, 1)
        engine.raw_connection().close()
        assert told(*BOTH, "sqlalchemy_pool_invalidations_total") == (0, 1, 1)
        assert told(*TIMES) == (2, 2, 2)

    def test_one_that_is_too_old_is_replaced(self, observe, monkeypatch):
        now = 1000.0
        monkeypatch.setattr("sqlalchemy.pool.base.time", SimpleNamespace(time=lambda: now))
        engine = observe(poolclass=QueuePool, pool_recycle=60)
        for now in (1000.0, 1060.0, 1061.0, 1121.0, 1122.0):  # noqa: B007 - the clock reads it
            engine.connect().close()
        assert told(*TIMES) == (3, 5, 5)
        assert told(*BOTH, "sqlalchemy_pool_invalidations_total") == (0, 1, 0)

    def test_one_that_broke_while_idle_is_replaced_by_the_ping(self, observe):
        engine = observe(poolclass=QueuePool, pool_pre_ping=True)
        with engine.connect() as connection:
            driver = connection.connection.driver_connection
        driver.close()
        with engine.connect() as connection:
            assert connection.scalar(ONE) == 1
            assert told(*BOTH) == (1, 0)
        assert told(*TIMES) == (2, 2, 2)
        assert told(*BOTH, "sqlalchemy_pool_invalidations_total") == (0, 1, 1)

    def test_of_more_than_fit_those_above_are_closed(self, observe):
        engine = observe(poolclass=QueuePool, pool_size=2, max_overflow=-1)
        assert told("max", "idle_max") == (None, 2)
        taken = [engine.connect() for _ in range(6)]
        assert told(*BOTH) == (6, 0)
        for connection in taken:
            connection.close()
        assert told(*BOTH) == (0, 2)
        assert told(*TIMES) == (6, 6, 6)

    def test_a_creator_of_ones_own_is_timed_and_its_failures_are_not(self, new_engine):
        refuses = False

        def connect():
            if refuses:
                raise sqlite3.OperationalError
            return sqlite3.connect(":memory:")

        engine = new_engine(creator=connect, poolclass=NullPool)
        maker = sessionmaker(engine)
        instrument(maker, name="own")
        for refuses in (False, False, True, False):
            refused = pytest.raises(OperationalError) if refuses else nullcontext()
            with maker() as session, refused:
                session.execute(ONE)
        uninstrument(maker)
        assert told(*TIMES, "pending_requests") == (3, 3, 3, 0)
        found = counted("own")
        assert found["creations success"] == 3
        assert found["creations failure OperationalError"] == 1

    def test_the_application_s_listeners_hear_what_they_did(self, new_engine):
        heard = []
        engine = new_engine(poolclass=QueuePool)
        event.listen(engine, "checkout", lambda *_: heard.append("checkout"))
        instrument(engine)
        event.listen(engine, "checkin", lambda *_: heard.append("checkin"))
        for change in (None, engine.dispose, lambda: uninstrument(engine)):
            if change is not None:
                change()
            engine.connect().close()
        assert heard == ["checkout", "checkin"] * 3

    @pytest.mark.parametrize("end", ["invalidate", "close"])
    def test_a_detached_one_is_gone_once_it_is_closed_and_not_by_invalidating(self, observe, end):
        engine = observe(poolclass=QueuePool)
        with engine.connect() as connection:
            driver = connection.connection.driver_connection
            connection.detach()
            getattr(connection, end)()
        assert told("sqlalchemy_pool_detached") == (0 if end == "close" else 1,)
        driver.close()

    def test_a_static_one_is_given_back_by_the_first_who_is_done(self, observe):
        engine = observe(poolclass=StaticPool)
        with engine.connect():
            with engine.connect():
                assert told(*BOTH) == (1, 0)
            assert told(*BOTH) == (0, 1)
        assert told(*BOTH, *TIMES) == (0, 1, 1, 2, 1)

    def test_a_thread_s_own_is_used_once_however_often_it_is_asked_for(self, observe):
        engine = observe(poolclass=SingletonThreadPool)
        with engine.connect():
            with engine.connect():
                assert told("count used") == (1,)
            assert told("count used") == (1,)
        assert told("count used", *TIMES) == (0, 1, 2, 1)


class TestEngines:
    def test_two_that_lead_to_one_place_are_one_name_s_sum(self, observe):
        first = observe(poolclass=QueuePool, pool_size=2, max_overflow=1)
        second = observe(poolclass=QueuePool, pool_size=3, max_overflow=1)
        with first.connect(), second.connect(), second.connect():
            assert told(*BOTH, "sqlalchemy_pools") == (3, 0, 2)
            assert told("max", "idle_max", "idle_min") == (7, 5, 0)
        assert told(*BOTH) == (0, 3)
        first.dispose()
        assert told(*BOTH, "sqlalchemy_pools") == (0, 2, 2)
        uninstrument(first)
        assert told(*BOTH, "sqlalchemy_pools", "max") == (0, 2, 1, 4)

    def test_one_made_by_execution_options_shares_the_pool(self, observe):
        engine = observe(poolclass=QueuePool)
        clone = engine.execution_options(isolation_level="SERIALIZABLE")
        instrument(clone, name="clone")
        with engine.connect(), clone.connect():
            assert told(*BOTH, "sqlalchemy_pools") == (2, 0, 1)
        clone.dispose()
        with engine.connect(), clone.connect():
            assert told(*BOTH, "sqlalchemy_pools") == (2, 0, 1)
        assert told(*TIMES) == (4, 4, 4)
        uninstrument(clone)
        with clone.connect():
            assert told("count used") == (1,)

    def test_a_session_that_reads_here_and_writes_there_holds_one_of_each(self, new_engine):
        reader = new_engine(poolclass=QueuePool, pool_logging_name="reader")
        writer = new_engine(poolclass=QueuePool, pool_logging_name="writer")

        class Routing(Session):
            def get_bind(self, *_args, **_options):
                return writer if self.info["writes"] else reader

        maker = sessionmaker(class_=Routing)
        instrument(maker, name="split")
        with maker(info={"writes": False}) as session:
            session.execute(ONE)
            assert told(*BOTH, name="reader") == (1, 0)
            assert shown("writer") == {}  # not met yet
            session.info["writes"] = True
            session.execute(ONE)
            session.execute(ONE)
            for name in ("reader", "writer"):
                assert told(*BOTH, "sqlalchemy_pools", name=name) == (1, 0, 1)
            session.commit()
        uninstrument(maker)
        for name in ("reader", "writer"):
            assert told(*TIMES, name=name) == (1, 1, 1)
        found = counted("split")
        assert found["queries"] == 3
        assert found["creations success"] == found["transactions committed"] == 1

    def test_the_first_one_of_an_engine_that_a_statement_names_is_held_too(self, new_engine):
        engine = new_engine(poolclass=QueuePool)
        maker = sessionmaker()
        instrument(maker, name="named")
        with maker() as session:
            session.execute(ONE, bind_arguments={"bind": engine})
            (holder,) = engine.pool.holders.values()
            assert holder.describe()["session_id"] == metrics_for(session).session_id
            assert told(*BOTH) == (1, 0)
            session.connection(bind_arguments={"bind": engine}).detach()
            session.commit()
            session.execute(ONE, bind_arguments={"bind": engine})
            assert told(*BOTH) == (1, 0)
        assert told(*BOTH, "use_time_seconds_count") == (0, 1, 2)
        uninstrument(maker)

    def test_whatever_is_instrumented_of_it_one_pool_is_counted_once(self, new_engine):
        engine = new_engine(poolclass=QueuePool)
        makers = [sessionmaker(engine), sessionmaker(engine)]
        targets = [engine, *makers, scoped_session(makers[0]), Session]
        for number, target in enumerate(targets):
            instrument(target, name=f"target-{number}")
        for maker in (*makers, lambda: Session(engine), targets[3]):
            with maker() as session:
                session.execute(ONE)
                assert told(*BOTH, "sqlalchemy_pools") == (1, 0, 1)
        assert told(*TIMES) == (1, 4, 4)
        assert sum(counted(f"target-{n}").get("queries", 0) for n in range(len(targets))) == 4
        targets[3].remove()
        for target in targets:
            uninstrument(target)
        assert type(engine.pool) is QueuePool

    def test_a_connection_that_a_session_was_bound_to_is_kept_by_nobody(self, observe):
        engine = observe(poolclass=QueuePool)
        maker = sessionmaker()
        instrument(maker, name="bound")
        connection = engine.connect()
        maker(bind=connection).close()
        del connection  # dropped unclosed, as without us it goes back to its pool
        gc.collect()
        assert told(*BOTH) == (0, 1)
        uninstrument(maker)

    def test_a_double_of_an_engine_is_let_be(self):
        double = MagicMock()
        double.connect().in_transaction.return_value = False
        maker = sessionmaker(double)
        instrument(maker, name="double")
        with maker() as session:
            assert session.connection() is double.connect()
        uninstrument(maker)
        assert counted("double")["creations success"] == 1

    async def test_an_async_engine_and_its_sessions_are_counted_once(self, tmp_path):
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{tmp_path}/db", poolclass=AsyncAdaptedQueuePool
        )
        name = f"sqlite/{tmp_path}/db"
        maker = async_sessionmaker(engine)
        for number, target in enumerate((engine, engine.sync_engine, maker)):
            instrument(target, name=f"target-{number}")
        async with maker() as session, engine.connect():
            await session.execute(ONE)
            assert told(*BOTH, "sqlalchemy_pools", name=name) == (2, 0, 1)
        assert told(*BOTH, name=name) == (0, 2)
        assert told(*TIMES, name=name) == (2, 2, 2)
        await engine.dispose()
        async with maker() as session:
            await session.execute(ONE)
            assert told(*BOTH, "sqlalchemy_pools", name=name) == (1, 0, 1)
        await engine.dispose()
        for target in (engine, maker):
            uninstrument(target)
        assert type(engine.sync_engine.pool) is AsyncAdaptedQueuePool

    @pytest.mark.parametrize("last_in_first_out", [False, True])
    async def test_an_async_pool_knows_its_idle_ones_in_either_order(
        self, tmp_path, last_in_first_out
    ):
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{tmp_path}/db",
            poolclass=AsyncAdaptedQueuePool,
            pool_use_lifo=last_in_first_out,
            pool_logging_name="ordered",
        )
        instrument(engine, name="pooled")
        assert told(*BOTH, name="ordered") == (0, 0)
        async with engine.connect() as first, engine.connect() as second:
            assert told(*BOTH, name="ordered") == (2, 0)
            await second.close()
            assert told(*BOTH, name="ordered") == (1, 1)
            await first.invalidate()
        assert told(*BOTH, name="ordered") == (0, 1)
        await engine.dispose()
        uninstrument(engine)

    async def test_one_that_gave_up_waiting_is_no_longer_pending(self, tmp_path):
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{tmp_path}/db",
            poolclass=AsyncAdaptedQueuePool,
            pool_size=1,
            max_overflow=0,
            pool_logging_name="cancelled",
        )
        instrument(engine, name="pooled")
        async with engine.connect():
            waiting = asyncio.create_task(engine.connect().__aenter__())
            while told("pending_requests", name="cancelled") != (1,):  # noqa: ASYNC110 - as it waits
                await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert told("pending_requests", "timeouts_total", name="cancelled") == (0, 0)
            assert told(*BOTH, name="cancelled") == (1, 0)
        assert told(*TIMES, name="cancelled") == (1, 1, 1)
        await engine.dispose()
        uninstrument(engine)
