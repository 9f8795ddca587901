"""The canonical records: what one session knows about itself."""

from __future__ import annotations

import sys
import weakref
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from operator import attrgetter
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .application_sessions import (
    ConnectionPoolMetrics,
    SystemMetrics,
    SystemSessionMetrics,
    create_system_session_metrics,
)
from .base import BaseSessionMetrics, plain, seconds_since, text_of
from .catalog import (
    DEFAULT_FACTORY,
    GARBAGE_COLLECTED,
    OTHER,
    TRANSACTION_OUTCOMES,
    UNSPECIFIED,
    WORKING_STATES,
    SessionState,
)
from .ledger import COLLECTED, DETACHED, LEDGER
from .legible import encodable, one_line
from .series import PENDING_LIMIT
from .tracing import SpanMirror, current_mirror, lead_to

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.util.types import AttributeValue

    from .series import Histogram

__all__ = [
    "BaseSessionMetrics",
    "ConnectionPoolMetrics",
    "DatabaseMetrics",
    "DatabaseSessionMetrics",
    "SessionMetrics",
    "SessionState",
    "SystemMetrics",
    "SystemSessionMetrics",
    "create_database_session_metrics",
    "create_system_session_metrics",
]

_CREATED = SessionState.CREATED
_ACTIVE = SessionState.ACTIVE
_IDLE = SessionState.IDLE
_CLOSED = SessionState.CLOSED
_ERROR = SessionState.ERROR
_HOLDING = (SessionState.ACTIVE, SessionState.IDLE, SessionState.ERROR)

# Looked up once: these run for every record.
_now = datetime.now
_utc = timezone.utc
_reference = weakref.ref
_default = LEDGER.factory(DEFAULT_FACTORY).created


def _as_state(value: SessionState | str) -> SessionState:
    try:
        return SessionState(value)
    except ValueError:
        taken = ", ".join(repr(state.value) for state in SessionState)
        message = f"{value!r} is no session state. Give a SessionState or one of {taken}."
        raise ValueError(message) from None


def _mirrored(stored: str, write: Callable[[Any, Any], None], doc: str) -> Any:
    # attrgetter is C: reading a mirrored field costs little more than reading a plain one.
    return property(attrgetter(stored), write, doc=doc)


def _get_state(record: DatabaseSessionMetrics) -> SessionState:
    stage = record._stage
    if stage.resting and stage.factory.rests(record):
        return _IDLE
    return stage.state


def _set_state(record: DatabaseSessionMetrics, value: SessionState | str) -> None:
    target = _as_state(value)
    if target is _CLOSED:
        record.close_session()
    else:
        record.move(target)
        if target is _CREATED and (record._queries > 0 or record._transactions > 0):
            record._stage = record._stage.factory.worked  # put back, but not unused


def _set_query_count(record: DatabaseSessionMetrics, value: int) -> None:
    record._stage.factory.queries.add(value - record._queries)
    record._queries = value
    record._worked("query_count", value)


def _set_transaction_count(record: DatabaseSessionMetrics, value: int) -> None:
    record._count_transactions(value - record._transactions, UNSPECIFIED)


def _set_error_count(record: DatabaseSessionMetrics, value: int) -> None:
    record._stage.factory.errors(OTHER).add(value - record._errors)
    record._errors = value
    record._changed("error_count", value)


_SLOTS = (
    "__weakref__",
    "_errors",
    "_mirror",
    "_queries",
    "_stage",
    "_started",
    "_transactions",
    "closed_at",
    "request_id",
    "session_id",
    "total_time_ms",
    "user_id",
)


@dataclass(init=False)
class DatabaseSessionMetrics(BaseSessionMetrics):
    """What one database session knows about itself, mirrored into metrics and spans.

    Constructing one counts a session; copying, pickling, comparing and ``dataclasses.asdict`` do
    not, and a copy is never counted. Assigning ``state``, ``query_count``, ``transaction_count`` or
    ``error_count`` counts as the methods do; a counter that is assigned less than it was keeps its
    series where it stood. Counts given to the constructor were counted by whoever gives them.

    ``dataclasses.replace`` constructs another, which is counted. The constructor stays this one: a
    subclass that is a dataclass as well is decorated with ``@dataclass(init=False)``.

    A record is changed by one thread at a time, as its session is.

    Attributes:
        session_id: The session's id.
        request_id: The id of the request it serves.
        user_id: The id of the user it serves.
        state: What it is doing.
        query_count: Statements sent, failed ones too.
        transaction_count: Transactions ended.
        error_count: Errors recorded.
        total_time_ms: Milliseconds from creation to close; 0 before.
        closed_at: When it was closed (UTC); None before.
    """

    __slots__ = _SLOTS
    route = ""  # of a request: hooks know it

    # The constructor is our own: the order of defaults is nobody's trouble.
    session_id: str  # type: ignore[misc]
    request_id: str  # type: ignore[misc]
    user_id: str  # type: ignore[misc]
    state: SessionState = property(_get_state, _set_state)  # type: ignore[assignment]  # noqa: RUF009
    query_count: int = _mirrored("_queries", _set_query_count, "Statements sent, failed ones too.")
    transaction_count: int = _mirrored(
        "_transactions", _set_transaction_count, "Transactions ended."
    )
    error_count: int = _mirrored("_errors", _set_error_count, "Errors recorded.")
    total_time_ms: float  # type: ignore[misc]
    closed_at: datetime | None  # type: ignore[misc]

    def __init__(
        self,
        session_id: str = "",
        request_id: str = "",
        user_id: str = "",
        created_at: datetime | None = None,
        last_activity_at: datetime | None = None,
        error_count: int = 0,
        last_error: str | None = None,
        state: SessionState | str = _CREATED,
        query_count: int = 0,
        transaction_count: int = 0,
        total_time_ms: float = 0.0,
        closed_at: datetime | None = None,
        *,
        factory: str = DEFAULT_FACTORY,
    ) -> None:
        """Count a session of ``factory``, the group its series are counted under.

        Raises:
            ValueError: ``state`` is no session state.
        """
        if created_at is None:
            created_at = _now(_utc)
        self.session_id = session_id
        self.request_id = request_id
        self.user_id = user_id
        self.created_at = created_at
        self.last_activity_at = created_at if last_activity_at is None else last_activity_at
        self._errors = error_count
        self.last_error = last_error
        self._queries = query_count
        self._transactions = transaction_count
        self.total_time_ms = total_time_ms
        self.closed_at = closed_at
        self._started: float | None = None
        self._mirror: SpanMirror | Callable[[], SpanMirror | None] | None = current_mirror
        if state is not _CREATED:
            state = _as_state(state)  # refused before anything is counted
        self._stage = stage = (
            _default if factory is DEFAULT_FACTORY else LEDGER.factory(factory).created
        )
        live = stage.live
        live[id(self)] = _reference(self)
        if len(live) > stage.factory.peak:
            stage.factory.raise_peak(len(live))
        if query_count or transaction_count:
            self._stage = stage.factory.worked  # it did something, so is not unused
        if state is _CLOSED:
            self.close_session(total_time_ms or None)
            if closed_at is not None:
                self.closed_at = self.last_activity_at = closed_at
            if last_activity_at is not None:
                self.last_activity_at = last_activity_at
        elif state is not _CREATED:
            self.move(state)

    def __del__(self) -> None:
        """Leave the live gauges where nobody closed the record."""
        try:
            stage = self._stage
            unused = stage.unused
            if unused is not None:  # the common end of a record kept by hand; as `move` counts it
                unused()
                del stage.live[id(self)]
            elif stage.state is not _CLOSED:
                self._collected()
        except (AttributeError, KeyError):
            pass  # the constructor refused its arguments, or this is a copy: no session

    # What callers do.

    def increment_query_count(self, n: int = 1) -> None:
        """Count ``n`` statements sent."""
        self.query_count += n

    def increment_transaction_count(self, n: int = 1, outcome: str | None = None) -> None:
        """Count ``n`` transactions that ended with ``outcome``.

        Args:
            n: How many.
            outcome: ``committed``, ``rolled_back`` or ``closed``; None where it is not known.

        Raises:
            ValueError: ``outcome`` is none of these.
        """
        if outcome is None:
            outcome = UNSPECIFIED
        elif outcome not in TRANSACTION_OUTCOMES:
            message = (
                f"{outcome!r} is no transaction outcome. Give one of "
                f"{', '.join(map(repr, TRANSACTION_OUTCOMES))}, or leave it out."
            )
            raise ValueError(message)
        self._count_transactions(n, outcome)

    def record_error(self, error: BaseException | str) -> None:
        """Count ``error``, keep its text, and go to the state ``error`` unless already closed.

        Its ``error.type`` is the exception's class; an error given as text has none of its own.
        """
        self.note_error(error, text_of(error))

    def note_error(self, error: BaseException | str, text: str) -> None:
        """The same, where ``text`` is what may be shown of it."""
        factory = self._stage.factory
        error_type = factory.error_type(error)
        factory.errors(error_type).hit()
        self._errors += 1
        self.last_error = text
        self._changed("error_count", self._errors)
        mirror = self.span_mirror()
        if mirror is not None:
            mirror.erred(error, text)
        if self._stage.state is not _CLOSED:
            self.move(_ERROR, error_type)

    def close_session(self, total_time_ms: float | None = None) -> None:
        """Close the record. Closing a closed one changes nothing.

        Args:
            total_time_ms: How long the session was open, in milliseconds; worked out where None.
        """
        stage = self._stage
        if stage.state is _CLOSED:
            return
        if total_time_ms is None:
            started = self._started
            seconds = self.get_age_seconds() if started is None else perf_counter() - started
            total_time_ms = seconds * 1000
        self.total_time_ms = total_time_ms
        self._date_closing()
        factory = stage.factory
        # No series goes down: neither do the sums of these.
        self.observe(factory.duration, max(total_time_ms, 0) / 1000)
        self.observe(factory.queries_per_session, max(self._queries, 0))
        self.move(_CLOSED)
        if self._mirror is not None:
            mirror = self.span_mirror()
            if mirror is not None:
                mirror.ended(self.span_attributes(), self.ended_ns())

    def _date_closing(self) -> None:
        self.closed_at = self.last_activity_at = _now(_utc)

    def close(self) -> None:
        """Close the record (the older name of ``close_session``)."""
        self.close_session()

    def get_age_seconds(self) -> float:
        """Seconds since the session was created; by the monotonic clock where a hook made it."""
        if self._started is not None:
            return perf_counter() - self._started
        return seconds_since(self.created_at)

    def to_dict(self) -> dict[str, Any]:
        """Everything there is to know, ready for JSON: times in ISO 8601 form."""
        return {
            "session_id": plain(self.session_id),
            "request_id": plain(self.request_id),
            "user_id": plain(self.user_id),
            "state": self.state.value,
            "created_at": plain(self.created_at),
            "last_activity_at": plain(self.last_activity_at),
            "closed_at": plain(self.closed_at),
            "query_count": self.query_count,
            "transaction_count": self.transaction_count,
            "error_count": self.error_count,
            "last_error": plain(self.last_error),
            "total_time_ms": plain(self.total_time_ms),
            "age_seconds": self.get_age_seconds(),
            "inactivity_seconds": self.get_inactivity_seconds(),
        }

    @property
    def factory(self) -> str:
        """The name of the group that its series are counted under."""
        return self._stage.factory.name

    @property
    def last_activity(self) -> datetime:
        """``last_activity_at``, as older callers know it."""
        return self.last_activity_at

    @property
    def operations_count(self) -> int:
        """``query_count``, as older callers know it."""
        return self.query_count

    @property
    def errors(self) -> int:
        """``error_count``, as older callers know it."""
        return self.error_count

    def move(self, target: SessionState, error_type: str = OTHER) -> None:
        """Go to the state ``target`` and count it; staying where one is counts nothing."""
        stage = self._stage
        origin = stage.state
        if origin is target:
            return
        hit, self._stage = stage.moves[target]
        if origin is _CREATED:
            if target is _ERROR:
                hit = stage.factory.failure(error_type)
            elif target in WORKING_STATES:
                self.observe(stage.factory.creation_duration, self.get_age_seconds())
        hit()
        if target is _CLOSED:
            stage.live.pop(id(self), None)
        elif origin is _CLOSED:
            stage.live[id(self)] = _reference(self)
        mirror = self._mirror
        if mirror is not None:
            if not isinstance(mirror, SpanMirror):
                mirror = mirror()
            if mirror is not None:
                mirror.moved(origin, target, self.span_attributes)

    def observe(self, histogram: Histogram, value: float) -> None:
        """Add a measurement, with an exemplar where the session's span is sampled."""
        histogram.add(value)
        if len(histogram.pending) > PENDING_LIMIT:
            histogram.fold_if_free()
        if self._mirror is not None:
            lead_to(self.span_mirror(), value, histogram)

    def span_attributes(self) -> dict[str, AttributeValue]:
        """The record as span attributes, ``sqlalchemy.session.<field>``."""
        attributes: dict[str, AttributeValue] = {
            "sqlalchemy.session.id": one_line(self.session_id),
            "sqlalchemy.session.factory": self._stage.factory.name,
            "sqlalchemy.session.state": self._stage.state._value_,
            "sqlalchemy.session.query_count": self._queries,
            "sqlalchemy.session.transaction_count": self._transactions,
            "sqlalchemy.session.error_count": self._errors,
            "sqlalchemy.session.total_time_ms": self.total_time_ms,
        }
        if self.request_id:
            attributes["sqlalchemy.session.request_id"] = one_line(self.request_id)
        if self.last_error is not None:
            attributes["sqlalchemy.session.last_error"] = encodable(self.last_error)
        return attributes

    def ended_ns(self) -> int | None:
        """When its span ends, in nanoseconds since the epoch; None for now, by the wall clock."""
        return None

    def detach(self) -> None:
        """Count nothing from here on: a copy, or a record that a fork carried into the child."""
        stage = self._stage
        self._stage = DETACHED.factory(stage.factory.name).stages[stage.state]
        self._mirror = None

    def _count_transactions(self, n: int, outcome: str) -> None:
        self._stage.factory.transaction(outcome).add(n)
        self._transactions += n
        self._worked("transaction_count", self._transactions)

    def _worked(self, name: str, value: int) -> None:
        stage = self._stage
        if stage.unused is not None and value > 0:
            self._stage = stage.factory.worked
        self._changed(name, value)

    def _changed(self, name: str, value: int) -> None:
        self.last_activity_at = _now(_utc)
        mirror = self.span_mirror()
        if mirror is not None:
            mirror.counted(name, value)

    def span_mirror(self) -> SpanMirror | None:
        """The span that changes are mirrored onto just now, or None."""
        mirror = self._mirror
        # A record kept by hand mirrors onto whatever span is current when it changes.
        return mirror if mirror is None or isinstance(mirror, SpanMirror) else mirror()

    def _collected(self) -> None:
        stage = self._stage
        factory = stage.factory
        # Clocks, which crash then on Python 3.13.0, and providers, which log what comes after their
        # shutdown, are left alone when the interpreter ends; nobody reads a report then.
        ending = sys.is_finalizing()
        # Of a copy, and of a record that a fork carried along, nobody is to be told.
        if stage.state in _HOLDING and factory.ledger is LEDGER:
            factory.leaks(GARBAGE_COLLECTED).hit()
            if not ending:
                route, born_at = self.route, getattr(self, "born_at", None)
                age, ids = self.get_age_seconds(), (self.session_id, self.request_id)
                COLLECTED.append((factory.name, *ids, route, age, born_at))
        mirror = self._mirror
        # What is current when it is collected is anybody's span.
        if mirror is current_mirror or ending:
            self._mirror = mirror = None
        self.move(_CLOSED)
        if isinstance(mirror, SpanMirror):
            leaked = {"sqlalchemy.session.leak": GARBAGE_COLLECTED}
            mirror.ended(self.span_attributes() | leaked, self.ended_ns())

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle by value: the copy is detached."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return _detached_copy, (type(self), self.factory, values, getattr(self, "__dict__", {}))


def _detached_copy(
    kind: type[DatabaseSessionMetrics],
    factory: str,
    values: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> DatabaseSessionMetrics:
    record = kind.__new__(kind)
    mirrored = {name: values[name] for name in ("state", "query_count", "transaction_count")}
    record._stage = DETACHED.factory(factory).stages[mirrored["state"]]
    record._queries = values["query_count"]
    record._transactions = values["transaction_count"]
    record._errors = values["error_count"]
    record._started = None
    record._mirror = None
    for name, value in {**values, **extra}.items():
        if name not in _MIRRORED:
            setattr(record, name, value)
    return record


_MIRRORED = frozenset({"state", "query_count", "transaction_count", "error_count"})

SessionMetrics = DatabaseSessionMetrics
DatabaseMetrics = DatabaseSessionMetrics


def create_database_session_metrics(
    session_id: str = "",
    request_id: str = "",
    user_id: str = "",
    **fields: Any,
) -> DatabaseSessionMetrics:
    """Make a record, and count a session; arguments as ``DatabaseSessionMetrics`` takes them."""
    return DatabaseSessionMetrics(session_id, request_id, user_id, **fields)
