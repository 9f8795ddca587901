"""Program: sessions whose own clean-up is cancelled, and what they leave of their connections.

It is given the URL of a PostgreSQL's database, and writes a line of JSON for each way to clean up
and to be cancelled: [way, how, backends idle in transaction, connections out of the pool].
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SESSIONS = 3
LOOKS = 100
IDLE = text(
    "select count(*) from pg_stat_activity"
    " where datname = current_database() and state = 'idle in transaction'"
)


async def rollback_and_close(session: AsyncSession) -> None:
    try:
        await session.rollback()
    finally:
        await session.close()


async def rollback_in_vain(session: AsyncSession) -> None:
    with suppress(BaseException):
        await session.rollback()


WAYS: dict[str, Callable[[AsyncSession], Awaitable[None]]] = {
    "rollback": AsyncSession.rollback,
    "close": AsyncSession.close,
    "rollback and close": rollback_and_close,
    "rollback in vain": rollback_in_vain,
    "invalidate": AsyncSession.invalidate,
}


async def cancel_scope(work: Callable[[], Awaitable[None]], at_work: asyncio.Event) -> None:
    """Every await of the clean-up is cancelled."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        await at_work.wait()
        tasks.cancel_scope.cancel()


async def cancel_twice(work: Callable[[], Any], at_work: asyncio.Event) -> None:
    """The clean-up is cancelled in its first await."""
    task = asyncio.create_task(work())
    await at_work.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


async def main(url: str) -> None:
    onlooker = create_async_engine(
        make_url(url).set(drivername="postgresql+psycopg"), poolclass=NullPool
    )
    for how in (cancel_scope, cancel_twice):
        for way, clean_up in WAYS.items():
            engine = create_async_engine(url)
            kept = [async_sessionmaker(engine)() for _ in range(SESSIONS)]

            for session in kept:
                at_work = asyncio.Event()

                async def work(
                    session: AsyncSession = session, at_work: asyncio.Event = at_work
                ) -> None:
                    await session.scalar(text("select 1"))
                    at_work.set()
                    try:
                        await asyncio.sleep(3600)
                    finally:
                        await clean_up(session)  # noqa: B023 - awaited before the next

                with suppress(asyncio.CancelledError):
                    await how(work, at_work)
            for _ in range(LOOKS):  # what SQLAlchemy shields goes on by itself
                await asyncio.sleep(0.2)
                async with onlooker.connect() as connection:
                    left = [await connection.scalar(IDLE), engine.pool.checkedout()]
                if left == [0, 0]:
                    break
            print(json.dumps([way, how.__name__, *left]))
            await engine.dispose()


if __name__ == "__main__":
    gc.disable()  # it would give the connections back by itself
    logging.disable()  # of SQLAlchemy, which says that it ended the connection
    asyncio.run(main(sys.argv[1]))
