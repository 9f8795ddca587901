"""What the measured sessions do.

A work makes, for a peer, the function that is timed, and says how many sessions one call is.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import create_engine, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.pool import QueuePool, StaticPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from peers import Peer

ONE = text("select 1")
ROWS = 1000
OBJECTS = 100
STATEMENTS = 10
THREADS = 8
TASK_SESSIONS = 20
THREAD_SESSIONS = 25
PROCESSES = 4
PROCESS_SESSIONS = 100


class Base(DeclarativeBase):
    """The tables."""


class Order(Base):
    """One order."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str] = mapped_column(default="tea")


class Work(NamedTuple):
    """What one call of ``run`` does, and how many sessions that is."""

    run: Callable[[], object]
    sessions: int = 1


def in_memory(peer: Peer) -> sessionmaker[Session]:
    """A sessionmaker on a database of its own that answers at once."""
    engine = create_engine(
        "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
    )
    Base.metadata.create_all(engine)
    maker = sessionmaker(engine)
    peer(engine, maker)
    return maker


def one_statement(maker: sessionmaker[Session]) -> Callable[[], None]:
    """Open, one statement, commit, close."""

    def run() -> None:
        with maker() as session:
            session.execute(ONE)
            session.commit()

    return run


def session(peer: Peer, _: str) -> Work:
    """A session of one statement on in-memory SQLite: the worst case."""
    return Work(one_statement(in_memory(peer)))


def ten_statements(peer: Peer, _: str) -> Work:
    """A session of ten statements on in-memory SQLite."""
    maker = in_memory(peer)

    def run() -> None:
        with maker() as session:
            for _ in range(STATEMENTS):
                session.execute(ONE)
            session.commit()

    return Work(run)


def load(peer: Peer, _: str) -> Work:
    """A session that loads 1,000 objects from in-memory SQLite."""
    maker = in_memory(peer)
    with maker() as session:
        session.execute(insert(Order), [{"item": "tea"}] * ROWS)
        session.commit()

    def run() -> None:
        with maker() as session:
            session.scalars(select(Order)).all()

    return Work(run)


def flush(peer: Peer, _: str) -> Work:
    """A session that flushes 100 new objects to in-memory SQLite, and rolls back."""
    maker = in_memory(peer)

    def run() -> None:
        with maker() as session:
            session.add_all([Order() for _ in range(OBJECTS)])
            session.flush()
            session.rollback()

    return Work(run)


def threads(peer: Peer, _: str) -> Work:
    """Eight threads with sessions of one statement, each on its own in-memory SQLite."""
    engine = create_engine(
        "sqlite://",
        poolclass=QueuePool,
        pool_size=THREADS,
        connect_args={"check_same_thread": False},
    )
    maker = sessionmaker(engine)
    peer(engine, maker)
    one = one_statement(maker)

    def several() -> None:
        for _ in range(THREAD_SESSIONS):
            one()

    def run() -> None:
        started = [threading.Thread(target=several) for _ in range(THREADS)]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()

    return Work(run, THREADS * THREAD_SESSIONS)


_of_child: list[Callable[[], None]] = []


def _begin_child(peer: Peer) -> None:
    _of_child.append(one_statement(in_memory(peer)))


def _several_in_child(sessions: int) -> None:
    for _ in range(sessions):
        _of_child[0]()


def processes(peer: Peer, _: str) -> Work:
    """Four processes with sessions of one statement, each on its own in-memory SQLite."""
    pool = multiprocessing.get_context("fork").Pool(PROCESSES, _begin_child, (peer,))
    shares = [PROCESS_SESSIONS] * PROCESSES
    return Work(lambda: pool.map(_several_in_child, shares, 1), PROCESSES * PROCESS_SESSIONS)


def psycopg(peer: Peer, url: str) -> Work:
    """A session of one statement on PostgreSQL over a local socket, by psycopg 3."""
    engine = create_engine(url)
    maker = sessionmaker(engine)
    peer(engine, maker)
    return Work(one_statement(maker))


def asyncpg(peer: Peer, url: str) -> Work:
    """The same from asyncio, by asyncpg: twenty sessions one after another."""
    from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

    engine = create_async_engine(url)
    maker = async_sessionmaker(engine)
    peer(engine.sync_engine, maker)
    loop = asyncio.new_event_loop()

    async def several() -> None:
        for _ in range(TASK_SESSIONS):
            async with maker() as session:
                await session.execute(ONE)
                await session.commit()

    return Work(lambda: loop.run_until_complete(several()), TASK_SESSIONS)


WORKS: dict[str, Callable[[Peer, str], Work]] = {
    "session": session,
    "ten_statements": ten_statements,
    "load": load,
    "flush": flush,
    "threads": threads,
    "processes": processes,
    "psycopg": psycopg,
    "asyncpg": asyncpg,
}
"""By name; each is given the URL of a PostgreSQL, or ""."""

ON_POSTGRESQL = ("psycopg", "asyncpg")
"""Those that need one; each is called by its driver's name."""
