"""How an incident is run: an application served on the loopback, its traffic, and what is said.

Every incident beside this file is one program. ``--broken`` is the outage, ``--mended`` the same
traffic after the repair; the log, with the seconds since the traffic began, goes to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import socket
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import anyio
import httpx
import uvicorn
from prometheus_client import make_asgi_app
from sqlalchemy import create_engine, make_url, text

from session_metrics_otel.watchdog import watch
from session_metrics_otel.web.asgi import BindingMiddleware
from session_metrics_otel.web.live_page import LivePage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fastapi import FastAPI

HOST = "127.0.0.1"
ORDERS = 20

logger = logging.getLogger("incident")


@dataclass
class Setting:
    """What an application is built in.

    Attributes:
        mended: Whether it is built right.
        database: SQLAlchemy's URL of a database with ``ORDERS`` rows in its table ``orders``.
    """

    mended: bool
    database: str


@dataclass
class Traffic:
    """Those who use the application.

    Attributes:
        answers: How many requests were answered with which status.
    """

    client: httpx.AsyncClient
    answers: Counter[str] = field(default_factory=Counter)

    async def send(self, method: str, path: str) -> None:
        """One request; whatever becomes of it is counted."""
        try:
            response = await self.client.request(method, path)
        except httpx.HTTPError as error:
            self.answers[type(error).__name__] += 1
        else:
            self.answers[str(response.status_code)] += 1

    async def leave_after(self, seconds: float, method: str, path: str) -> None:
        """One request, whose client disconnects after so many seconds of its answer."""
        try:
            with anyio.move_on_after(seconds):
                async with self.client.stream(method, path) as response:
                    self.answers[str(response.status_code)] += 1
                    await response.aread()
        except httpx.HTTPError as error:
            self.answers[type(error).__name__] += 1

    async def burst(self, count: int, method: str, path: str) -> None:
        """``count`` requests at once."""
        await asyncio.gather(*[self.send(method, path) for _ in range(count)])


class _SecondsSinceTraffic(logging.Formatter):
    began = 0.0

    def format(self, record: logging.LogRecord) -> str:
        seconds = record.created - self.began if self.began else 0.0
        return f"[{seconds:5.1f} s] {super().format(record)}"


def run(
    application: Callable[[Setting], FastAPI],
    traffic: Callable[[Traffic], Awaitable[None]],
    *,
    postgresql: bool = False,
) -> None:
    """Run an incident as its command line says.

    Args:
        application: Builds the application, broken or mended.
        traffic: What is asked of it, over and over until the time is up.
        postgresql: Whether it needs an empty database of a PostgreSQL, given by ``--database``.
    """
    chosen = _options(postgresql=postgresql)
    log = _SecondsSinceTraffic()
    handler = logging.StreamHandler()
    handler.setFormatter(log)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with TemporaryDirectory() as folder:
        database = chosen.database if postgresql else f"sqlite:///{folder}/orders.sqlite"
        _create_orders(database)
        app = application(Setting(chosen.mended, database))
        app.mount("/metrics", make_asgi_app())
        app.mount("/sessionz", LivePage().asgi)
        app.add_middleware(BindingMiddleware)
        # An outage of days is shown in seconds: the defaults are 300 s and 5 s.
        watch(overdue=60, idle_in_transaction=1, interval=0.2)
        with socket.socket() as listening:
            listening.bind((HOST, chosen.port))
            server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="on"))
            serving = threading.Thread(target=server.run, args=([listening],))
            serving.start()
            address = f"http://{HOST}:{listening.getsockname()[1]}"
            log.began = time.time()
            logger.info("%s: see %s/metrics", "mended" if chosen.mended else "broken", address)
            answers = asyncio.run(_send(traffic, address, chosen.seconds))
            logger.info("answers: %s", dict(sorted(answers.items())))
            server.should_exit = True
            serving.join()


async def _send(
    traffic: Callable[[Traffic], Awaitable[None]], address: str, seconds: float
) -> Counter[str]:
    async with httpx.AsyncClient(base_url=address, timeout=60, limits=httpx.Limits()) as client:
        users = Traffic(client)
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            await traffic(users)
        return users.answers


def _create_orders(database: str) -> None:
    plain = make_url(database)
    if plain.get_backend_name() == "postgresql":  # whatever the program's driver is
        plain = plain.set(drivername="postgresql+psycopg")
    engine = create_engine(plain)
    with engine.begin() as connection:
        connection.execute(text("drop table if exists orders"))
        connection.execute(text("create table orders (id integer primary key, item text)"))
        rows = [{"id": n, "item": f"item {n}"} for n in range(1, ORDERS + 1)]
        connection.execute(text("insert into orders values (:id, :item)"), rows)
    engine.dispose()


def _options(*, postgresql: bool) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--broken", action="store_true", help="the outage")
    which.add_argument("--mended", action="store_true", help="the same traffic after the repair")
    parser.add_argument("--seconds", type=float, default=15, help="how long (15)")
    parser.add_argument("--port", type=int, default=0, help="of the application (any)")
    if postgresql:
        parser.add_argument(
            "--database",
            required=True,
            metavar="URL",
            help="postgresql+asyncpg://user@host:port/name; its table orders is made anew",
        )
    return parser.parse_args()
