"""Sessions that end in every way there is, and a plain account of what each should have counted.

The account is kept in the words of ``reading.counted``, so the two can be compared whole.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

from reading import changes
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import QueuePool

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

ONE = text("select 1")
NO_TABLE = text("select * from nowhere")


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


def new_database(**options: Any) -> Engine:
    """An engine whose connections are each an SQLite of its own, with a table of orders."""
    engine = create_engine(
        "sqlite://", poolclass=QueuePool, connect_args={"check_same_thread": False}, **options
    )

    @event.listens_for(engine, "connect")
    def _create(connection: Any, _: object) -> None:
        connection.execute("create table orders (id integer primary key)")

    return engine


class Sessions:
    """One thread's sessions, made one after the other.

    Attributes:
        books: What they should have counted.
        done: How many have ended.
    """

    def __init__(self, make: Callable[[], Any], seed: int = 0) -> None:
        self.make = make
        self.books: Counter[str] = Counter()
        self.done = 0
        self._random = random.Random(seed)
        self._ways = (
            self.commits,
            self.rolls_back,
            self.only_reads,
            self.fails,
            self.writes,
            self.is_never_used,
            self.is_abandoned_by_its_generator,
            self.is_collected,
            self.ends_in_an_error,
        )

    def run(self, number: int) -> None:
        """Make ``number`` sessions, each of a way chosen at random."""
        for _ in range(number):
            self._random.choice(self._ways)()
            self.done += 1

    def run_each_way(self) -> None:
        for way in self._ways:
            way()
            self.done += 1

    def commits(self) -> None:
        with self.make() as session:
            session.execute(ONE)
            session.commit()
        self._book(session, "active", "committed", queries=1, transactions_committed=1)

    def rolls_back(self) -> None:
        with self.make() as session:
            session.execute(ONE)
            session.execute(ONE)
            session.rollback()
        self._book(session, "active", "rolled_back", queries=2, transactions_rolled_back=1)

    def only_reads(self) -> None:
        with self.make() as session:
            session.execute(ONE)
        self._book(session, "active", queries=1, transactions_closed=1)

    def fails(self) -> None:
        with self.make() as session:
            try:
                session.execute(NO_TABLE)
            except OperationalError:
                session.rollback()
        self._book(
            session, "active", "error", "rolled_back",
            queries=1, transactions_rolled_back=1, errors_OperationalError=1,
        )  # fmt: skip

    def writes(self) -> None:
        with self.make() as session:
            session.add(Order())
            session.commit()
        self._book(
            session, "active", "committed",
            queries=1, flushes=1, entities_insert=1, transactions_committed=1,
        )  # fmt: skip

    def is_never_used(self) -> None:
        with self.make() as session:
            pass
        self._book(session)

    def is_abandoned_by_its_generator(self) -> None:
        def sessions() -> Any:
            with self.make() as session:
                session.execute(ONE)
                yield session
                session.commit()

        generator = sessions()
        session = next(generator)
        generator.close()
        self._book(session, "active", queries=1, transactions_closed=1)

    def is_collected(self) -> None:
        session = self.make()
        session.execute(ONE)
        if observed(session):
            self.books.update(
                changes("created", "active", "closed")
                | {"creations success": 1, "creation_duration_seconds_count": 1}
                | {"queries": 1, "leaks garbage_collected": 1}
            )

    def ends_in_an_error(self) -> None:
        try:
            with self.make() as session, session.begin():
                session.execute(ONE)
                raise ZeroDivisionError  # noqa: TRY301 - as a view does
        except ZeroDivisionError:
            self._book(session, "active", "rolled_back", queries=1, transactions_rolled_back=1)

    def _book(self, session: Any, *states: str, **counts: int) -> None:
        if not observed(session):
            return
        self.books.update(changes("created", *states, "closing", "closed"))
        self.books["creations " + ("success" if states else "unused")] += 1
        self.books["creation_duration_seconds_count"] += bool(states)
        self.books["duration_seconds_count"] += 1
        self.books["queries_per_session_count"] += 1
        for name, count in counts.items():
            family, _, label = name.partition("_")
            self.books[f"{family} {label}" if label else family] += count
            if family == "transactions":
                self.books[f"transaction_duration_seconds_count {label}"] += count


def observed(session: Any) -> bool:
    """Whether ``session`` was born while its factory was instrumented."""
    return getattr(session, "_session_metrics", None) is not None


class Tasks(Sessions):
    """The same in asyncio: each session is a task's, and some tasks are cancelled."""

    async def run_tasks(self, number: int, at_once: int) -> None:
        turn = asyncio.Semaphore(at_once)

        async def one(way: Callable[[], Any]) -> None:
            async with turn:
                await way()

        ways = (
            self.commit_task,
            self.rollback_task,
            self.failing_task,
            self.cancelled_task,
            self.abandoned_by_its_generator_task,
            self.dropped_task,
        )
        await asyncio.gather(*(one(self._random.choice(ways)) for _ in range(number)))

    async def commit_task(self) -> None:
        async with self.make() as session:
            await session.execute(ONE)
            await session.commit()
        self._book(session.sync_session, "active", "committed", queries=1, transactions_committed=1)

    async def rollback_task(self) -> None:
        async with self.make() as session:
            await session.execute(ONE)
            await session.rollback()
        self._book(
            session.sync_session, "active", "rolled_back", queries=1, transactions_rolled_back=1
        )

    async def failing_task(self) -> None:
        async with self.make() as session:
            try:
                await session.execute(NO_TABLE)
            except OperationalError:
                await session.rollback()
        self._book(
            session.sync_session, "active", "error", "rolled_back",
            queries=1, transactions_rolled_back=1, errors_OperationalError=1,
        )  # fmt: skip

    async def cancelled_task(self) -> None:
        sessions: list[Any] = []
        begun = asyncio.Event()

        async def hold() -> None:
            async with self.make() as session:
                sessions.append(session.sync_session)
                await session.execute(ONE)
                begun.set()
                await asyncio.sleep(60)

        task = asyncio.create_task(hold())
        await begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self._book(sessions[0], "active", queries=1, transactions_closed=1)

    async def abandoned_by_its_generator_task(self) -> None:
        async def sessions() -> Any:
            async with self.make() as session:
                await session.execute(ONE)
                yield session.sync_session
                await session.commit()

        generator = sessions()
        session = await anext(generator)
        await generator.aclose()
        self._book(session, "active", queries=1, transactions_closed=1)

    async def dropped_task(self) -> None:
        """Never closed, but nothing is held: no leak."""
        session = self.make()
        await session.execute(ONE)
        await session.commit()
        if observed(session.sync_session):
            self.books.update(
                changes("created", "active", "committed", "closed")
                | {"creations success": 1, "creation_duration_seconds_count": 1, "queries": 1}
                | {"transactions committed": 1, "transaction_duration_seconds_count committed": 1}
            )
