"""An application of PostgreSQL by one driver or another, written once for sync and asyncio."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, sessionmaker

from session_metrics_otel import instrument, uninstrument

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sqlalchemy import Engine

    from servers.postgres_server import Postgres

DRIVERS = ["psycopg", "psycopg_async", "asyncpg"]
FACTORY = "orders"
APPLICATION = "pool under test"

T = TypeVar("T")


@dataclass
class Client:
    """Instrumented sessions of the factory ``orders``, and the pool that they share.

    What is done to a session is a plain function of a Session, for either kind: run in a thread
    where the driver is sync.
    """

    postgres: Postgres
    driver: str
    engine: Engine | AsyncEngine = field(repr=False)
    maker: Any = field(repr=False)
    opened: list[Any] = field(default_factory=list, repr=False)

    async def run(self, session: Session | AsyncSession, do: Callable[[Session], T]) -> T:
        if isinstance(session, AsyncSession):
            return await session.run_sync(do)
        return await asyncio.to_thread(do, session)

    async def open(self, do: Callable[[Session], Any]) -> Any:
        """A new session that did ``do`` and still holds its connection."""
        session = self.maker()
        self.opened.append(session)
        await self.run(session, do)
        return session

    async def use(self, do: Callable[[Session], T]) -> T:
        """Do ``do`` in a session of its own, closed whatever happens."""
        session = self.maker()
        try:
            return await self.run(session, do)
        finally:
            await self.close(session)

    async def close(self, *sessions: Session | AsyncSession) -> None:
        for session in sessions:
            closing = session.close()
            if closing is not None:
                await closing

    async def dispose(self) -> None:
        disposing = self.engine.dispose()
        if disposing is not None:
            await disposing


@asynccontextmanager
async def client_of(postgres: Postgres, driver: str, **options: Any) -> AsyncIterator[Client]:
    """A client by ``driver``, with ``options`` of ``create_engine``; gone when it is over."""
    asyncpg = driver == "asyncpg"
    named = {"application_name": APPLICATION}
    options["connect_args"] = {"server_settings": named} if asyncpg else named
    engine: Engine | AsyncEngine
    maker: sessionmaker[Session] | async_sessionmaker[AsyncSession]
    if driver == "psycopg":
        engine = create_engine(postgres.url(driver), **options)
        maker = sessionmaker(engine)
    else:
        engine = create_async_engine(postgres.url(driver), **options)
        maker = async_sessionmaker(engine)
    instrument(maker, name=FACTORY)
    client = Client(postgres, driver, engine, maker)
    try:
        yield client
    finally:
        await client.close(*client.opened)
        await client.dispose()
        uninstrument(maker)
