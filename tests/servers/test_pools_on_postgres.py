"""PostgreSQL's own list of its clients agrees with what /metrics says of the pool."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import REGISTRY
from reading import counted, value
from sqlalchemy import Column, Integer, MetaData, Table, delete, insert, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from servers.postgres_client import APPLICATION, DRIVERS, FACTORY, client_of
from servers.processes import PATIENCE
from session_metrics_otel import exhaustion_reports
from session_metrics_otel.hooks import holders
from session_metrics_otel.otel_metrics import export_metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from sqlalchemy.orm import Session

    from servers.postgres_client import Client
    from servers.postgres_server import Postgres

ORDERS = Table("orders", MetaData(), Column("id", Integer, primary_key=True))
NOWHERE = Table("nowhere", MetaData(), Column("id", Integer))
# What a connection of a session in the middle of its work is to the server, and one in the pool.
STATES = {"idle in transaction": "used", "idle": "idle"}


@pytest.fixture(params=DRIVERS)
def connect(
    request: pytest.FixtureRequest, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., AbstractAsyncContextManager[Client]]:
    """Makes a client with the pool's options given."""
    monkeypatch.setattr(holders, "_reports", deque())
    monkeypatch.setattr(holders, "_last_report", {})
    return lambda **options: client_of(postgres, request.param, **options)


@pytest.fixture
async def client(
    connect: Callable[..., AbstractAsyncContextManager[Client]],
) -> AsyncIterator[Client]:
    async with connect(pool_size=3, max_overflow=2) as client:
        yield client


def select_one(session: Session) -> None:
    session.execute(text("select 1"))


def shown(client: Client, name: str, **labels: str) -> float | None:
    pool = f"127.0.0.1:{client.postgres.port}/test"
    return value(name, db_client_connection_pool_name=pool, **labels)


def of_pool(client: Client, name: str) -> float | None:
    return shown(client, f"db_client_connection_{name}")


def pool_says(client: Client) -> dict[str, float | None]:
    return {
        state: shown(client, "db_client_connection_count", db_client_connection_state=state)
        for state in ("used", "idle")
    }


def server_says(client: Client) -> dict[str, int]:
    rows = client.postgres.execute(
        "select state, count(*) from pg_stat_activity"
        f" where application_name = '{APPLICATION}' group by state"
    )
    return {"used": 0, "idle": 0} | {STATES.get(state, state): n for state, n in rows}


async def until(ask: Callable[[], Any], expected: Any) -> None:
    """Wait until the answer is ``expected``: a client's leaving takes the server a moment."""
    for _ in range(PATIENCE * 50):
        if ask() == expected:
            return
        await asyncio.sleep(0.02)
    assert ask() == expected


async def both_say(client: Client, *, used: int, idle: int) -> None:
    expected = {"used": used, "idle": idle}
    assert pool_says(client) == expected
    await until(lambda: server_says(client), expected)


async def test_the_server_agrees_at_rest_and_under_load(client: Client) -> None:
    first = await client.open(select_one)
    await both_say(client, used=1, idle=0)
    sessions = [first, *[await client.open(select_one) for _ in range(4)]]
    await both_say(client, used=5, idle=0)
    await client.close(*sessions[:2])
    await both_say(client, used=3, idle=2)
    await client.close(*sessions[2:])
    await both_say(client, used=0, idle=3)
    for _ in range(4):
        await client.use(select_one)
    await both_say(client, used=0, idle=3)
    assert (of_pool(client, "max"), of_pool(client, "idle_max")) == (5, 3)
    assert of_pool(client, "create_time_seconds_count") == 5
    assert of_pool(client, "wait_time_seconds_count") == 9
    assert of_pool(client, "use_time_seconds_count") == 9
    await client.dispose()
    await both_say(client, used=0, idle=0)
    assert shown(client, "sqlalchemy_pools") == 1


async def test_it_agrees_while_many_work_at_once(client: Client) -> None:
    async def work() -> None:
        for _ in range(5):
            await client.use(select_one)

    await asyncio.gather(*[work() for _ in range(10)])
    assert of_pool(client, "use_time_seconds_count") == 50
    assert of_pool(client, "pending_requests") == 0
    idle = pool_says(client)["idle"]
    assert idle in {1, 2, 3}
    await both_say(client, used=0, idle=int(idle))


async def test_who_waits_is_pending_until_a_connection_comes_back(
    connect: Callable[..., AbstractAsyncContextManager[Client]],
) -> None:
    async with connect(pool_size=1, max_overflow=0) as client:
        holder = await client.open(select_one)
        waiting = [asyncio.create_task(client.use(select_one)) for _ in range(3)]
        await until(lambda: of_pool(client, "pending_requests"), 3)
        await both_say(client, used=1, idle=0)
        await client.close(holder)
        await asyncio.gather(*waiting)
        assert of_pool(client, "pending_requests") == 0
        assert of_pool(client, "timeouts_total") == 0
        assert of_pool(client, "wait_time_seconds_count") == 4
        await both_say(client, used=0, idle=1)


async def test_waiters_that_time_out_together_are_one_report_that_names_the_holder(
    connect: Callable[..., AbstractAsyncContextManager[Client]],
) -> None:
    async with connect(pool_size=1, max_overflow=0, pool_timeout=0.2) as client:
        holder = await client.open(select_one)
        waiting = [client.use(select_one) for _ in range(4)]
        refused = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(error) for error in refused] == [PoolTimeoutError] * 4
        assert of_pool(client, "timeouts_total") == 4
        assert of_pool(client, "pending_requests") == 0
        found = counted(FACTORY)
        assert found["creations failure TimeoutError"] == found["errors TimeoutError"] == 4
        (report,) = exhaustion_reports()
        assert report["timeouts"] == 4
        (held,) = report["holders"]
        assert (held["factory"], held["state"], held["statements"]) == (FACTORY, "active", 1)
        assert held["taken_at"].startswith(f"{__file__}:")
        assert held["taken_at"].endswith(" in select_one")
        await both_say(client, used=1, idle=0)
        await client.close(holder)
        await both_say(client, used=0, idle=1)


async def test_a_detached_connection_is_the_servers_but_no_longer_the_pools(
    client: Client,
) -> None:
    if client.driver == "psycopg_async":
        pytest.skip("SQLAlchemy leaves a detached connection open where it cannot terminate it")
    session = await client.open(lambda session: session.connection().detach())
    await client.run(session, select_one)
    assert pool_says(client) == {"used": 0, "idle": 0}
    assert shown(client, "sqlalchemy_pool_detached") == 1
    await until(lambda: server_says(client), {"used": 1, "idle": 0})
    await client.close(session)
    assert shown(client, "sqlalchemy_pool_detached") == 0
    await both_say(client, used=0, idle=0)


async def test_an_invalidated_connection_is_gone_from_both(client: Client) -> None:
    session = await client.open(select_one)
    await client.run(session, lambda session: session.invalidate())
    assert shown(client, "sqlalchemy_pool_invalidations_total") == 1
    await both_say(client, used=0, idle=0)
    await client.use(select_one)
    await both_say(client, used=0, idle=1)


async def test_a_backend_that_is_terminated_costs_its_own_session_alone(client: Client) -> None:
    sessions = [await client.open(select_one) for _ in range(3)]
    process = await client.run(sessions[0], lambda s: s.scalar(text("select pg_backend_pid()")))
    client.postgres.execute(f"select pg_terminate_backend({process})")
    await until(lambda: server_says(client), {"used": 2, "idle": 0})
    with pytest.raises(DBAPIError):
        await client.run(sessions[0], select_one)
    for session in sessions[1:]:
        await client.run(session, select_one)
    assert shown(client, "sqlalchemy_pool_invalidations_total") == 1
    await client.close(*sessions)
    await both_say(client, used=0, idle=2)


async def test_the_gauges_are_back_to_the_truth_when_the_server_is(client: Client) -> None:
    sessions = [await client.open(select_one) for _ in range(3)]
    client.postgres.stop()
    lost: list[Any] = []
    for session in sessions:
        with pytest.raises(DBAPIError) as raised:
            await client.run(session, select_one)
        lost.append(raised.value.orig)
    await client.close(*sessions)
    assert pool_says(client) == {"used": 0, "idle": 0}
    assert shown(client, "sqlalchemy_pool_invalidations_total") == 3
    with pytest.raises((DBAPIError, OSError)) as not_had:
        await client.use(select_one)
    assert pool_says(client) == {"used": 0, "idle": 0}
    assert of_pool(client, "pending_requests") == 0
    assert of_pool(client, "create_time_seconds_count") == 3

    refused = type(getattr(not_had.value, "orig", not_had.value)).__name__
    found = counted(FACTORY)
    assert {key: n for key, n in found.items() if key.startswith(("creations", "errors"))} == {
        "creations success": 3,
        f"creations failure {refused}": 1,
        **Counter(f"errors {name}" for name in [refused, *(type(e).__name__ for e in lost)]),
    }
    assert failed_statements() == Counter(error.sqlstate or type(error).__name__ for error in lost)

    client.postgres.start()
    await client.use(select_one)
    await both_say(client, used=0, idle=1)
    sessions = [await client.open(select_one) for _ in range(4)]
    await both_say(client, used=4, idle=0)
    await client.close(*sessions)
    await both_say(client, used=0, idle=3)
    assert counted(FACTORY)["creations success"] == 3 + 5


async def test_pre_ping_replaces_what_broke_while_idle(
    connect: Callable[..., AbstractAsyncContextManager[Client]],
) -> None:
    async with connect(pool_size=3, pool_pre_ping=True) as client:
        sessions = [await client.open(select_one) for _ in range(2)]
        await client.close(*sessions)
        await both_say(client, used=0, idle=2)
        client.postgres.restart()
        sessions = [await client.open(select_one) for _ in range(2)]
        await both_say(client, used=2, idle=0)
        await client.close(*sessions)
        await both_say(client, used=0, idle=2)
        assert of_pool(client, "create_time_seconds_count") == 4
        assert of_pool(client, "wait_time_seconds_count") == 4


async def test_statements_by_operation_collection_and_sqlstate(client: Client) -> None:
    def work(session: Session) -> None:
        ORDERS.create(session.connection())
        session.execute(insert(ORDERS), [{"id": 1}, {"id": 2}, {"id": 3}])
        session.execute(select(ORDERS)).all()
        session.execute(select(ORDERS).where(ORDERS.c.id > 1)).all()

    await client.use(work)
    with pytest.raises(DBAPIError):
        await client.use(lambda session: session.execute(select(NOWHERE)))

    assert statements(client, "db_client_operation_duration_seconds_count") == {
        ("CREATE TABLE", "orders", ""): 1,
        ("BATCH INSERT", "orders", ""): 1,
        ("SELECT", "orders", ""): 2,
        ("SELECT", "nowhere", "42P01"): 1,
    }
    rows = "db_client_response_returned_rows"
    assert statements(client, f"{rows}_count") == {("SELECT", "orders", ""): 2}
    assert statements(client, f"{rows}_sum") == {("SELECT", "orders", ""): 5}


async def test_rows_of_whatever_returns_some(client: Client) -> None:
    def work(session: Session) -> None:
        ORDERS.create(session.connection())
        new = [{"id": number} for number in range(2500)]  # more than SQLAlchemy sends at once
        session.execute(insert(ORDERS).returning(ORDERS.c.id), new).all()
        session.execute(insert(ORDERS), [{"id": 2500}, {"id": 2501}])  # returns nothing
        few = update(ORDERS).where(ORDERS.c.id < 4).values(id=ORDERS.c.id + 9000)
        session.execute(few)
        session.execute(few.where(ORDERS.c.id < 2).returning(ORDERS.c.id)).all()
        session.execute(delete(ORDERS).where(ORDERS.c.id > 8000).returning(ORDERS.c.id)).all()
        session.execute(select(ORDERS).where(ORDERS.c.id < 0)).all()
        session.execute(select(ORDERS).limit(7)).first()
        # One that is streamed does not say how many there will be.
        session.execute(select(ORDERS), execution_options={"stream_results": True}).all()

    await client.use(work)
    rows = "db_client_response_returned_rows"
    assert statements(client, f"{rows}_count") == {
        ("BATCH INSERT", "orders", ""): 1,
        ("UPDATE", "orders", ""): 1,
        ("DELETE", "orders", ""): 1,
        ("SELECT", "orders", ""): 2,
    }
    assert statements(client, f"{rows}_sum") == {
        ("BATCH INSERT", "orders", ""): 2500,
        ("DELETE", "orders", ""): 4,
        ("SELECT", "orders", ""): 7,
    }


async def test_opentelemetry_has_the_attributes_of_the_conventions(client: Client) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    end = export_metrics(provider)

    def work(session: Session) -> None:
        ORDERS.create(session.connection())
        session.execute(select(ORDERS)).all()

    await client.use(work)
    data: Any = reader.get_metrics_data()
    metrics = data.resource_metrics[0].scope_metrics[0].metrics
    found = {
        metric.name: [dict(p.attributes) for p in metric.data.data_points] for metric in metrics
    }
    end()
    provider.shutdown()
    server = {
        "db.system.name": "postgresql",
        "db.namespace": "test",
        "server.address": "127.0.0.1",
        "server.port": client.postgres.port,
    }
    selected = server | {"db.operation.name": "SELECT", "db.collection.name": "orders"}
    assert selected in found["db.client.operation.duration"]
    assert [a for a in found["db.client.response.returned_rows"] if "db.operation.name" in a] == [
        selected
    ]
    pool = {"db.client.connection.pool.name": f"127.0.0.1:{client.postgres.port}/test"}
    limits, requests = ("idle.max", "idle.min", "max"), ("pending_requests", "timeouts")
    for name in (*limits, *requests, "create_time", "wait_time", "use_time"):
        assert found.pop(f"db.client.connection.{name}") == [pool]
    states = [pool | {"db.client.connection.state": state} for state in ("used", "idle")]
    assert found.pop("db.client.connection.count") == states
    assert not [name for name in found if name.startswith("db.client.connection.")]


def statements(client: Client, name: str) -> dict[tuple[str, ...], float]:
    """What ``name`` says of the server's statements: by operation, collection and error.

    Those that have no operation are the dialect's own, of its first connection.
    """
    server = {
        "db_system_name": "postgresql",
        "db_namespace": "test",
        "server_address": "127.0.0.1",
        "server_port": str(client.postgres.port),
    }
    found = {}
    for family in REGISTRY.collect():
        for sample in family.samples:
            labels = sample.labels
            if sample.name == name and sample.value and "db_operation_name" in labels:
                assert server.items() <= labels.items()
                of = ("db_operation_name", "db_collection_name", "error_type")
                found[tuple(labels.get(label, "") for label in of)] = sample.value
    return found


def failed_statements() -> dict[str, float]:
    """How many statements failed, by ``error_type``."""
    return {
        sample.labels["error_type"]: sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name == "db_client_operation_duration_seconds_count"
        and "error_type" in sample.labels
    }
