"""``demo --starve``: a pool is starved on purpose, and the report names the holders."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING

from sqlalchemy import create_engine, text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import QueuePool

from session_metrics_otel import bind, instrument

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.orm import Session

CONNECTIONS = 3
PATIENCE = 0.3
HELD = 0.2


def starve() -> None:
    """Hold every connection of a small pool, ask for one more, and let the report be printed."""
    logging.basicConfig(stream=sys.stdout, format="%(message)s", force=True)
    engine = create_engine(
        "sqlite://",
        poolclass=QueuePool,
        pool_size=CONNECTIONS,
        max_overflow=0,
        pool_timeout=PATIENCE,
        connect_args={"check_same_thread": False},
    )
    orders = sessionmaker(engine)
    instrument(orders, name="orders")
    print(f"A pool of {CONNECTIONS} connections. Three requests take one each and keep it.\n")
    held: list[Session | Connection] = [
        _calls_another_service(orders),
        _forgets_to_close(orders),
        _exports(engine),
    ]
    time.sleep(HELD)
    print(f"A fourth request asks for one and waits {PATIENCE} s. Then the log says:\n")
    with bind(request_id="request-4", route="GET /orders"), orders() as session:
        try:
            session.execute(text("select 4"))
        except PoolTimeoutError as refusal:
            print(f"\nThe fourth request gets: {refusal}")
    for taken in held:
        taken.close()
    engine.dispose()


def _calls_another_service(orders: sessionmaker[Session]) -> Session:
    with bind(request_id="request-1", route="POST /orders"):
        session = orders()
        session.execute(text("create table orders (id integer primary key)"))
        session.execute(text("insert into orders default values"))
        return session  # and now it waits for a payment service, its connection in hand


def _forgets_to_close(orders: sessionmaker[Session]) -> Session:
    with bind(request_id="request-2", route="GET /orders/{id}"):
        session = orders()
        session.execute(text("select 2"))
        session.rollback()
        session.execute(text("select 2"))
        return session


def _exports(engine: Engine) -> Connection:
    with bind(request_id="request-3", route="GET /export"):
        connection = engine.connect()
        connection.execute(text("select 3"))
        return connection
