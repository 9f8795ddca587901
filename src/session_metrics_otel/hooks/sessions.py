"""Sessions: born, given a connection, committed, rolled back, flushed, closed.

A factory's sessions are made of a subclass of the class they would have been made of, which lives
as long as they do: so a session that is open while its factory is given back is still counted to
its end.
"""

from __future__ import annotations

import os
import secrets
import sys
from hashlib import sha256
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from opentelemetry import trace
from opentelemetry.context import get_current
from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.orm.exc import StaleDataError

from session_metrics_otel import catalog
from session_metrics_otel.binding import current_binding
from session_metrics_otel.catalog import SessionState
from session_metrics_otel.faults import caught
from session_metrics_otel.ledger import LEDGER
from session_metrics_otel.session_metrics import DatabaseSessionMetrics
from session_metrics_otel.tracing import SpanMirror, suppressed

from . import current
from .holders import holder_of, routes
from .places import place_of_caller
from .repeats import Repeats
from .statements import RECORD

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.trace import Span, Tracer
    from sqlalchemy import Connection, Dialect, Engine
    from sqlalchemy.orm import UOWTransaction

    from .statement_spans import StatementSpans

_ACTIVE = SessionState.ACTIVE
_CLOSED = SessionState.CLOSED
_CLOSING = SessionState.CLOSING
_COMMITTED = SessionState.COMMITTED
_CREATED = SessionState.CREATED
_NOT_WORKING = (_CREATED, _CLOSED)

ATTACHED = "_session_metrics"
"""Where a Session keeps its record."""

OWNER = "_session_metrics_owner"
"""Where a session that was adopted keeps the observer that counts it."""

OBSERVED = "_session_metrics_observed"
"""Where a session class keeps the subclass that its watched sessions are instances of."""

WATCH = "_session_metrics_watch"
"""Where a session class that is watched keeps its watch."""


def _new_prefix() -> None:
    """Give this process's session ids a beginning of their own, also after a fork."""
    global _prefix  # noqa: PLW0603
    _prefix = secrets.token_hex(6) + "-"


_prefix = ""
_new_prefix()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_prefix)
_serial = count(1)


class Observer:
    """Watches the sessions of one factory.

    Args:
        name: The factory's name.
        spans: ``span``, ``attributes`` or ``off``.
        user_id: ``plain``, ``hashed`` or None: how the user's id goes onto a span.
        tracer: Where spans come from.
        statements: What statements are traced with; None where they are not.
        repeated_statements: How often a session may send the same statement; None: not counted.
        holder_lines: Whether its engines' pools take note of the line that takes a connection.
        meet: Called with each engine the sessions are bound to, so that its statements are seen.

    Attributes:
        engines: The engines its sessions were seen to use.
        met: The last of them, or a connection to it: as a rule there is one.
        ended: Called after each session's end once the factory has been given back.
    """

    adopts = False

    def __init__(
        self,
        name: str,
        *,
        spans: str,
        user_id: str | None,
        tracer: Tracer,
        statements: StatementSpans | None,
        repeated_statements: int | None,
        holder_lines: bool,
        meet: Callable[[Observer, Any], object],
    ) -> None:
        self.name = name
        LEDGER.factory(name).seen = True
        self.engines: WeakSet[Engine] = WeakSet()
        self.ended: Callable[[Observer], None] | None = None
        self._spans = spans
        self._user_id = user_id
        self._tracer = tracer
        self.statements = statements
        self._repeated_statements = repeated_statements
        self.holder_lines = holder_lines
        self._meet = meet
        self.met: Any = None
        self._span_name = f"session {name}"

    def observed_class(self, kind: type[Session]) -> type[Session]:
        """The class that ``kind``'s sessions become instances of while they are watched."""
        # Kept on `kind`, so that it goes when that goes: some make a sessionmaker for each request.
        found: type[Session] | None = vars(kind).get(OBSERVED)
        if found is None or observer_of(found) is not self:
            found = _observed(kind, self)
            _listen(found)
            setattr(kind, OBSERVED, found)
        return found

    def born(self, session: Session) -> DatabaseSessionMetrics:
        """Give ``session`` a new record."""
        bound = current_binding.get()
        record = DatabaseSessionMetrics(
            f"{_prefix}{next(_serial):x}", bound.request_id, bound.user_id, factory=self.name
        )
        record.hooked(perf_counter(), bound.route, get_current())
        record.born_at = place_of_caller()
        if self._repeated_statements is not None:
            record.repeats = Repeats(self._repeated_statements)
        session.__dict__[ATTACHED] = record
        if observer_of(session) is not self:
            session.__dict__[OWNER] = self
        if current.followers:
            current.opened(record)
        return record

    def for_engine(self, dialect: Dialect) -> Observer | None:  # noqa: ARG002 - see Adopter
        """Who counts a session that uses the engine of ``dialect``."""
        return self

    def begin(self, session: Session) -> None:
        """Take note of a session that was made just now, and of its engine."""
        try:
            self.born(session)
            if session.bind is not self.met:
                self.meet(session.bind)
        except Exception as fault:  # noqa: BLE001 - never the session's trouble
            caught("sessions", fault)

    def meet(self, bind: Any) -> None:
        """Make sure that the engine behind ``bind`` is observed."""
        if bind is not None and bind is not self.met:
            self._meet(self, bind)
            self.met = bind

    def working(self, session: Session) -> DatabaseSessionMetrics:
        """The record of a session that is being used: a new one where the last was closed."""
        record: DatabaseSessionMetrics | None = session.__dict__.get(ATTACHED)
        if record is None or record.state is _CLOSED:
            record = self.born(session)
        # It may have asked for its connection before, and have its span since.
        if record.state is _CREATED and self._spans != "off" and record._mirror is None:
            record.mirror_on(self._start_mirror(record), self.statements)
        return record

    def _start_mirror(self, record: DatabaseSessionMetrics) -> SpanMirror | None:
        try:
            if suppressed(record.context):
                return None
            if self._spans == "attributes":
                span = trace.get_current_span(record.context)
            else:
                span = self._start_span(record)
            if not span.is_recording():
                return None
            if self._spans == "attributes":
                return SpanMirror(span, owned=False)
            inside = trace.set_span_in_context(span, record.context)
            return SpanMirror(span, owned=True, context=inside)
        except Exception as fault:  # noqa: BLE001 - a broken provider is not the session's trouble
            caught("tracing", fault)
            return None

    def _start_span(self, record: DatabaseSessionMetrics) -> Span:
        span = self._tracer.start_span(
            self._span_name,
            context=record.context,
            start_time=int(record.created_at.timestamp() * 1e9),
        )
        if self._user_id is not None and record.user_id:
            if self._user_id == "hashed":
                span.set_attribute("user.hash", sha256(record.user_id.encode()).hexdigest())
            else:
                span.set_attribute("user.id", record.user_id)
        return span


class Adopter(Observer):
    """Stands in for the observers of engines that were instrumented alone.

    It counts no session until that uses such an engine, and then leaves it to the engine's own
    observer.
    """

    adopts = True

    def __init__(  # an observer of no factory: it only stands in
        self, owner: Callable[[Dialect], Observer | None]
    ) -> None:
        self._owner = owner

    def for_engine(self, dialect: Dialect) -> Observer | None:
        """The observer of the engine of ``dialect``, or None where that is not instrumented."""
        return self._owner(dialect)


def _observed(kind: type[Any], observer: Observer) -> type[Any]:
    """A subclass of the session class ``kind`` that tells ``observer`` of what is done to it."""

    class ObservedSession(kind):  # type: ignore[misc]  # which class is known when it runs
        __slots__ = ()  # an instance's class can only be changed for one of the same layout
        _session_observer = observer

        def close(self) -> None:
            _end(self, super().close)

        if hasattr(kind, "reset"):  # SQLAlchemy has it from 2.0.22

            def reset(self) -> None:
                _end(self, super().reset)

        def invalidate(self) -> None:
            _end(self, super().invalidate)

    if kind.get_bind is not Session.get_bind:
        # It may choose an engine that nobody has seen yet, and that one may refuse.
        def get_bind(self: Any, *args: Any, **kwargs: Any) -> Engine | Connection:
            bind: Engine | Connection = super(ObservedSession, self).get_bind(*args, **kwargs)
            observer.meet(bind)
            return bind

        ObservedSession.get_bind = get_bind
    ObservedSession.__name__ = kind.__name__
    ObservedSession.__qualname__ = kind.__qualname__
    ObservedSession.__module__ = kind.__module__
    return ObservedSession


def observer_of(session: object) -> Observer | None:
    """Who watches ``session``, or None."""
    return getattr(session, "_session_observer", None)


def _end(session: Any, end: Callable[[], None]) -> None:
    record: DatabaseSessionMetrics | None = session.__dict__.get(ATTACHED)
    if record is None or record.state is _CLOSED:
        end()
        return
    try:
        record.move(_CLOSING)
    except Exception as fault:  # noqa: BLE001
        caught("sessions", fault)
    try:
        end()
    except BaseException as error:
        # It is not closed, and may hold its connection still.
        if record.state is _CLOSING:
            record.record_error(error)
        raise
    try:
        if record.transaction_began is not None:
            record.ended_transaction("closed")
        record.close_session()
        if record.route:
            route = routes.admit(record.route)
            LEDGER.tally(catalog.ROUTE_SESSIONS, record.factory, route).hit()
        observer: Observer = session.__dict__.get(OWNER) or session._session_observer
        if observer.ended is not None:
            observer.ended(observer)
    except Exception as fault:  # noqa: BLE001
        caught("sessions", fault)


def _after_begin(session: Any, _: SessionTransaction, connection: Connection) -> None:
    try:
        observer: Observer = session._session_observer
        if observer.adopts:
            owner = observer.for_engine(connection.dialect)
            if owner is None:
                return
            observer = owner
        if connection.engine is not observer.met:
            observer.meet(connection.engine)
        record = session.__dict__.get(ATTACHED)
        if record is None or record.state in _NOT_WORKING:
            record = observer.working(session)
        if record.transaction_began is None:
            record.transaction_began = record.statement_ended = perf_counter()
        holder = holder_of(connection)
        if holder is not None:
            holder.session = record
        record.move(_ACTIVE)
        connection.__dict__[RECORD] = record
    except Exception as fault:  # noqa: BLE001 - never the session's trouble
        caught("sessions", fault)


def _after_commit(session: Session) -> None:
    record: DatabaseSessionMetrics | None = session.__dict__.get(ATTACHED)
    # A savepoint's release is no commit, and a commit without a connection reached no database.
    if record is None or record.transaction_began is None or session.in_nested_transaction():
        return
    try:
        record.ended_transaction("committed")
        record.move(_COMMITTED)
    except Exception as fault:  # noqa: BLE001
        caught("sessions", fault)


def _after_rollback(session: Session) -> None:
    record: DatabaseSessionMetrics | None = session.__dict__.get(ATTACHED)
    if record is None:
        return
    try:
        # Only here is it known that a flush failed on a row count: no event tells of it.
        error = sys.exc_info()[1]
        if isinstance(error, StaleDataError) and session._flushing:
            record.lost_optimistic_lock(error)
        if record.transaction_began is not None and not session.in_nested_transaction():
            record.ended_transaction("rolled_back")
            record.move(SessionState.ROLLED_BACK)
    except Exception as fault:  # noqa: BLE001
        caught("sessions", fault)


def _after_flush(session: Session, _: UOWTransaction) -> None:
    record: DatabaseSessionMetrics | None = session.__dict__.get(ATTACHED)
    if record is None:
        return
    try:
        record.flushed(
            inserted=len(session.new),
            # What is dirty but has no net change is not written.
            updated=sum(
                session.is_modified(entity, include_collections=False) for entity in session.dirty
            ),
            deleted=len(session.deleted),
        )
    except Exception as fault:  # noqa: BLE001
        caught("sessions", fault)


def _listen(kind: type[Session]) -> None:
    event.listen(kind, "after_begin", _after_begin)
    event.listen(kind, "after_commit", _after_commit)
    event.listen(kind, "after_rollback", _after_rollback)
    event.listen(kind, "after_flush", _after_flush)


def connection_refused(dialect: Dialect, error: BaseException) -> DatabaseSessionMetrics | None:
    """Tell the session that asked for a connection, if one did, that there was none to be had.

    Returns:
        The session's record, or None where it was no session that asked.

    No event tells which session that was, but its transaction is on the stack; and looking there
    costs nothing until it happens.
    """
    record = asking_record(dialect)
    if record is not None:
        try:
            record.record_error(error)
        except Exception as fault:  # noqa: BLE001
            caught("sessions", fault)
    return record


def asking_record(dialect: Dialect) -> DatabaseSessionMetrics | None:
    """The record of the session that asks for a connection just now, where one does."""
    try:
        frame = sys._getframe(1)
        while frame is not None:
            asking = frame.f_locals.get("self")
            if isinstance(asking, SessionTransaction):
                observer = observer_of(asking.session)
                observer = observer and observer.for_engine(dialect)
                return None if observer is None else observer.working(asking.session)
            frame = frame.f_back  # type: ignore[assignment]
    except Exception as fault:  # noqa: BLE001
        caught("sessions", fault)
    return None


def attached_record(session: Session) -> DatabaseSessionMetrics | None:
    """The record that ``session`` carries, or None."""
    return session.__dict__.get(ATTACHED)


class _Watch:
    """A class whose ``__init__`` is ours while somebody watches what is made of it.

    The class stays where it is, as listeners are registered with it; it is the session made of it
    that becomes an instance of an observed subclass.
    """

    def __init__(self, kind: type[Session]) -> None:
        self.kind = kind
        self.own = kind.__dict__.get("__init__")
        self.observers: list[Observer] = []

    def install(self) -> None:
        original: Callable[..., None] = self.kind.__init__
        watch = self

        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            if (
                observer_of(self) is not None
            ):  # the watch on a class derived from this one came first
                original(self, *args, **kwargs)
                return
            observer = watch.chosen()
            self.__class__ = observer.observed_class(type(self))
            original(self, *args, **kwargs)
            if not observer.adopts:
                observer.begin(self)

        self.kind.__init__ = __init__  # type: ignore[method-assign]

    def chosen(self) -> Observer:
        """Whoever watches all the sessions comes before whoever only adopts some."""
        return min(self.observers, key=lambda observer: observer.adopts)

    def leave(self, observer: Observer) -> None:
        self.observers.remove(observer)
        if not self.observers:
            delattr(self.kind, WATCH)
            if OBSERVED in vars(self.kind):
                delattr(self.kind, OBSERVED)
            if self.own is None:
                del self.kind.__init__
            else:
                self.kind.__init__ = self.own  # type: ignore[method-assign]


def watch(kind: type[Session], observer: Observer) -> Callable[[], None]:
    """Have ``observer`` watch every session that is made of ``kind`` itself or of a subclass.

    Returns:
        A call that ends it, and puts ``kind`` back as it was where nobody else watches.
    """
    found: _Watch | None = vars(kind).get(WATCH)
    if found is None:
        found = _Watch(kind)
        setattr(kind, WATCH, found)
        found.install()
    found.observers.append(observer)
    return lambda: found.leave(observer)
