"""Request-scoped sessions: tagged, isolated, always closed, and counted as /metrics says."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
from reading import counted, since_2_0_31, value
from sqlalchemy import event, text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool, StaticPool

from session_metrics_otel import (
    bind,
    exhaustion_reports,
    factory,
    instrument,
    metrics_for,
    request_scope,
    uninstrument,
)
from session_metrics_otel.factory import RequestScopedSessionFactory
from session_metrics_otel.watchdog import unwatch, watch

ONE = text("select 1")


@pytest.fixture
def orders(engine):
    made = RequestScopedSessionFactory(engine, name="orders")
    yield made
    made.close()


@pytest.fixture
async def async_engine():
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    yield engine
    await engine.dispose()


@pytest.fixture
async def async_orders(async_engine):
    made = RequestScopedSessionFactory(async_engine, name="orders")
    yield made
    made.close()


@pytest.fixture
def one_connection(new_engine, tmp_path):
    """An engine whose pool has one, for which nobody waits."""
    return new_engine(
        f"sqlite:///{tmp_path}/db", poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=0
    )


def wait_in_vain(factory):
    with pytest.raises(PoolTimeoutError), factory.get_request_scoped_session("eve") as session:
        session.execute(ONE)


class TestASession:
    def test_is_tagged_and_closed(self, orders):
        with orders.get_request_scoped_session("ada", "r-1", "t-1") as session:
            assert isinstance(session, Session)
            record = metrics_for(session)
            created_at = session.info.pop("created_at")
            assert datetime.fromisoformat(created_at).utcoffset().total_seconds() == 0
            assert session.info == {
                "user_id": "ada",
                "request_id": "r-1",
                "thread_id": "t-1",
                "session_id": record.session_id,
                "is_request_scoped": True,
                "factory_managed": True,
            }
            assert (record.request_id, record.user_id) == ("r-1", "ada")
            session.execute(ONE)
            session.commit()
        assert record.state.value == "closed"
        assert counted("orders")["transactions committed"] == 1

    async def test_of_asyncio(self, async_orders):
        async with async_orders.get_request_scoped_session("ada", "r-1") as session:
            assert isinstance(session, AsyncSession)
            assert session.info["request_id"] == "r-1"
            await session.execute(ONE)
            await session.rollback()
        assert metrics_for(session).state.value == "closed"
        assert counted("orders")["transactions rolled_back"] == 1

    def test_takes_the_bound_request_id_and_else_makes_one(self, orders):
        with bind(request_id="bound"), orders.get_request_scoped_session("ada") as session:
            assert session.info["request_id"] == "bound"
        ids = set()
        for _ in range(2):
            with orders.get_request_scoped_session("ada") as session:
                ids.add(session.info["request_id"])
        assert [len(made) for made in ids] == [32, 32]

    def test_commits_nothing_by_itself(self, orders):
        with orders.get_request_scoped_session("ada") as session:
            session.execute(ONE)
        assert "transactions committed" not in counted("orders")
        assert counted("orders")["transactions closed"] == 1

    def test_ids_do_not_collide(self, orders):
        def one(_):
            with orders.get_request_scoped_session("ada", "the same") as session:
                return session.info["session_id"]

        with ThreadPoolExecutor(8) as threads:
            assert len(set(threads.map(one, range(2000)))) == 2000

    def test_needs_a_user(self, orders):
        with pytest.raises(ValueError, match="user_id=''"):
            orders.get_request_scoped_session("")

    def test_needs_the_right_kind_of_with(self, orders):
        async def wrong():
            async with orders.get_request_scoped_session("ada"):
                pass

        with pytest.raises(TypeError, match="use `with`"):
            asyncio.run(wrong())

    async def test_of_asyncio_needs_async_with(self, async_orders):
        with (
            pytest.raises(TypeError, match="use `async with`"),
            async_orders.get_request_scoped_session("ada"),
        ):
            pass

    def test_is_begun_once(self, orders):
        scope = orders.get_request_scoped_session("ada")
        with scope, pytest.raises(RuntimeError, match="begun once"), scope:
            pass


class TestFailure:
    def test_logs_the_six_fields_and_passes_the_error_on(self, orders, caplog):
        with pytest.raises(LookupError), orders.get_request_scoped_session("ada") as session:
            session.execute(ONE)
            raise LookupError
        record = metrics_for(session)
        (line,) = [entry for entry in caplog.records if entry.levelno == logging.ERROR]
        assert line.session_metrics == {
            "session_id": record.session_id,
            "state": "active",
            "created_at": record.created_at.isoformat(),
            "last_activity": line.session_metrics["last_activity"],
            "operations_count": 1,
            "errors": 0,
        }
        assert f"LookupError: session_id={record.session_id}, state=active" in line.getMessage()
        assert record.state.value == "closed"

    @pytest.mark.faults
    def test_logging_cannot_raise(self, orders, monkeypatch):
        def broken(*args, **kwargs):
            raise RuntimeError("no disk")

        monkeypatch.setattr(request_scope.logger, "error", broken)
        with pytest.raises(LookupError), orders.get_request_scoped_session("ada") as session:
            raise LookupError
        assert metrics_for(session).state.value == "closed"

    @pytest.mark.faults
    def test_a_session_that_lost_its_record_is_closed_all_the_same(self, orders):
        with pytest.raises(LookupError), orders.get_request_scoped_session("ada") as session:
            record = session.__dict__.pop("_session_metrics")
            raise LookupError
        assert record.state.value == "created"
        record.close()


class TestIsolation:
    def test_holds(self, orders):
        with orders.get_request_scoped_session("ada") as session:
            orders.validate_session_isolation(session, "ada")

    @pytest.mark.parametrize(
        ("info", "message"),
        [
            ({}, "Session is not marked as request-scoped: expected .* found None"),
            (
                {"is_request_scoped": 1},
                "Session is not marked as request-scoped: expected .*=True in its info, found 1",
            ),
            (
                {"is_request_scoped": True},
                "Session is not managed by RequestScopedSessionFactory: expected .* found None",
            ),
            (
                {"is_request_scoped": True, "factory_managed": True, "user_id": "eve"},
                "Session isolation violated: expected user_id='ada' in its info, found 'eve'",
            ),
        ],
    )
    def test_is_broken(self, info, message):
        with Session(info=info) as session, pytest.raises(ValueError, match=message):
            factory.validate_session_isolation(session, "ada")


class TestFigures:
    def test_agree_with_metrics(self, orders):
        for _ in range(3):
            with orders.get_request_scoped_session("ada") as session:
                session.execute(ONE)
        with orders.get_request_scoped_session("ada"):
            pass
        with orders.get_request_scoped_session("ada") as session:
            figures = orders.get_pool_metrics()
            assert figures.active_sessions == 1
            assert figures.total_sessions_created == 5
            assert figures.sessions_closed == 4
            assert figures.peak_concurrent_sessions == counted("orders")["peak"] == 1
            assert list(orders.get_session_metrics()) == [session.info["session_id"]]
        health = orders.health_check()
        assert health["status"] == "healthy"
        duration = sum_of("sqlalchemy_session_duration_seconds_sum")
        assert health["factory_metrics"] == {
            "active_sessions": 0,
            "total_created": 5,
            "total_closed": 5,
            "leaked_sessions": 0,
            "pool_exhaustion_events": 0,
            "peak_concurrent": 1,
            "avg_lifetime_ms": duration / 5 * 1000,
        }
        assert health["pool_status"] == {"kind": "StaticPool"}
        assert orders.get_session_metrics() == {}

    def test_of_leaks(self, orders):
        session = orders._new_session("ada", None, None)
        session.execute(ONE)
        del session
        gc.collect()
        health = orders.health_check()
        assert health["status"] == "degraded"
        assert health["factory_metrics"]["leaked_sessions"] == 1
        assert counted("orders")["leaks garbage_collected"] == 1
        assert health["factory_metrics"]["total_closed"] == 1

    def test_of_an_exhausted_pool(self, one_connection, tmp_path):
        orders = RequestScopedSessionFactory(one_connection, name="orders")
        with orders.get_request_scoped_session("ada") as first:
            first.execute(ONE)
            wait_in_vain(orders)
            assert orders.health_check()["pool_status"] == {
                "kind": "QueuePool", "size": 1, "checkedout": 1, "checkedin": 0, "overflow": 0,
            }  # fmt: skip
            with pytest.raises(PoolTimeoutError), one_connection.connect():
                pass  # whoever it is that waits in vain, the pool was exhausted
        figures = orders.get_pool_metrics()
        pool = {"db_client_connection_pool_name": f"sqlite/{tmp_path}/db"}
        assert figures.pool_exhaustion_events == 2
        assert value("db_client_connection_timeouts_total", **pool) == 2
        assert counted("orders")["errors TimeoutError"] == 1
        (report,) = exhaustion_reports()
        assert figures.last_pool_exhaustion == datetime.fromisoformat(report["last_at"])
        assert report["at"] < report["last_at"]
        assert figures.last_leak_detection is None
        orders.close()

    def test_where_sessions_choose_their_engine_counts_what_they_met(self, one_connection):
        class Routed(Session):
            def get_bind(self, *_args, **_options):
                return one_connection

        orders = RequestScopedSessionFactory(sessionmaker(class_=Routed), name="orders")
        with orders.get_request_scoped_session("ada") as first:
            first.execute(ONE)
            wait_in_vain(orders)
        figures = orders.get_pool_metrics()
        assert figures.pool_exhaustion_events == counted("orders")["errors TimeoutError"] == 1
        assert orders.health_check()["pool_status"] == {"kind": None}
        orders.close()

    def test_of_a_leak_that_the_watchdog_noticed(self, orders):
        watchdog = watch(overdue=0.001, idle_in_transaction=60, interval=60)
        try:
            with orders.get_request_scoped_session("ada") as session:
                session.execute(ONE)
                while metrics_for(session).get_age_seconds() <= 0.001:
                    pass
                watchdog.scan()
                noticed = watchdog.reports[-1].noticed_at
                figures = orders.get_pool_metrics()
        finally:
            unwatch()
        assert figures.leaked_sessions == 1
        assert figures.last_leak_detection.timestamp() == pytest.approx(noticed, abs=1e-5)


def sum_of(sample):
    from prometheus_client import REGISTRY

    return REGISTRY.get_sample_value(sample, {"factory": "orders"})


# Before it, SQLAlchemy itself loses connections whose task is cancelled, and their threads.
async def test_a_connection_whose_closing_failed_is_thrown_away(tmp_path, monkeypatch):
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{tmp_path}/db", poolclass=AsyncAdaptedQueuePool
    )
    orders = RequestScopedSessionFactory(engine, name="orders")

    thrown_away = []
    event.listen(engine.sync_engine, "invalidate", lambda *given: thrown_away.append(given))

    def refuse(_connection):
        raise OSError("the network is gone")

    with pytest.raises(OSError, match="the network is gone"):
        async with orders.get_request_scoped_session("ada") as session:
            await session.execute(ONE)
            monkeypatch.setattr(engine.dialect, "do_rollback", refuse)
    monkeypatch.undo()
    assert engine.pool.checkedout() == 0
    assert len(thrown_away) == 1
    assert value("sqlalchemy_sessions", factory="orders", state="active") == 0
    async with orders.get_request_scoped_session("ada") as session:
        assert await session.scalar(ONE) == 1
    orders.close()
    await engine.dispose()


@since_2_0_31
class TestCancellation:
    # aiosqlite drops the connection whose opening or ending is cancelled for Python to close, of
    # which Python 3.13 warns; what the pool and the sessions hold is asserted below.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    async def test_at_any_time_leaves_nothing_open(self, tmp_path):
        """10,000 requests, most of them cancelled somewhere; some twice, as they close."""
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{tmp_path}/db",
            poolclass=AsyncAdaptedQueuePool,
            pool_size=8,
            max_overflow=0,
        )
        orders = RequestScopedSessionFactory(engine, name="orders")
        chance = random.Random(7)
        records = []
        ends = Counter()

        async def request():
            async with orders.get_request_scoped_session("ada") as session:
                records.append(metrics_for(session))
                await session.execute(ONE)

        async def cancelled(task):
            for _ in range(chance.randrange(3)):
                for _ in range(chance.randrange(12)):
                    await asyncio.sleep(0)
                task.cancel()
            await asyncio.wait([task])
            ends[task.cancelled()] += 1

        for _ in range(100):
            await asyncio.gather(*(cancelled(asyncio.ensure_future(request())) for _ in range(100)))
        assert ends.total() == 10_000
        assert min(ends.values()) > 1000
        assert engine.pool.checkedout() == 0
        assert {record.state.value for record in records} == {"closed"}
        figures = orders.get_pool_metrics()
        assert figures.active_sessions == 0
        assert figures.total_sessions_created == figures.sessions_closed == len(records)
        assert figures.leaked_sessions == 0
        assert counted("orders")["duration_seconds_count"] == len(records)
        assert len(orders.get_session_metrics()) == 0
        orders.close()
        await engine.dispose()

    async def test_once_more_while_it_closes(self, async_engine):
        at_work, entered, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

        class Slow(AsyncSession):
            async def close(self):
                entered.set()
                await go_on.wait()
                await super().close()

        maker = async_sessionmaker(async_engine, class_=Slow)
        orders = RequestScopedSessionFactory(maker, name="orders")
        sessions = []

        async def request():
            async with orders.get_request_scoped_session("ada") as session:
                sessions.append(session)
                await session.execute(ONE)
                at_work.set()
                await asyncio.sleep(3600)

        task = asyncio.ensure_future(request())
        await at_work.wait()
        task.cancel()
        await entered.wait()
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert metrics_for(sessions[0]).state.value == "closed"
        assert counted("orders")["transactions closed"] == 1
        orders.close()

    async def test_a_task_that_takes_too_long(self, async_orders):
        at_work = asyncio.Event()

        async def request():
            async with async_orders.get_request_scoped_session("ada") as session:
                await session.execute(ONE)
                at_work.set()
                await asyncio.sleep(3600)

        task = asyncio.ensure_future(request())
        await at_work.wait()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(task, 0.05)
        assert async_orders.get_pool_metrics().active_sessions == 0


class TestMaking:
    def test_a_sessionmaker_that_is_instrumented_keeps_its_name(self, engine):
        maker = sessionmaker(engine)
        instrument(maker, name="own")
        orders = RequestScopedSessionFactory(maker, name="other")
        assert orders.name == "own"
        orders.close()
        with maker() as session:
            assert metrics_for(session).factory == "own"
        uninstrument(maker)

    def test_from_something_else(self):
        with pytest.raises(TypeError, match="takes a sessionmaker, .* not 'sqlite://'"):
            RequestScopedSessionFactory("sqlite://")

    def test_closed_makes_no_more_and_lets_the_open_ones_end(self, orders):
        with orders.get_request_scoped_session("ada") as session:
            orders.close()
            orders.close()
            with pytest.raises(RuntimeError, match="'orders' is closed"):
                orders.get_request_scoped_session("ada")
            session.execute(ONE)
        assert counted("orders")["transactions closed"] == 1
        assert orders.health_check()["status"] == "closed"


class TestTheApplicationsOne:
    @pytest.fixture(autouse=True)
    def _shut_down(self):
        yield
        factory.shutdown_session_factory()

    def test_is_made_once(self, engine):
        assert factory.get_factory_health() == {"status": "not_initialized"}
        with pytest.raises(RuntimeError, match="no session factory yet"):
            factory.get_session_factory()
        made = factory.get_session_factory(engine, name="orders")
        assert factory.get_session_factory() is made
        assert factory.get_session_factory(engine) is made
        with factory.get_isolated_session("ada") as session:
            factory.validate_session_isolation(session, "ada")
        assert factory.get_factory_health()["factory_metrics"]["total_closed"] == 1

    def test_is_not_replaced_unsaid(self, engine, new_engine):
        factory.get_session_factory(engine)
        with pytest.raises(RuntimeError, match="shutdown_session_factory"):
            factory.get_session_factory(new_engine())
