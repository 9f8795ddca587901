"""A service whose every series is known: python shop.py URL WORKERS prints its /metrics.

With workers, prometheus_client adds them up; with none, the process is alone.
"""

from __future__ import annotations

import multiprocessing
import sys
from contextlib import suppress
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from sqlalchemy import create_engine, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from session_metrics_otel import SystemSessionMetrics, bind, instrument
from session_metrics_otel.ledger import LEDGER


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)


def trade(url: str) -> list[Any]:
    """Do what there are series for; returns what has to be alive for all of them to be shown."""
    engine = create_engine(
        url, pool_size=1, max_overflow=0, pool_timeout=0.01, pool_logging_name="shop"
    )
    orders, reports = sessionmaker(engine), sessionmaker(engine)
    instrument(orders, name="orders", repeated_statements=2)
    instrument(reports, name="reports")
    with bind(route="/orders"), orders() as session:
        session.add(Item())
        session.commit()
        for _ in range(3):
            session.scalars(select(Item)).all()
    with bind(route="/items/{id}"), orders() as session:
        with suppress(DBAPIError):
            session.execute(text("select * from nowhere"))
        session.rollback()
    with reports() as report:
        report.scalars(select(Item.id)).all()
        with orders() as refused, suppress(PoolTimeoutError):
            refused.execute(select(1))
    users = SystemSessionMetrics(name="web")
    users.increment_total_sessions()
    return [engine, users]


def worker(url: str, traded: Any, scraped: Any) -> None:
    alive = trade(url)
    LEDGER.kept._write_gauges()  # type: ignore[union-attr]  # or wait a second for it
    traded.wait()
    scraped.wait()
    del alive


def main(url: str, workers: int) -> None:
    Base.metadata.create_all(create_engine(url))
    if not workers:
        alive = trade(url)
        print(generate_latest(REGISTRY).decode())
        del alive
        return
    context = multiprocessing.get_context("spawn")
    traded, scraped = context.Barrier(workers + 1), context.Barrier(workers + 1)
    processes = [
        context.Process(target=worker, args=(url, traded, scraped)) for _ in range(workers)
    ]
    for process in processes:
        process.start()
    traded.wait()
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    print(generate_latest(registry).decode())
    scraped.wait()
    for process in processes:
        process.join()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
