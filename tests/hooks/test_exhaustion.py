"""The report on an exhausted pool: all that it says, to whom, and how often."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path

import pytest
from hooks.conftest import Base, Order
from reading import counted, shown
from sqlalchemy import Column, Engine, Integer, MetaData, Table, event, select, text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool

from session_metrics_otel import bind, exhaustion_reports, instrument, metrics_for, uninstrument
from session_metrics_otel.hooks import holders

ONE = text("select 1")
ITEMS = Table("items", MetaData(), Column("id", Integer, primary_key=True))


@pytest.fixture
def starved(observe):
    """Makes an engine whose one connection is soon waited for in vain."""

    def starved(**options):
        return observe(
            poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.01, **options
        )

    return starved


def reports_logged(caplog):
    return [r for r in caplog.records if hasattr(r, "exhaustion_report")]


def ask_in_vain(engine):
    with pytest.raises(PoolTimeoutError):
        engine.connect()


def test_every_field_of_a_report(starved, caplog):
    engine = starved()
    maker = sessionmaker(engine)
    instrument(maker, name="orders")
    with bind(request_id="r-1", user_id="ann", route="/orders"):
        holding = maker()
        ITEMS.create(holding.connection())
        holding.execute(select(ITEMS)).all()
    with bind(request_id="r-2", route="/bill"):
        waiting = maker()
        with pytest.raises(PoolTimeoutError):
            waiting.execute(ONE)
    (report,) = exhaustion_reports()
    (holder,) = report["holders"]
    assert holder.pop("held_seconds") >= holder.pop("idle_seconds") >= 0
    here = "in test_every_field_of_a_report"
    taken_at, made_at = holder.pop("taken_at"), holder.pop("made_at")
    assert holder == {
        "session_id": metrics_for(holding).session_id,
        "request_id": "r-1",
        "route": "/orders",
        "factory": "orders",
        "state": "active",
        "statements": 2,
        "last_statement": "SELECT items",
    }
    for place in (taken_at, made_at, asked_at := report["waiting"].pop("asked_at")):
        assert place.startswith(f"{__file__}:")
        assert place.endswith(here)
    lines = [int(place.split(":")[1].split()[0]) for place in (made_at, taken_at, asked_at)]
    assert lines == [lines[0], lines[0] + 1, lines[0] + 6]
    assert report["waiting"].pop("made_at").endswith(here)
    assert report["waiting"] == {
        "session_id": metrics_for(waiting).session_id,
        "request_id": "r-2",
        "route": "/bill",
        "holds": 0,
    }
    assert report.keys() == {
        *("at", "last_at", "pool", "status", "timeouts", "nested", "waiting", "holders")
    }
    assert (report["pool"], report["timeouts"], report["nested"]) == ("sqlite/", 1, 0)
    assert "Current Checked out connections: 1" in report["status"]
    (logged,) = reports_logged(caplog)
    assert logged.exhaustion_report == report
    assert (logged.name, logged.levelname) == ("session_metrics_otel", "WARNING")
    for session in (holding, waiting):
        session.close()
    uninstrument(maker)


@pytest.mark.parametrize("moment", ["before_commit", "before_flush", "after_commit"])
def test_what_a_listener_of_a_session_asks_for_is_not_asked_by_the_session(
    new_engine, starved, moment
):
    audit = starved(pool_logging_name="audit")
    engine = new_engine()
    Base.metadata.create_all(engine)
    maker = sessionmaker(engine)
    instrument(maker, name="orders")

    def asks(*_):
        with bind(request_id="r-2"):
            ask_in_vain(audit)

    event.listen(maker, moment, asks)
    with audit.connect(), maker() as session:
        session.add(Order())
        session.commit()
        assert metrics_for(session).state == "committed"
    uninstrument(maker)
    (report,) = exhaustion_reports()
    assert (report["waiting"]["session_id"], report["waiting"]["request_id"]) == ("", "r-2")
    assert shown("audit")["timeouts_total"] == 1
    assert not [key for key in counted("orders") if key.startswith("errors")]


def test_who_held_longest_comes_first(observe):
    engine = observe(poolclass=QueuePool, pool_size=3, max_overflow=0, pool_timeout=0.01)
    taken = [engine.connect() for _ in range(3)]
    taken[0].close()
    taken[0] = engine.connect()
    ask_in_vain(engine)
    (report,) = exhaustion_reports()
    seconds = [holder["held_seconds"] for holder in report["holders"]]
    assert seconds == sorted(seconds, reverse=True)
    assert len(seconds) == 3
    for connection in taken:
        connection.close()


def test_a_pool_has_one_report_in_an_interval_and_another_in_the_next(starved, caplog, monkeypatch):
    one, other = starved(), starved(pool_logging_name="other")
    with one.connect(), other.connect():
        for engine in (one, other, one, one):
            ask_in_vain(engine)
        assert [(r["pool"], r["timeouts"]) for r in exhaustion_reports()] == [
            ("sqlite/", 3),
            ("other", 1),
        ]
        assert len(reports_logged(caplog)) == 2
        monkeypatch.setattr(holders, "REPORT_INTERVAL", 0)
        ask_in_vain(one)
    assert [(r["pool"], r["timeouts"]) for r in exhaustion_reports()] == [
        ("sqlite/", 3),
        ("other", 1),
        ("sqlite/", 1),
    ]
    assert len(reports_logged(caplog)) == 3
    assert shown()["timeouts_total"] == 4


def test_two_pools_of_one_name_have_a_report_each_with_its_own_holders(starved):
    first, second = starved(), starved()
    for engine, request in ((first, "r-1"), (second, "r-2")):
        with bind(request_id=request), engine.connect() as connection:
            connection.execute(ONE)
            ask_in_vain(engine)
            ask_in_vain(engine)
    assert [
        (report["pool"], report["timeouts"], [holder["request_id"] for holder in report["holders"]])
        for report in exhaustion_reports()
    ] == [("sqlite/", 2, ["r-1"]), ("sqlite/", 2, ["r-2"])]


def test_a_wrapper_of_the_usual_instrumentation_is_not_who_took_the_connection(
    starved, monkeypatch
):
    wrapper = "lambda connect: lambda *given: connect(*given)"
    file = str(Path("site-packages", "opentelemetry", "instrumentation", "sqlalchemy", "engine.py"))
    monkeypatch.setattr(Engine, "connect", eval(compile(wrapper, file, "eval"))(Engine.connect))
    engine = starved()
    with engine.connect():
        ask_in_vain(engine)
    (report,) = exhaustion_reports()
    (holder,) = report["holders"]
    assert holder["taken_at"].startswith(f"{__file__}:")


def test_the_last_twenty_are_kept(starved, monkeypatch):
    monkeypatch.setattr(holders, "REPORT_INTERVAL", 0)
    engine = starved()
    with engine.connect():
        for number in range(22):
            with bind(request_id=f"r-{number}"):
                ask_in_vain(engine)
    kept = [report["waiting"]["request_id"] for report in exhaustion_reports()]
    assert kept == [f"r-{number}" for number in range(2, 22)]


def exhausted(spans):
    """Where the event is, and the holders that it names."""
    return [
        (span.name, event.attributes["holders"])
        for span in spans.get_finished_spans()
        for event in span.events
        if event.name == "sqlalchemy.pool.exhausted"
    ]


@pytest.mark.parametrize("mode", ["core", "attributes", "off"])
def test_whoever_waits_on_the_callers_span_has_it_there(starved, provider, spans, mode):
    engine = starved()
    maker = sessionmaker(engine)
    given = "span" if mode == "core" else mode
    instrument(maker, name="orders", spans=given, tracer_provider=provider)
    with ExitStack() as held, bind(route="/orders"):
        holding = held.enter_context(maker())
        holding.execute(ONE)
        session_id = metrics_for(holding).session_id
        spans.clear()
        with provider.get_tracer("app").start_as_current_span("GET /bill"):
            if mode == "core":
                ask_in_vain(engine)
            else:
                with maker() as waiting, pytest.raises(PoolTimeoutError):
                    waiting.execute(ONE)
        found = exhausted(spans)
    uninstrument(maker)
    if mode == "off":
        assert found == []
        return
    ((span, (holder,)),) = found
    assert span == "GET /bill"
    assert holder.startswith(f"{session_id} /orders {__file__}:")


async def test_fifty_waiting_tasks_are_one_report(tmp_path, caplog):
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{tmp_path}/db",
        poolclass=AsyncAdaptedQueuePool,
        pool_size=2,
        max_overflow=0,
        pool_timeout=0.05,
        pool_logging_name="async",
    )
    maker = async_sessionmaker(engine)
    instrument(maker, name="orders")
    with bind(request_id="r-1", route="/orders"):
        holding = maker()
        await holding.execute(ONE)
    core = await engine.connect()

    async def ask():
        async with maker() as session:
            await session.execute(ONE)

    asked = [asyncio.create_task(ask()) for _ in range(50)]
    refused = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(error) for error in refused] == [PoolTimeoutError] * 50
    (report,) = exhaustion_reports()
    assert (report["timeouts"], report["nested"]) == (50, 0)
    assert report["waiting"]["asked_at"].endswith("in ask")
    by_session, by_core = report["holders"]
    assert by_session["session_id"] == metrics_for(holding).session_id
    assert (by_session["request_id"], by_session["route"]) == ("r-1", "/orders")
    assert by_core["session_id"] == ""
    for holder in report["holders"]:
        assert holder["taken_at"].startswith(f"{__file__}:")
        assert holder["taken_at"].endswith("in test_fifty_waiting_tasks_are_one_report")
    assert len(reports_logged(caplog)) == 1
    found = shown("async")
    assert (found["timeouts_total"], found["pending_requests"], found["count used"]) == (50, 0, 2)
    await holding.close()
    await core.close()
    await engine.dispose()
    uninstrument(maker)
