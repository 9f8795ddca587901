"""Each pool class with the exact values that it must show."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
from contextlib import ExitStack

import pytest
from prometheus_client import REGISTRY
from reading import shown, value
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import (
    AssertionPool,
    AsyncAdaptedQueuePool,
    NullPool,
    Pool,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
)

from session_metrics_otel import bind, exhaustion_reports, instrument, metrics_for, uninstrument
from session_metrics_otel.hooks import holders, pools

ONE = text("select 1")
NAME = "sqlite/"


class TestEachClass:
    def test_queue_pool(self, observe):
        engine = observe(poolclass=QueuePool, pool_size=2, max_overflow=3)
        with engine.connect(), engine.connect(), engine.connect():
            assert shown() == {
                "count used": 3,
                "count idle": 0,
                "max": 5,
                "idle_max": 2,
                "idle_min": 0,
                "pending_requests": 0,
                "timeouts_total": 0,
                "create_time_seconds_count": 3,
                "wait_time_seconds_count": 3,
                "use_time_seconds_count": 0,
                "sqlalchemy_pools": 1,
                "sqlalchemy_pool_detached": 0,
                "sqlalchemy_pool_invalidations_total": 0,
                "sqlalchemy_pool_nested_timeouts_total": 0,
            }
        found = shown()
        assert (found["count used"], found["count idle"]) == (0, 2)  # the overflow was closed
        assert found["use_time_seconds_count"] == 3

    def test_queue_pool_without_a_limit(self, observe):
        observe(poolclass=QueuePool, pool_size=0)
        assert "max" not in shown()
        assert "idle_max" not in shown()

    def test_null_pool(self, observe):
        engine = observe(poolclass=NullPool)
        with engine.connect(), engine.connect():
            found = shown()
            assert (found["count used"], found["count idle"]) == (2, 0)
        found = shown()
        assert (found["count used"], found["count idle"]) == (0, 0)
        assert found["idle_max"] == 0
        assert "max" not in found
        assert found["create_time_seconds_count"] == 2

    def test_static_pool(self, observe):
        engine = observe(poolclass=StaticPool, connect_args={"check_same_thread": False})
        assert shown()["count idle"] == 0
        with engine.connect(), engine.connect():
            assert shown()["count used"] == 1
        found = shown()
        assert (found["count used"], found["count idle"], found["max"]) == (0, 1, 1)
        assert found["create_time_seconds_count"] == 1

    def test_singleton_thread_pool(self, observe):
        engine = observe(poolclass=SingletonThreadPool, pool_size=4)
        with engine.connect(), engine.connect():
            assert shown()["count used"] == 1
        found = shown()
        assert found["count used"] == 0
        assert found["idle_max"] == 4
        assert "count idle" not in found
        assert "max" not in found

    def test_assertion_pool(self, observe):
        engine = observe(poolclass=AssertionPool)
        with engine.connect():
            found = shown()
            assert (found["count used"], found["count idle"], found["max"]) == (1, 0, 1)
        assert shown()["count idle"] == 1

    @pytest.mark.parametrize("kind", [QueuePool, NullPool, StaticPool, AssertionPool])
    @pytest.mark.parametrize("give_up", ["invalidate", "detach"])
    def test_an_entry_without_a_connection_is_not_idle(self, observe, kind, give_up):
        engine = observe(poolclass=kind)
        with engine.connect() as connection:
            getattr(connection, give_up)()
            assert (shown()["count used"], shown()["count idle"]) == (0, 0)
        found = shown()
        assert (found["count used"], found["count idle"]) == (0, 0)
        assert found["sqlalchemy_pool_invalidations_total"] == (give_up == "invalidate")
        assert found["sqlalchemy_pool_detached"] == 0

    def test_async_queue_pool(self, tmp_path):
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{tmp_path}/db",
            poolclass=AsyncAdaptedQueuePool,
            pool_size=1,
            max_overflow=0,
            pool_timeout=0.01,
            pool_logging_name="async",
        )
        instrument(engine, name="pooled")

        async def work():
            async with engine.connect() as connection:
                await connection.execute(ONE)
                assert shown("async")["count used"] == 1
                with pytest.raises(PoolTimeoutError):
                    await engine.connect()
            (report,) = (r for r in exhaustion_reports() if r["pool"] == "async")
            await engine.dispose()
            return report

        report = asyncio.run(work())
        uninstrument(engine)
        holders._reports.clear()
        assert shown("async")["timeouts_total"] == 1
        (holder,) = report["holders"]
        assert holder["taken_at"].endswith("in work")
        assert __file__ in holder["taken_at"]


class TestNames:
    def test_the_engines_own(self, observe):
        observe(poolclass=QueuePool, pool_logging_name="orders")
        assert shown("orders")["sqlalchemy_pools"] == 1

    @pytest.mark.parametrize(
        ("url", "name"),
        [
            ("postgresql+psycopg://u:secret@db.example:5433/shop", "db.example:5433/shop"),
            ("postgresql+psycopg://db.example/shop", "db.example/shop"),
            ("postgresql+psycopg:///shop", "postgresql/shop"),
            ("postgresql+asyncpg://u:secret@/shop?host=/sql/primary", "/sql/primary/shop"),
            ("postgresql+psycopg:///shop?host=one&host=two", "postgresql/shop"),
            ("postgresql+pg8000://u@/shop?unix_sock=/sql/replica/.s", "/sql/replica/.s/shop"),
            ("mysql+pymysql://u@/shop?unix_socket=/sql/primary", "/sql/primary/shop"),
            ("sqlite:////tmp/x.db", "sqlite//tmp/x.db"),
        ],
    )
    def test_where_it_leads_to(self, url, name):
        from types import SimpleNamespace

        from sqlalchemy.engine import make_url

        from session_metrics_otel.hooks.pools import pool_name

        pool = SimpleNamespace(_orig_logging_name=None)
        assert pool_name(SimpleNamespace(pool=pool, url=make_url(url))) == name


class TestLives:
    def test_dispose_makes_a_pool_that_is_seen_as_well(self, observe):
        engine = observe(poolclass=QueuePool)
        given_up = engine.pool
        with engine.connect():
            engine.dispose()
            found = shown()
            assert (found["count used"], found["sqlalchemy_pools"]) == (1, 1)
            with engine.connect():
                assert shown()["count used"] == 2
        given_up.dispose()  # else what came back to it is closed when it is collected
        del given_up
        gc.collect()
        found = shown()
        assert (found["count used"], found["count idle"]) == (0, 1)
        assert found["use_time_seconds_count"] == 2
        assert found["create_time_seconds_count"] == 2

    def test_an_engine_for_each_request_shows(self, new_engine):
        options = {"poolclass": QueuePool, "pool_logging_name": "many"}
        engines = [new_engine("sqlite://", **options) for _ in range(5)]
        for engine in engines:
            instrument(engine)
        assert shown("many")["sqlalchemy_pools"] == 5
        assert shown("many")["max"] == 5 * 15
        for engine in engines:
            uninstrument(engine)
        assert "sqlalchemy_pools" not in shown("many")

    def test_a_pool_that_is_gone_is_out_of_the_gauges(self):
        engine = create_engine("sqlite://", poolclass=QueuePool, pool_logging_name="short")
        instrument(engine)
        assert shown("short")["sqlalchemy_pools"] == 1
        del engine
        gc.collect()
        assert "sqlalchemy_pools" not in shown("short")

    def test_a_pool_that_serves_several_factories_is_counted_once(self, new_engine):
        engine = new_engine("sqlite://", poolclass=QueuePool)
        makers = [sessionmaker(engine), sessionmaker(engine)]
        for number, maker in enumerate(makers):
            instrument(maker, name=f"maker-{number}")
            with maker() as session:
                session.execute(ONE)
        found = shown()
        assert found["sqlalchemy_pools"] == 1
        assert found["use_time_seconds_count"] == 2
        for maker in makers:
            uninstrument(maker)

    def test_invalidated(self, observe):
        engine = observe(poolclass=QueuePool)
        with engine.connect() as connection:
            connection.invalidate()
        found = shown()
        assert found["sqlalchemy_pool_invalidations_total"] == 1
        assert (found["count used"], found["count idle"]) == (0, 0)

    def test_after_dispose_nothing_is_counted_twice_or_unasked(self, new_engine):
        engine = new_engine("sqlite://", poolclass=QueuePool, pool_logging_name="disposed")

        def invalidate():
            with engine.connect() as connection:
                connection.invalidate()

        instrument(engine)
        engine.dispose()
        invalidate()
        uninstrument(engine)
        invalidate()
        instrument(engine)
        invalidate()
        uninstrument(engine)
        assert shown("disposed")["sqlalchemy_pool_invalidations_total"] == 2

    def test_detached(self, observe):
        engine = observe(poolclass=QueuePool)
        connection = engine.connect()
        connection.detach()
        found = shown()
        assert (found["count used"], found["sqlalchemy_pool_detached"]) == (0, 1)
        connection.close()
        assert shown()["sqlalchemy_pool_detached"] == 0

    def test_pre_ping_and_recycle(self, observe):
        engine = observe(poolclass=QueuePool, pool_pre_ping=True, pool_recycle=0)
        for _ in range(3):
            with engine.connect():
                pass
        found = shown()
        assert found["wait_time_seconds_count"] == 3
        assert found["create_time_seconds_count"] >= 2
        assert (found["count used"], found["count idle"]) == (0, 1)

    def test_a_dropped_connection_comes_back(self, observe):
        engine = observe(poolclass=QueuePool)
        raw = engine.raw_connection()
        assert shown()["count used"] == 1
        del raw
        gc.collect()
        assert shown()["count used"] == 0
        assert shown()["use_time_seconds_count"] == 1

    def test_a_pool_of_ones_own(self, new_engine):
        pool = QueuePool(lambda: sqlite3.connect(":memory:"), pool_size=1)
        engine = create_engine("sqlite://", pool=pool)
        instrument(engine)
        with engine.connect():
            assert shown()["count used"] == 1
        uninstrument(engine)
        engine.dispose()
        assert type(pool) is QueuePool

    def test_a_pool_that_connects_in_its_own_way_still_does(self, observe):
        asked = []

        class Own(StaticPool):
            def connect(self):
                asked.append(self)
                return super().connect()

        engine = observe(poolclass=Own)
        asked.clear()
        with engine.connect():
            assert shown()["count used"] == 1
        assert asked == [engine.pool]

    @pytest.mark.faults
    def test_a_pool_that_does_not_tell_its_size_leaves_the_others_told(self, observe):
        class Own(QueuePool):
            tells = True

            def size(self):
                if not self.tells:
                    raise NotImplementedError
                return super().size()

        own = observe(poolclass=Own, pool_logging_name="own").pool
        own.tells = False
        observe(poolclass=QueuePool)
        assert shown()["count idle"] == 0
        found = shown("own")
        assert (found["count used"], found["sqlalchemy_pools"]) == (0, 1)
        assert "count idle" not in found
        assert value("sqlalchemy_session_telemetry_faults_total", component="pools") >= 1
        own.tells = True

    def test_what_somebody_else_put_around_connecting_still_runs(self, observe, monkeypatch):
        asked = []
        connect = Pool.connect
        monkeypatch.setattr(Pool, "connect", lambda pool: asked.append(pool) or connect(pool))
        engine = observe(poolclass=StaticPool)
        asked.clear()
        engine.connect().close()
        assert asked == [engine.pool]

    def test_a_pool_that_two_engines_share_is_counted_until_both_are_given_back(self, new_engine):
        first = new_engine("sqlite://", poolclass=QueuePool)
        second = create_engine("sqlite://", pool=first.pool)
        for name, engine in (("first", first), ("second", second)):
            instrument(engine, name=name)
        with first.connect(), second.connect():
            found = shown()
            assert (found["count used"], found["sqlalchemy_pools"]) == (2, 1)
            assert found["wait_time_seconds_count"] == found["create_time_seconds_count"] == 2
        uninstrument(first)
        with second.connect():
            found = shown()
            assert (found["count used"], found["count idle"]) == (1, 1)
            assert (found["sqlalchemy_pools"], found["wait_time_seconds_count"]) == (1, 3)
        uninstrument(second)
        assert type(first.pool) is QueuePool
        assert first.pool is second.pool

    def test_a_refused_connection_holds_nothing(self, new_engine, tmp_path):
        engine = new_engine(
            f"sqlite:///{tmp_path}/no/such/db", poolclass=QueuePool, pool_logging_name="refused"
        )
        instrument(engine)
        with pytest.raises(OperationalError):
            engine.connect()
        found = shown("refused")
        assert (found["count used"], found["pending_requests"]) == (0, 0)
        assert found["wait_time_seconds_count"] == found["create_time_seconds_count"] == 0
        uninstrument(engine)

    def test_uninstrument_puts_the_pool_back(self, new_engine):
        engine = new_engine("sqlite://", poolclass=QueuePool)
        before = set(vars(engine.pool))
        instrument(engine)
        uninstrument(engine)
        assert type(engine.pool) is QueuePool
        assert set(vars(engine.pool)) == before
        with engine.connect() as connection:
            assert connection.scalar(ONE) == 1


class TestExhaustion:
    def starved(self, observe, **options):
        return observe(
            poolclass=QueuePool, pool_size=2, max_overflow=0, pool_timeout=0.05, **options
        )

    def test_the_report_names_who_holds_what_since_where(self, observe, caplog):
        engine = self.starved(observe)
        with bind(request_id="r-1", route="/orders"):
            session = Session(engine)
            session.execute(ONE)
            session.execute(ONE)
        core = engine.connect()
        with bind(request_id="r-2", route="/reports"):
            core.execute(text("select 2 from (select 1)"))
        with pytest.raises(PoolTimeoutError):
            engine.connect()
        (report,) = exhaustion_reports()
        assert report["pool"] == NAME
        assert report["timeouts"] == 1
        by_session, by_core = report["holders"]
        assert by_session["session_id"] == metrics_for(session).session_id
        assert by_session["request_id"] == "r-1"
        assert by_session["route"] == "/orders"
        assert by_session["state"] == "active"
        assert by_session["statements"] == 2
        assert by_session["last_statement"] == "SELECT"
        assert by_core["session_id"] == ""
        assert by_core["request_id"] == "r-2"
        assert by_core["route"] == "/reports"
        assert by_core["statements"] == 1
        assert by_core["last_statement"] == "SELECT SELECT"  # its table is a query of its own
        for holder in report["holders"]:
            assert holder["taken_at"].startswith(__file__)
            name = "test_the_report_names_who_holds_what_since_where"
            assert holder["taken_at"].endswith(f" in {name}")
            assert holder["held_seconds"] >= 0
        lines = {holder["taken_at"].split(":")[1].split(" ")[0] for holder in report["holders"]}
        assert len(lines) == 2
        (logged,) = (r for r in caplog.records if r.name == "session_metrics_otel")
        assert logged.exhaustion_report == report
        assert "No connection available from pool 'sqlite/'" in logged.getMessage()
        assert "route /orders" in logged.getMessage()
        assert shown()["timeouts_total"] == 1
        session.close()
        core.close()

    def test_a_connection_is_its_own_again_after_a_session_that_was_bound_to_it(self, observe):
        engine = self.starved(observe)
        with engine.connect() as core, engine.connect():
            with bind(request_id="r-1"), Session(core) as session:
                session.execute(ONE)
                with pytest.raises(PoolTimeoutError):
                    engine.connect()
                report = exhaustion_reports()[-1]
                assert report["holders"][0]["session_id"] == metrics_for(session).session_id
            holders._last_report.clear()
            with pytest.raises(PoolTimeoutError):
                engine.connect()
            held = exhaustion_reports()[-1]["holders"][0]
            assert (held["session_id"], held["state"], held["made_at"]) == ("", "", "")
            assert (held["request_id"], held["last_statement"]) == ("r-1", "SELECT")
            holders._last_report.clear()
            with bind(request_id="r-2"):
                core.execute(ONE)
            with pytest.raises(PoolTimeoutError):
                engine.connect()
            held = exhaustion_reports()[-1]["holders"][0]
            assert (held["session_id"], held["state"], held["statements"]) == ("", "", 1)
            assert held["request_id"] == "r-2"

    def test_who_waits_and_holds_one_already_is_told_apart(self, observe, caplog):
        engine = self.starved(observe)
        nested = "sqlalchemy_pool_nested_timeouts_total"
        with Session(engine) as other, ExitStack() as request:
            other.execute(ONE)
            with bind(request_id="r-1", route="/bill"):
                outer = request.enter_context(Session(engine))
                outer.execute(ONE)
                inner = Session(engine)
                with pytest.raises(PoolTimeoutError):
                    inner.execute(ONE)
                inner.close()
            (report,) = exhaustion_reports()
            assert report["waiting"]["request_id"] == "r-1"
            assert report["waiting"]["route"] == "/bill"
            assert report["waiting"]["holds"] == 1
            assert report["waiting"]["asked_at"].startswith(__file__)
            assert report["nested"] == 1
            assert value(nested, db_client_connection_pool_name=NAME) == 1
            assert "waits for a connection" in caplog.text
            with Session(engine) as unbound, pytest.raises(PoolTimeoutError):
                unbound.execute(ONE)
            assert report["timeouts"] == 2
            assert report["nested"] == 1
            assert value(nested, db_client_connection_pool_name=NAME) == 1

    def test_a_request_holds_the_connections_that_it_took_without_a_session_too(self, observe):
        engine = self.starved(observe)
        with engine.connect() as other, engine.connect() as core:
            with bind(request_id="r-2"):
                other.execute(ONE)
            with bind(request_id="r-1"):
                core.execute(ONE)
                with Session(engine) as session, pytest.raises(PoolTimeoutError):
                    session.execute(ONE)
        (report,) = exhaustion_reports()
        assert (report["nested"], report["waiting"]["holds"]) == (1, 1)
        assert shown()["sqlalchemy_pool_nested_timeouts_total"] == 1

    def test_a_session_of_two_engines_of_one_pool_holds_one_itself(self, observe, caplog):
        engine = self.starved(observe)
        other = engine.execution_options(isolation_level="AUTOCOMMIT")
        with engine.connect(), Session() as session:  # for no request that is known
            session.execute(ONE, bind_arguments={"bind": engine})
            with pytest.raises(PoolTimeoutError):
                session.execute(ONE, bind_arguments={"bind": other})
        (report,) = exhaustion_reports()
        assert (report["nested"], report["waiting"]["holds"]) == (1, 1)
        assert "Route unknown, request unknown, waits for a connection at " in caplog.text
        assert shown()["sqlalchemy_pool_nested_timeouts_total"] == 1

    def test_pools_that_lead_to_too_many_places_are_not_said_to_lead_to_one(
        self, new_engine, monkeypatch, caplog
    ):
        monkeypatch.setattr(pools, "MAX_POOLS", 2)
        engines = [new_engine(pool_logging_name=f"tenant-{number}") for number in range(14)]
        for engine in engines:
            instrument(engine)
        assert shown("_OTHER")["sqlalchemy_pools"] == 12
        for engine in engines:
            uninstrument(engine)
        assert caplog.records == []

    def test_pools_that_multiply_are_warned_of_with_the_line_that_made_them(
        self, observe, new_engine, caplog
    ):
        engines = [new_engine(poolclass=QueuePool) for _ in range(20)]
        with bind(request_id="r-1", route="/bill"):
            for engine in engines:
                instrument(engine)
        for engine in engines:
            uninstrument(engine)
        first, second = [r.getMessage() for r in caplog.records if "lead to" in r.getMessage()]
        assert first.startswith("10 pools lead to 'sqlite/'")
        assert second.startswith("20 pools lead to 'sqlite/'")
        assert f"made at {__file__}:" in first
        assert first.endswith("request r-1, route /bill")

    def test_lines_are_not_taken_note_of_where_they_are_not_wanted(self, new_engine):
        engine = new_engine(
            "sqlite://", poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.01
        )
        instrument(engine, holder_lines=False)
        with engine.connect(), pytest.raises(PoolTimeoutError):
            engine.connect()
        uninstrument(engine)
        (holder,) = exhaustion_reports()[-1]["holders"]
        assert holder["taken_at"] == ""
        holders._last_report.clear()
        holders._reports.clear()

    def test_fifty_waiters_at_once_are_one_report(self, observe, caplog):
        engine = self.starved(observe)
        taken = [engine.connect() for _ in range(2)]
        refused = []

        def wait():
            try:
                engine.connect()
            except PoolTimeoutError:
                refused.append(1)

        threads = [threading.Thread(target=wait) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(refused) == 50
        (report,) = exhaustion_reports()
        assert report["timeouts"] == 50
        assert len(report["holders"]) == 2
        assert len([r for r in caplog.records if r.name == "session_metrics_otel"]) == 1
        assert shown()["timeouts_total"] == 50
        assert shown()["pending_requests"] == 0
        for connection in taken:
            connection.close()

    def test_the_waiting_session_has_it_on_its_span(self, new_engine, provider, spans):
        engine = new_engine(
            "sqlite://", poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.01
        )
        maker = sessionmaker(engine)
        instrument(maker, name="pooled", tracer_provider=provider)
        with maker() as holder:
            holder.execute(ONE)
            with maker() as waiter, pytest.raises(PoolTimeoutError):
                waiter.execute(ONE)
        uninstrument(maker)
        holders._last_report.clear()
        holders._reports.clear()
        events = [
            event
            for span in spans.get_finished_spans()
            for event in span.events
            if event.name == "sqlalchemy.pool.exhausted"
        ]
        (event,) = events
        assert event.attributes["db.client.connection.pool.name"] == NAME
        assert __file__ in event.attributes["holders"][0]

    def test_waiting_shows_while_it_lasts(self, observe):
        engine = observe(
            poolclass=QueuePool,
            pool_size=1,
            max_overflow=0,
            pool_timeout=30,
            connect_args={"check_same_thread": False},
        )
        held = engine.connect()
        thread = threading.Thread(target=lambda: engine.connect().close())
        thread.start()
        while shown()["pending_requests"] == 0:
            assert thread.is_alive()
        assert shown()["pending_requests"] == 1
        held.close()
        thread.join()
        assert shown()["pending_requests"] == 0


class TestRoutes:
    def test_holding_time_and_sessions_by_route(self, new_engine):
        maker = sessionmaker(new_engine())
        instrument(maker, name="routed")
        for route in ("/orders", "/orders", "/report", None):
            with bind(route=route), maker() as session:
                session.execute(ONE)
        uninstrument(maker)
        for route, times in (("/orders", 2), ("/report", 1)):
            labels = {"http_route": route}
            held = "sqlalchemy_route_connection_use_time_seconds_count"
            assert REGISTRY.get_sample_value(held, labels) == times
            labels["factory"] = "routed"
            assert REGISTRY.get_sample_value("sqlalchemy_route_sessions_total", labels) == times

    def test_connections_without_a_session_are_held_by_routes_too(self, observe):
        engine = observe(poolclass=QueuePool)
        with bind(route="/export"), engine.connect() as connection:
            connection.execute(ONE)
        with engine.connect() as connection:
            connection.execute(ONE)
        held = "sqlalchemy_route_connection_use_time_seconds_count"
        assert REGISTRY.get_sample_value(held, {"http_route": "/export"}) == 1
        assert shown()["use_time_seconds_count"] == 2
        sessions = {"http_route": "/export", "factory": "pooled"}
        assert REGISTRY.get_sample_value("sqlalchemy_route_sessions_total", sessions) is None

    def test_at_most_a_hundred_routes_have_series(self, new_engine):
        maker = sessionmaker(new_engine())
        instrument(maker, name="routed")
        for number in range(103):
            with bind(route=f"/orders/{number}"), maker() as session:
                session.execute(ONE)
        uninstrument(maker)
        for name in (
            "sqlalchemy_route_connection_use_time_seconds_count",
            "sqlalchemy_route_sessions_total",
        ):
            found = {
                sample.labels["http_route"]: sample.value
                for family in REGISTRY.collect()
                for sample in family.samples
                if sample.name == name
            }
            assert found == {f"/orders/{number}": 1 for number in range(100)} | {"_OTHER": 3}
