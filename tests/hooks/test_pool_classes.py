"""Every pool class in the same work on a SQLite file, by /metrics and by OpenTelemetry alike."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import REGISTRY
from reading import value
from sqlalchemy import Column, Integer, MetaData, Table, create_engine, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import (
    AssertionPool,
    AsyncAdaptedQueuePool,
    NullPool,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
)

from session_metrics_otel import instrument, uninstrument
from session_metrics_otel.catalog import CATALOG, Kind
from session_metrics_otel.otel_metrics import export_metrics

ITEMS = Table("items", MetaData(), Column("id", Integer, primary_key=True))
NAME = "shop"

# What each says of itself, and of its one connection while a session holds it and afterwards: what
# is not here is not said.
QUEUE = {
    "max": 15,
    "idle.max": 5,
    "idle.min": 0,
    "count used": (1, 0),
    "count idle": (0, 1),
}
ONE = {"max": 1, "idle.max": 1, "count used": (1, 0), "count idle": (0, 1)}
CLASSES = {
    QueuePool: QUEUE,
    NullPool: {"idle.max": 0, "idle.min": 0, "count used": (1, 0), "count idle": (0, 0)},
    StaticPool: ONE,
    SingletonThreadPool: {"idle.max": 5, "count used": (1, 0)},
    AssertionPool: ONE,
}
ASYNC_CLASSES = {
    AsyncAdaptedQueuePool: QUEUE,
    NullPool: CLASSES[NullPool],
    StaticPool: ONE,
}
ALL_POOLS = {
    "pending_requests": 0,
    "timeouts": 0,
    "sqlalchemy.pools": 1,
    "sqlalchemy.pool.invalidations": 0,
    "sqlalchemy.pool.detached": 0,
    "sqlalchemy.pool.nested_timeouts": 0,
    "create_time": 1,
    "wait_time": 1,
}


def expected(of_class, *, held):
    """What is said while a session that sent one statement holds its connection, or afterwards."""
    said = {
        key: told if isinstance(told, int) else told[0 if held else 1]
        for key, told in of_class.items()
    }
    statements = {"db.client.operation.duration SELECT items": 1}
    return said | ALL_POOLS | statements | ({} if held else {"use_time": 1})


def key_of(name, attributes):
    """A metric's name without what they share, and what tells its series from others here."""
    telling = ("db.client.connection.state", "db.operation.name", "db.collection.name")
    told = [attributes[label] for label in telling if label in attributes]
    return " ".join([name.removeprefix("db.client.connection."), *told])


def is_of_the_pool(attributes):
    named = attributes.get("db.client.connection.pool.name") == NAME
    return named or attributes.get("db.operation.name") == "SELECT"


class Exported:
    """What OpenTelemetry exports of the pool, and /metrics says: numbers, histograms' counts."""

    def __init__(self, reader):
        self._reader = reader

    def by_opentelemetry(self):
        return {
            key_of(metric.name, point.attributes): getattr(point, "count", None) or point.value
            for resource in self._reader.get_metrics_data().resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
            if is_of_the_pool(point.attributes)
        }

    def by_prometheus(self):
        names = {label.replace(".", "_"): label for m in CATALOG for label in m.attributes}
        metrics = {metric.prometheus_name: metric for metric in CATALOG}
        found = {}
        for family in REGISTRY.collect():
            for sample in family.samples:
                metric = metrics.get(sample.name) or metrics.get(sample.name.removesuffix("_count"))
                attributes = {names.get(k, k): text for k, text in sample.labels.items()}
                if metric is None or not is_of_the_pool(attributes):
                    continue
                if metric.kind is Kind.HISTOGRAM and not sample.value:
                    continue  # OpenTelemetry exports no histogram of nothing
                found[key_of(metric.name, attributes)] = sample.value
        return found


@pytest.fixture
def exported():
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    end = export_metrics(provider)
    yield Exported(reader)
    end()
    provider.shutdown()


@pytest.fixture
def file(tmp_path):
    """A SQLite file with the table."""
    path = tmp_path / "shop.db"
    connection = sqlite3.connect(path)
    connection.execute("create table items (id integer primary key)")
    connection.close()
    return path


def both_say(exported, said):
    assert exported.by_prometheus() == said
    assert exported.by_opentelemetry() == said


@pytest.mark.parametrize("kind", CLASSES)
def test_each_class_says_what_it_knows(kind, file, exported, new_engine):
    engine = new_engine(f"sqlite:///{file}", poolclass=kind, pool_logging_name=NAME)
    maker = sessionmaker(engine)
    instrument(maker, name="orders")
    with maker() as session:
        session.execute(select(ITEMS)).all()
        both_say(exported, expected(CLASSES[kind], held=True))
    both_say(exported, expected(CLASSES[kind], held=False))
    uninstrument(maker)


@pytest.mark.parametrize("kind", ASYNC_CLASSES)
def test_each_class_of_asyncio_says_the_same(kind, file, exported):
    async def work():
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{file}", poolclass=kind, pool_logging_name=NAME
        )
        maker = async_sessionmaker(engine)
        # The engine, and its sessions by themselves, too: nothing is counted twice.
        instrument(engine, name="engine")
        instrument(maker, name="orders")
        async with maker() as session:
            (await session.execute(select(ITEMS))).all()
            both_say(exported, expected(ASYNC_CLASSES[kind], held=True))
        both_say(exported, expected(ASYNC_CLASSES[kind], held=False))
        await engine.dispose()
        uninstrument(maker)
        uninstrument(engine)
        assert type(engine.sync_engine.pool) is kind

    asyncio.run(work())


@pytest.mark.parametrize("close", [True, False])
@pytest.mark.parametrize("kind", CLASSES)
def test_each_class_goes_on_after_dispose(kind, close, file, exported, new_engine):
    engine = new_engine(f"sqlite:///{file}", poolclass=kind, pool_logging_name=NAME)
    maker = sessionmaker(engine)
    instrument(maker, name="orders")
    given_up = engine.pool
    with maker() as session:
        session.execute(select(ITEMS)).all()
        if not close:  # else those that have one connection close it in the session's hand
            engine.dispose(close=False)
            both_say(exported, expected(CLASSES[kind], held=True))
    if close:
        engine.dispose()
    none_open = expected(CLASSES[kind], held=False)
    if "count idle" in none_open:
        none_open["count idle"] = 0
    both_say(exported, none_open)
    with maker() as session:
        session.execute(select(ITEMS)).all()
        twice = {"create_time": 2, "wait_time": 2, "db.client.operation.duration SELECT items": 2}
        both_say(exported, expected(CLASSES[kind], held=True) | twice | {"use_time": 1})
    both_say(exported, expected(CLASSES[kind], held=False) | twice | {"use_time": 2})
    uninstrument(maker)
    given_up.dispose()


def opened(file):
    """How often this process has the file open, as Linux says."""
    paths = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the one that lists them is closed by now
            paths.append(entry.readlink())
    return paths.count(file)


def counted():
    """How many connections are used, and how many are idle, as /metrics says."""
    pool = {"db_client_connection_pool_name": NAME}
    return tuple(
        value("db_client_connection_count", db_client_connection_state=state, **pool)
        for state in ("used", "idle")
    )


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux lists open files so")
def test_the_files_that_are_open_are_the_connections(file):
    """As PostgreSQL's list of its clients does for a server."""

    engine = create_engine(f"sqlite:///{file}", pool_size=3, max_overflow=2, pool_logging_name=NAME)
    maker = sessionmaker(engine)
    instrument(maker, name="orders")
    sessions = [maker() for _ in range(5)]
    for session in sessions:
        session.execute(select(ITEMS)).all()
    assert (opened(file), counted()) == (5, (5, 0))
    for session in sessions[:2]:
        session.close()
    assert (opened(file), counted()) == (5, (3, 2))
    for session in sessions:
        session.close()
    assert (opened(file), counted()) == (3, (0, 3))

    held, go_on = threading.Barrier(6), threading.Event()

    def work():
        with maker() as session:
            session.execute(select(ITEMS)).all()
            held.wait()
            go_on.wait()
        for _ in range(20):
            with maker() as session:
                session.execute(select(ITEMS)).all()

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    held.wait()
    assert (opened(file), counted()) == (5, (5, 0))
    go_on.set()
    for thread in threads:
        thread.join()
    assert counted() == (0, opened(file))
    engine.dispose()
    assert (opened(file), counted()) == (0, (0, 0))
    uninstrument(maker)
