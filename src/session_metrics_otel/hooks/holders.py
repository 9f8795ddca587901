"""Who holds a pool's connections, and the report that names them when it is exhausted."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from session_metrics_otel.binding import NOTHING_BOUND, current_binding
from session_metrics_otel.catalog import OTHER, SessionState
from session_metrics_otel.legible import one_line
from session_metrics_otel.series import Bounded

from .places import line_of
from .queries import summary_of_sent

if TYPE_CHECKING:
    from sqlalchemy import Pool

    from session_metrics_otel.binding import Binding

    from .observed_record import ObservedSessionMetrics
    from .places import Place

logger = logging.getLogger("session_metrics_otel")

REPORT_INTERVAL = 10.0
"""Seconds between two reports on one pool: fifty waiters at once are told one story."""

KEPT_REPORTS = 20
"""Reports that are kept to be looked at."""

MAX_ROUTES = 100
"""Different routes that are told apart; the rest is ``_OTHER``."""

routes = Bounded(MAX_ROUTES, OTHER)
"""Those that have series of their own."""


class Holder:
    """A connection that is out of its pool.

    Attributes:
        since: ``time.perf_counter()`` at the checkout.
        place: Where in the application's code it was taken.
        session: The record of the session that uses it, or None: a Core connection.
        statements: How many statements were sent without a session.
        last_statement: The last of these: a compiled statement, or text; None before.
        bound: The request that sent it.
    """

    # Set by whoever makes one, which is done for every checkout: no call of a constructor.
    since: float
    place: Place | None
    session: ObservedSessionMetrics | None = None
    statements: int = 0
    last_statement: Any = None
    bound: Binding = NOTHING_BOUND

    def describe(self) -> dict[str, Any]:
        """What the report says of it."""
        session = self.session
        bound = self.bound if session is None else session
        last = self.last_statement if session is None else session.last_statement
        if session is not None and session.state is SessionState.CLOSED:
            session = None  # it was bound to this connection, which outlived it
        # Before the time it is held, which is never the shorter one.
        idle_seconds = 0.0 if session is None else session.idle_seconds()
        return {
            "session_id": "" if session is None else one_line(session.session_id),
            "request_id": one_line(bound.request_id),
            "route": one_line(bound.route),
            "factory": "" if session is None else session.factory,
            "state": "" if session is None else session.state.value,
            "held_seconds": round(time.perf_counter() - self.since, 3),
            "statements": self.statements if session is None else session.query_count,
            "last_statement": summary_of_sent(last),
            "taken_at": line_of(self.place),
            "made_at": "" if session is None else line_of(session.born_at),
            "idle_seconds": round(idle_seconds, 3),
        }


def describe_waiter(
    session: ObservedSessionMetrics | None, place: Place | None, holders: list[Holder]
) -> dict[str, Any]:
    """What the report says of whoever asked in vain, and how many connections it holds itself."""
    bound = current_binding.get() if session is None else session
    request_id = bound.request_id
    holding = [holder.session or holder.bound for holder in holders]
    return {
        "session_id": "" if session is None else one_line(session.session_id),
        "request_id": one_line(request_id),
        "route": one_line(bound.route),
        "asked_at": line_of(place),
        "made_at": "" if session is None else line_of(session.born_at),
        "holds": sum(
            by is session or bool(request_id and by.request_id == request_id) for by in holding
        ),
    }


_reports: deque[dict[str, Any]] = deque(maxlen=KEPT_REPORTS)
_last_report: WeakKeyDictionary[Pool, tuple[float, dict[str, Any]]] = WeakKeyDictionary()
_lock = threading.Lock()


def exhaustion_reports() -> list[dict[str, Any]]:
    """The last twenty reports on exhausted pools, the newest last.

    Each is a dictionary with

    - ``at``, when the first of its requests timed out, and ``last_at``, when the last did, in
      ISO 8601 form;
    - ``pool``, the pool's name, and ``status``, what SQLAlchemy's pool says of itself;
    - ``timeouts``, how many requests it speaks for so far, and ``nested``, how many of these
      already held a connection;
    - ``waiting``, the first of these: its session, request and route, the lines that asked and that
      made its session, and how many connections its own request ``holds``;
    - ``holders``: for each connection that was out, its session, factory, request, route, state,
      seconds held, seconds since a statement, statements, last statement, the line of code that
      took it, and the one that made its session.
    """
    return list(_reports)


def report_exhaustion(
    pool_name: str, pool: Pool, holders: list[Holder], waiting: dict[str, Any]
) -> dict[str, Any]:
    """Say who holds the connections of ``pool``, of which ``waiting`` asked for one in vain.

    Logs at most one report on a pool every ``REPORT_INTERVAL`` seconds; in between, the last one
    counts the requests that it speaks for.
    """
    now = time.monotonic()
    with _lock:
        # By the pool and not its name: others of that name have other holders.
        reported = _last_report.get(pool)
        if reported is not None and now - reported[0] < REPORT_INTERVAL:
            earlier = reported[1]
            earlier["timeouts"] += 1
            earlier["last_at"] = _now()
            earlier["nested"] += bool(waiting["holds"])
            return earlier
        longest_first = sorted(holders, key=lambda holder: holder.since)
        described = [holder.describe() for holder in longest_first]
        report: dict[str, Any] = {
            "at": (at := _now()),
            "last_at": at,
            "pool": pool_name,
            "status": pool.status(),
            "timeouts": 1,
            "nested": int(bool(waiting["holds"])),
            "waiting": waiting,
            "holders": described,
        }
        _reports.append(report)
        _last_report[pool] = now, report
    logger.warning("%s", _as_text(report), extra={"exhaustion_report": report})
    return report


def _now() -> str:
    return datetime.now(timezone.utc).isoformat()


def _as_text(report: dict[str, Any]) -> str:
    pool, status, holders = report["pool"], report["status"], report["holders"]
    lines = [f"No connection available from pool {pool!r} ({status}); {len(holders)} held:"]
    waiting = report["waiting"]
    if waiting["holds"]:
        made = f", in a session made at {waiting['made_at']}," if waiting["made_at"] else ""
        line = (
            f"Route {waiting['route'] or 'unknown'}, request {waiting['request_id'] or 'unknown'}, "
            f"waits for a connection at {waiting['asked_at'] or 'an unknown place'}{made} and "
            f"holds {waiting['holds']} already: where all that hold one wait for another, none "
            "goes on."
        )
        lines.insert(0, line)
    for holder in holders:
        who = "a connection without a session"
        if holder["session_id"]:
            who = f"session {holder['session_id']} ({holder['factory']}, {holder['state']})"
        request = f", request {holder['request_id']}" if holder["request_id"] else ""
        route = f", route {holder['route']}" if holder["route"] else ""
        sent = "1 statement" if holder["statements"] == 1 else f"{holder['statements']} statements"
        lines.append(
            f"  {holder['held_seconds']:.1f} s: {who}{request}{route}, "
            f"{sent}, last {holder['last_statement'] or 'unknown'}"
            + (f" {holder['idle_seconds']:.1f} s ago" if holder["idle_seconds"] >= 1 else "")
            + f"; taken at {holder['taken_at'] or 'an unknown place'}"
            + (f", session made at {holder['made_at']}" if holder["made_at"] else "")
        )
    return "\n".join(lines)
