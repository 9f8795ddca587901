from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from session_metrics_otel import instrument, uninstrument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine
    from sqlalchemy.orm import Session, sessionmaker


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str] = mapped_column(default="tea", unique=False)


class Versioned(Base):
    __tablename__ = "versioned"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str] = mapped_column(default="tea")
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}


@pytest.fixture
def orders(
    engine: Engine, instrumented: Callable[..., sessionmaker[Session]]
) -> sessionmaker[Session]:
    """An instrumented factory called ``orders``, with tables to write to."""
    Base.metadata.create_all(engine)
    return instrumented(name="orders")


@pytest.fixture
def observe(new_engine: Callable[..., Engine]) -> Iterator[Callable[..., Engine]]:
    """Makes an engine with the pool given, and instruments it."""
    made = []

    def observe(url: str = "sqlite://", **options: Any) -> Engine:
        engine = new_engine(url, **options)
        instrument(engine, name="pooled")
        made.append(engine)
        return engine

    yield observe
    for engine in made:
        uninstrument(engine)
