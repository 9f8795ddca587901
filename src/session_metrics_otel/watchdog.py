"""The watchdog: sessions open for too long, idle in their transaction, or dropped unclosed."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakValueDictionary

from sqlalchemy.orm.session import _sessions

from .base import text_of
from .catalog import GARBAGE_COLLECTED, IDLE_IN_TRANSACTION, OVERDUE, SessionState
from .faults import caught
from .hooks.observed_record import ObservedSessionMetrics
from .hooks.places import line_of
from .hooks.pools import holder_of
from .hooks.queries import summary_of_sent
from .hooks.sessions import attached_record
from .ledger import COLLECTED, LEDGER
from .legible import one_line
from .tracing import SpanMirror
from .weak import alive

if TYPE_CHECKING:
    import weakref
    from collections.abc import Iterator

    from sqlalchemy.orm import Session

    from .factory_ledger import FactoryLedger
    from .hooks.places import Place
    from .session_metrics import DatabaseSessionMetrics

logger = logging.getLogger("session_metrics_otel")

CHUNK = 500
"""Sessions looked at before other threads are let in: a fraction of a millisecond's work."""

KEPT_REPORTS = 50
"""Reports that are kept to be looked at."""


@dataclass(frozen=True)
class LeakReport:
    """One session that leaked, for one reason.

    Attributes:
        reason: ``overdue``, ``idle_in_transaction`` or ``garbage_collected``.
        factory: The factory it is counted under.
        session_id: Its id.
        request_id: The id of the request it was made for, or "".
        route: The route of that request, or "".
        age_seconds: How long it had been open.
        place: Where in the application it was made: ``file:line in function``, or "".
        noticed_at: When it was noticed, in seconds since the epoch.
        state: Its state.
        taken_at: Where the connection was taken that it holds, in the same form; or "".
        last_statement: A summary of what it sent last, or "".
    """

    reason: str
    factory: str
    session_id: str
    request_id: str
    route: str
    age_seconds: float
    place: str
    noticed_at: float
    state: str = ""
    taken_at: str = ""
    last_statement: str = ""


class Watchdog:
    """Looks over the live sessions, and counts each that leaks once for each reason.

    Args:
        overdue: A session open for longer leaks; in seconds.
        idle_in_transaction: A transaction left open with no statement sent for longer leaks, and
            its session is ``idle`` until the next statement; in seconds.
        close_overdue: Close overdue sessions, from the watchdog's thread, unless a statement is
            being executed or the session is for asyncio.

    Attributes:
        reports: The last reports, the newest last.
    """

    def __init__(
        self, *, overdue: float, idle_in_transaction: float, close_overdue: bool = False
    ) -> None:
        self.close_overdue = close_overdue
        self.overdue = overdue
        self.idle_in_transaction = idle_in_transaction
        self.reports: deque[LeakReport] = deque(maxlen=KEPT_REPORTS)
        self._reported: dict[tuple[int, str], weakref.ref[Any]] = {}

    def scan(self) -> None:
        """Look at every live session once."""
        while COLLECTED:
            self._report(GARBAGE_COLLECTED, *COLLECTED.popleft())
        for factory in LEDGER.factories():
            factory.wake()
            for reference in _in_chunks(list(factory.live.values())):
                record = reference()
                if record is not None:
                    self._look_at(record, reference, factory)
        for key, reference in self._reported.copy().items():
            record = reference()
            if record is None or record.state is SessionState.CLOSED:
                del self._reported[key]

    def start_again(self) -> None:
        """Forget what was reported: a child after ``fork`` has none of its parent's sessions."""
        self.reports.clear()
        self._reported.clear()

    def _look_at(
        self,
        record: DatabaseSessionMetrics,
        reference: weakref.ref[Any],
        factory: FactoryLedger,
    ) -> None:
        if record.get_age_seconds() > self.overdue:
            self._leaked(record, reference, OVERDUE)
            if self.close_overdue:
                _close_session_of(record)
        ended = getattr(record, "statement_ended", None)  # a record kept by hand has none
        if (
            ended is not None
            and isinstance(record, ObservedSessionMetrics)
            and time.perf_counter() - ended > self.idle_in_transaction
            and record._stage.state is SessionState.ACTIVE
            and record.transaction_began is not None
        ):
            factory.rest(record, ended)
            self._leaked(record, reference, IDLE_IN_TRANSACTION)

    def _leaked(
        self, record: DatabaseSessionMetrics, reference: weakref.ref[Any], reason: str
    ) -> None:
        known = self._reported.get((id(record), reason))
        if known is not None and known() is record:
            return
        self._reported[id(record), reason] = reference
        LEDGER.factory(record.factory).leaks(reason).hit()
        if isinstance(record._mirror, SpanMirror):
            record._mirror.leaked(reason)
        self._report(
            reason, record.factory, record.session_id, record.request_id, record.route,
            record.get_age_seconds(), getattr(record, "born_at", None), *_work_of(record),
        )  # fmt: skip

    def _report(
        self,
        reason: str,
        factory: str,
        session_id: str,
        request_id: str,
        route: str,
        age: float,
        born_at: Place | None,
        *work: str,
    ) -> None:
        report = LeakReport(
            reason, factory, one_line(session_id), one_line(request_id), one_line(route), age,
            line_of(born_at), time.time(), *work,
        )  # fmt: skip
        self.reports.append(report)
        logger.warning(
            "Session %s of %r leaks (%s): open for %.1f s%s, request %r, route %r, made at %s",
            report.session_id, factory, reason, age, _as_text(report),
            report.request_id, report.route, report.place or "an unknown place",
            extra={"session_leak": asdict(report)},
        )  # fmt: skip


def _as_text(report: LeakReport) -> str:
    """What is known of its work."""
    state = f", {report.state}" if report.state else ""
    taken = f", its connection taken at {report.taken_at}" if report.taken_at else ""
    return state + taken + (f", last {report.last_statement}" if report.last_statement else "")


def _work_of(record: DatabaseSessionMetrics) -> tuple[str, str, str]:
    """Its state, the line that took the connection it holds, and its last statement."""
    if not isinstance(record, ObservedSessionMetrics):
        return record.state.value, "", ""
    holder = holder_of(record)
    taken_at = "" if holder is None else line_of(holder.place)
    return record.state.value, taken_at, summary_of_sent(record.last_statement)


def _close_session_of(record: DatabaseSessionMetrics) -> None:
    # SQLAlchemy's own register, which close_all_sessions() goes by; a record knows no session.
    sessions = alive(_sessions.valuerefs())
    session = next((found for found in sessions if attached_record(found) is record), None)
    if session is None:
        return
    if getattr(record, "statement_ended", None) is None or _is_for_asyncio(session):
        return  # another thread is inside its driver, or only its event loop may close it
    try:
        session.close()
    except Exception as refusal:  # noqa: BLE001 - it stays open, and is tried again
        logger.warning(
            "Session %s could not be closed: %s", record.session_id, one_line(text_of(refusal))
        )
    else:
        logger.warning("Session %s was overdue and has been closed.", record.session_id)


def _is_for_asyncio(session: Session) -> bool:
    transaction = session.get_transaction()
    connections = () if transaction is None else transaction._connections
    return any(connection.dialect.is_async for connection in connections)


def _in_chunks(references: list[weakref.ref[Any]]) -> Iterator[weakref.ref[Any]]:
    for start in range(0, len(references), CHUNK):
        yield from references[start : start + CHUNK]
        time.sleep(0)  # lets go of the interpreter, so that a request need not wait for the scan


class _Patrol:
    """The one thread."""

    def __init__(self, watchdog: Watchdog, interval: float) -> None:
        self.watchdog = watchdog
        self.interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="session-metrics-watchdog", daemon=True
        )
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self.interval):
            self._look()

    def _look(self) -> None:
        for looking in (self.watchdog.scan, *(other.look for other in alive(_others.valuerefs()))):
            try:
                looking()
            except Exception as fault:  # noqa: BLE001, PERF203 - it looks again next time
                caught("watchdog", fault)

    def end(self) -> None:
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join()


class Looks(Protocol):
    """What has to look every few seconds, and is not worth a thread of its own."""

    def look(self) -> None:
        """Look."""


_others: WeakValueDictionary[int, Looks] = WeakValueDictionary()


def look_along(other: Looks) -> None:
    """Have ``other`` look whenever the watchdog does, while somebody keeps it."""
    _others[id(other)] = other


_lock = threading.Lock()
_patrol: _Patrol | None = None


def watch(
    *,
    overdue: float = 300.0,
    idle_in_transaction: float = 5.0,
    interval: float | None = None,
    close_overdue: bool = False,
) -> Watchdog:
    """Watch the sessions of this process from here on, in one daemon thread.

    Called again, it goes on with the new limits. A child after ``fork`` has a thread of its own.

    Args:
        overdue: A session that is open for longer than this leaks; in seconds.
        idle_in_transaction: A session whose open transaction sends nothing for longer than this
            leaks; in seconds.
        interval: Seconds between two looks at the sessions; if None, the smaller of the two limits,
            and at most a minute.
        close_overdue: Close overdue sessions. Whoever holds one finds it closed between two of its
            statements; sessions for asyncio, and those executing a statement, are left alone.

    Raises:
        ValueError: A limit is not above 0.
    """
    global _patrol  # noqa: PLW0603
    if interval is None:
        interval = min(60.0, overdue, idle_in_transaction)
    for name, value in (
        ("overdue", overdue),
        ("idle_in_transaction", idle_in_transaction),
        ("interval", interval),
    ):
        if not value > 0:
            message = f"{name}={value!r}: give a number of seconds above 0."
            raise ValueError(message)
    unwatch()
    watchdog = Watchdog(
        overdue=overdue, idle_in_transaction=idle_in_transaction, close_overdue=close_overdue
    )
    with _lock:
        _patrol = _Patrol(watchdog, interval)
    return watchdog


def unwatch() -> None:
    """Stop watching, if anybody watches."""
    global _patrol
    with _lock:
        patrol, _patrol = _patrol, None
    if patrol is not None:
        patrol.end()


def leak_reports() -> list[LeakReport]:
    """The last fifty reports, the newest last."""
    patrol = _patrol
    return [] if patrol is None else list(patrol.watchdog.reports)


def _go_on_in_child() -> None:
    # Threads do not come along, and locks may have been held by one that did not.
    global _lock, _patrol  # noqa: PLW0603
    _lock = threading.Lock()
    COLLECTED.clear()
    if _patrol is not None:
        _patrol.watchdog.start_again()
        _patrol = _Patrol(_patrol.watchdog, _patrol.interval)


atexit.register(unwatch)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_go_on_in_child)
