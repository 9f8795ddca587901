"""PostgreSQL stops and starts again in the middle of the work, and the counts stay the truth."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

import pytest
from reading import changes, counted
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from servers.postgres_client import DRIVERS, FACTORY, client_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.orm import Session

    from servers.postgres_client import Client
    from servers.postgres_server import Postgres


@pytest.fixture(params=DRIVERS)
async def client(request: pytest.FixtureRequest, postgres: Postgres) -> AsyncIterator[Client]:
    async with client_of(postgres, request.param) as client:
        yield client


def select_one(session: Session) -> None:
    session.execute(text("select 1"))


async def error_of(client: Client, session: Any) -> str:
    """The class of what the driver raised when ``session`` was used."""
    with pytest.raises((DBAPIError, OSError)) as caught:
        await client.run(session, select_one)
    raised = caught.value
    return type(raised.orig if isinstance(raised, DBAPIError) else raised).__name__


def errors() -> dict[str, float]:
    found = counted(FACTORY)
    return {key.removeprefix("errors "): n for key, n in found.items() if key.startswith("errors ")}


def creations() -> dict[str, float]:
    found = counted(FACTORY)
    return {key: n for key, n in found.items() if key.startswith("creations ")}


def open_now() -> dict[str, float]:
    found = counted(FACTORY)
    return {key: n for key, n in found.items() if key.startswith("sqlalchemy_sessions ")}


# ``fast`` tells the clients so; ``immediate`` is a crash: their connections just end.
@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_server_that_goes_away_and_comes_back(
    client: Client, postgres: Postgres, mode: Literal["fast", "immediate"]
) -> None:
    sessions = [await client.open(select_one) for _ in range(3)]
    assert open_now() == {"sqlalchemy_sessions active": 3}

    postgres.stop(mode)
    seen = Counter([await error_of(client, session) for session in sessions])
    assert errors() == seen
    assert open_now() == {"sqlalchemy_sessions error": 3}
    await client.close(*sessions)
    assert open_now() == {}

    late = [client.maker() for _ in range(2)]
    seen.update([await error_of(client, session) for session in late])
    await client.close(*late)
    assert errors() == seen
    refused = "ConnectionRefusedError" if client.driver == "asyncpg" else "OperationalError"
    assert creations() == {"creations success": 3, f"creations failure {refused}": 2}

    postgres.start()
    await client.use(select_one)
    broken = changes("created", "active", "error", "closing", "closed")
    failed = changes("created", "error", "closing", "closed")
    well = changes("created", "active", "closing", "closed")
    transitions = Counter(well)
    for each, times in ((broken, 3), (failed, 2)):
        transitions.update({key: n * times for key, n in each.items()})
    assert counted(FACTORY) == {
        "creations success": 4,
        f"creations failure {refused}": 2,
        "creation_duration_seconds_count": 4,
        "duration_seconds_count": 6,
        "queries": 7,
        "queries_per_session_count": 6,
        "transactions closed": 4,
        "transaction_duration_seconds_count closed": 4,
        "peak": 3,
        **{f"errors {kind}": n for kind, n in seen.items()},
        **transitions,
    }


async def test_a_connection_that_broke_while_idle_fails_one_session(
    client: Client, postgres: Postgres
) -> None:
    await client.use(select_one)
    postgres.restart()
    session = client.maker()
    seen = await error_of(client, session)
    await client.close(session)
    await client.use(select_one)
    assert errors() == {seen: 1}
    assert creations() == {"creations success": 3}
    assert open_now() == {}


@pytest.mark.parametrize("driver", DRIVERS)
async def test_pre_ping_replaces_a_broken_connection_before_a_session_has_it(
    driver: str, postgres: Postgres
) -> None:
    async with client_of(postgres, driver, pool_pre_ping=True) as client:
        await client.use(select_one)
        postgres.restart()
        await client.use(select_one)
    assert errors() == {}
    assert creations() == {"creations success": 2}
    assert counted(FACTORY)["queries"] == 2
