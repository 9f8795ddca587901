"""What an application gets, to be compared with what it gets where nothing is instrumented."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Integer, MetaData, String, Table, insert, select, text
from sqlalchemy.orm import sessionmaker

from session_metrics_otel import instrument, uninstrument

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

FACTORY = "faulty"

metadata = MetaData()
items = Table(
    "items",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String, unique=True),
)

Outcome = tuple[Any, ...]


def outcome_of(call: Callable[[], Any]) -> Outcome:
    """What ``call`` returned, or the type and the text of what it raised."""
    try:
        return "returned", call()
    except Exception as error:
        return "raised", type(error), str(error)


def shop(maker: sessionmaker[Any]) -> list[Outcome]:
    """A little of everything that an application does: reads, writes, and errors of both kinds."""
    found: list[Outcome] = []

    def take(call: Callable[[], Any]) -> None:
        found.append(outcome_of(call))

    with maker() as session:
        take(lambda: session.execute(insert(items), [{"name": "tea"}, {"name": "milk"}]).rowcount)
        take(session.commit)
        take(lambda: session.scalars(select(items.c.name).order_by(items.c.id)).all())
    with maker() as session:
        take(lambda: session.execute(insert(items).values(name="tea")))
        take(session.rollback)
        take(lambda: session.execute(text("select * from nowhere")))
        take(session.close)
    take(lambda: _abandoned(maker))
    return found


def _abandoned(maker: sessionmaker[Any]) -> None:
    with maker.begin() as session:
        session.execute(insert(items).values(name="cocoa"))
        raise ZeroDivisionError("the application's own")


def bare(new_engine: Callable[..., Engine], work: Callable[[Any], Any] = shop) -> Any:
    """What ``work`` comes to on a new database where nothing is instrumented."""
    engine = new_engine()
    metadata.create_all(engine)
    return work(sessionmaker(engine))


def instrumented(
    new_engine: Callable[..., Engine], work: Callable[[Any], Any] = shop, **options: Any
) -> Any:
    """The same where the sessions are instrumented with ``options``."""
    engine = new_engine()
    metadata.create_all(engine)
    maker = sessionmaker(engine)
    instrument(maker, name=FACTORY, **options)
    try:
        return work(maker)
    finally:
        uninstrument(maker)
