"""The demo's application: orders over HTTP, kept in SQLite. Instrumented in three lines.

It keeps books of its own on what its sessions came to (``Truth``), so that what /metrics says can
be held against them.
"""

from __future__ import annotations

import gc
import json
import re
import sqlite3
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from http import HTTPStatus
from random import Random
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from uuid import uuid4
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from opentelemetry import trace
from opentelemetry.trace import SpanKind
from sqlalchemy import CheckConstraint, create_engine, func, select
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.pool import NullPool

from session_metrics_otel import bind, instrument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from _typeshed.wsgi import StartResponse

    Answer = tuple[HTTPStatus, Any]

chance = Random()
"""The demo's own: to seed everybody's would give the traces of each demo the same ids."""

tracer = trace.get_tracer("order-service")


class Base(DeclarativeBase):
    """The tables."""


class Order(Base):
    """An order of so many of an item; fewer than one is refused by the database."""

    __tablename__ = "orders"
    __table_args__ = (CheckConstraint("quantity > 0"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]
    quantity: Mapped[int]
    version: Mapped[int] = mapped_column()
    # Whoever changes an order that somebody else has changed meanwhile gets a StaleDataError.
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012


class Truth:
    """The service's own books: sessions by factory and by what they came to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.sessions: Counter[str] = Counter()

    def count(self, factory: str, outcome: str) -> None:
        """Enter one session."""
        with self._lock:
            self.sessions[f"{factory}.{outcome}"] += 1


class OrderService:
    """A WSGI application.

    Args:
        folder: Where the database file goes.
        outage: How likely it is, from 0 to 1, that the reports' replica refuses a connection.
    """

    def __init__(self, folder: Path, outage: float) -> None:
        self.truth = Truth()
        database = folder / "orders.sqlite"
        engine = create_engine(f"sqlite:///{database}", connect_args={"timeout": 30})
        Base.metadata.create_all(engine)

        def connect_to_replica() -> sqlite3.Connection:
            if chance.random() < outage:
                message = "the replica does not answer"
                raise sqlite3.OperationalError(message)
            return sqlite3.connect(database, timeout=30, check_same_thread=False)

        # A new connection for every report: each may find the replica gone.
        replica = create_engine("sqlite://", creator=connect_to_replica, poolclass=NullPool)
        self.engines = (engine, replica)

        self.orders = sessionmaker(engine)
        self.reports = sessionmaker(replica)
        instrument(self.orders, name="orders")
        instrument(self.reports, name="reports")

        self._routes: dict[tuple[str, str], Callable[..., Answer]] = {
            ("GET", "/orders"): self.list_orders,
            ("POST", "/orders"): self.place_order,
            ("GET", "/orders/{id}"): self.show_order,
            ("POST", "/orders/{id}/more"): self.order_more,
            ("POST", "/orders/{id}/item"): self.change_item,
            ("GET", "/report"): self.report,
            ("GET", "/forgetful"): self.forget_to_close,
            ("GET", "/health"): self.health,
        }

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        """Answer one request, inside a server span and with its id and route bound."""
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        status = HTTPStatus.NOT_FOUND
        answer: Any = {"error": f"there is no {method} {path}"}
        for (verb, route), handler in self._routes.items():
            match = re.fullmatch(route.replace("{id}", r"(\d+)"), path)
            if match and verb == method:
                request_id = environ.get("HTTP_X_REQUEST_ID") or uuid4().hex
                with (
                    tracer.start_as_current_span(f"{method} {route}", kind=SpanKind.SERVER) as span,
                    bind(request_id=request_id, route=route),
                ):
                    span.set_attribute("http.route", route)
                    status, answer = handler(*match.groups())
                break
        start_response(f"{status.value} {status.phrase}", [("Content-Type", "application/json")])
        return [json.dumps(answer).encode()]

    def close(self) -> None:
        """Give every connection back."""
        for engine in self.engines:
            engine.dispose()

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with self.orders() as session:
            yield session
        self.truth.count("orders", "success")

    def list_orders(self) -> Answer:
        """The newest orders. Reading: its transaction ends with the session, uncommitted."""
        with self._session() as session:
            orders = session.scalars(select(Order).order_by(Order.id.desc()).limit(20))
            return HTTPStatus.OK, [{"id": order.id, "item": order.item} for order in orders]

    def place_order(self) -> Answer:
        """A new order, committed."""
        with self._session() as session:
            order = Order(item=chance.choice(("tea", "coffee", "milk")), quantity=1)
            session.add(order)
            session.commit()
            return HTTPStatus.CREATED, {"id": order.id}

    def show_order(self, order_id: str) -> Answer:
        """One order."""
        with self._session() as session:
            order = session.get(Order, int(order_id))
            if order is None:
                return HTTPStatus.NOT_FOUND, {"error": "no such order"}
            return HTTPStatus.OK, {"id": order.id, "item": order.item, "quantity": order.quantity}

    def order_more(self, order_id: str) -> Answer:
        """One more or fewer of an order; what the database refuses is rolled back."""
        with self._session() as session:
            order = session.get(Order, int(order_id), with_for_update=True)
            if order is None:
                session.rollback()
                return HTTPStatus.NOT_FOUND, {"error": "no such order"}
            order.quantity += chance.choice((1, -1))
            try:
                session.commit()
            except IntegrityError:
                session.rollback()
                return HTTPStatus.CONFLICT, {"error": "an order is of one at least"}
            except StaleDataError:
                session.rollback()
                return HTTPStatus.CONFLICT, {"error": "somebody else has just changed it"}
            return HTTPStatus.OK, {"quantity": order.quantity}

    def change_item(self, order_id: str) -> Answer:
        """Another item for an order that a colleague changes meanwhile: who comes second loses."""
        with self._session() as session:
            order = session.get(Order, int(order_id))
            if order is None:
                return HTTPStatus.NOT_FOUND, {"error": "no such order"}
            with self._session() as colleague:
                theirs = colleague.get_one(Order, int(order_id))
                theirs.quantity += 1
                with suppress(StaleDataError):
                    colleague.commit()
            order.item = "cocoa" if order.item != "cocoa" else "water"
            try:
                session.commit()
            except StaleDataError:
                session.rollback()
                return HTTPStatus.CONFLICT, {"error": "somebody else has just changed it"}
            return HTTPStatus.OK, {"item": order.item}

    def report(self) -> Answer:
        """How many orders there are, asked of a replica that is not always there."""
        try:
            with self.reports() as session:
                total = session.scalar(select(func.count()).select_from(Order))
        except DBAPIError:
            self.truth.count("reports", "failure")
            return HTTPStatus.SERVICE_UNAVAILABLE, {"error": "the replica does not answer"}
        self.truth.count("reports", "success")
        return HTTPStatus.OK, {"orders": total}

    def forget_to_close(self) -> Answer:
        """A handler with a fault: its session is never closed, and is collected some time."""
        session = self.orders()
        total = session.scalar(select(func.count()).select_from(Order))
        self.truth.count("orders", "success")
        self.truth.count("orders", "leak")
        del session
        gc.collect()  # at once, so that the connection is not missed for long
        return HTTPStatus.OK, {"orders": total}

    def health(self) -> Answer:
        """A handler that makes a session and then has no use for it."""
        with self.orders():
            pass
        self.truth.count("orders", "unused")
        return HTTPStatus.OK, {"status": "ok"}


class QuietHandler(WSGIRequestHandler):
    """Leaves the terminal to the summary line."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the parent's name
        """Say nothing."""


class ThreadingServer(ThreadingMixIn, WSGIServer):
    """A thread for each request, as servers under a WSGI application have."""

    daemon_threads = True
    request_queue_size = 64
