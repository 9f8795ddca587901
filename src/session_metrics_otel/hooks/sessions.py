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
from weakref import WeakSet, ref

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
from session_metrics_otel.series import PENDING_LIMIT
from session_metrics_otel.tracing import SpanMirror, suppressed

from . import current
from .holders import routes
from .observed_record import ObservedSessionMetrics
from .places import place_of_birth
from .repeats import Repeats

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer
    from sqlalchemy import Connection, Dialect, Engine
    from sqlalchemy.orm import UOWTransaction

    from .statement_spans import StatementSpans

_ACTIVE = SessionState.ACTIVE
_CLOSED = SessionState.CLOSED
_CLOSING = SessionState.CLOSING
_COMMITTED = SessionState.COMMITTED
_CREATED = SessionState.CREATED

ATTACHED = "_session_metrics"
"""Where a Session keeps its record."""

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
_new: Callable[[type[ObservedSessionMetrics]], Any] = object.__new__


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
        own_provider: Whether the tracer is of a provider that was given for it.
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
        own_provider: bool,
        statements: StatementSpans | None,
        repeated_statements: int | None,
        holder_lines: bool,
        meet: Callable[[Observer, Any], object],
    ) -> None:
        self.name = name
        factory = LEDGER.factory(name)
        factory.seen = True
        self._birth = factory.created
        self.engines: WeakSet[Engine] = WeakSet()
        self.ended: Callable[[Observer], None] | None = None
        self._traces = spans != "off"
        self._own_spans = spans == "span"
        self._user_id = user_id
        self._tracer = tracer
        self._own_provider = own_provider or None
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

    def born(self, session: Any) -> ObservedSessionMetrics:
        """Give ``session`` a new record."""
        record: ObservedSessionMetrics = _new(ObservedSessionMetrics)
        record.session_id = f"{_prefix}{next(_serial):x}"
        bound = current_binding.get()
        record.request_id = bound.request_id
        record.user_id = bound.user_id
        record.route = bound.route
        record._started = record.sent_at = perf_counter()
        record._queries = record._transactions = record._errors = 0
        record.total_time_ms = 0.0
        record.last_error = record.last_statement = record.repeats = record._dates = None
        record._mirror = record.context = record.statement_spans = record._created_ns = None
        record.transaction_began = record.statement_ended = None
        record.born_at = place_of_birth()
        record._stage = stage = self._birth
        live = stage.live
        live[id(record)] = ref(record)
        if len(live) > stage.factory.peak:
            stage.factory.raise_peak(len(live))
        # There is no public way to ask whether a provider was set; where this one is gone, it may.
        if self._traces and (
            self._own_provider or getattr(trace, "_TRACER_PROVIDER", self) is not None
        ):
            record.context = get_current()
        if self._repeated_statements is not None:
            record.repeats = Repeats(self._repeated_statements)
        session._session_metrics = record
        if session._session_observer is not self:
            session._session_metrics_owner = self
        if current.followers:
            current.opened(record)
        return record

    def for_engine(self, dialect: Dialect) -> Observer | None:  # noqa: ARG002 - see Adopter
        """Who counts a session that uses the engine of ``dialect``."""
        return self

    def meet(self, bind: Any) -> None:
        """Make sure that the engine behind ``bind`` is observed."""
        if bind is not None and bind is not self.met:
            self._meet(self, bind)
            self.met = bind

    def working(self, session: Any) -> ObservedSessionMetrics:
        """The record of a session that is being used: a new one where the last was closed."""
        record: ObservedSessionMetrics | None = session._session_metrics
        if record is None or record._stage.state is _CLOSED:
            record = self.born(session)
        # It may have asked for its connection before, and have its span since.
        if record.context is not None and record._stage.state is _CREATED and not record._mirror:
            record.mirror_on(self._start_mirror(record, record.context), self.statements)
        return record

    def _start_mirror(self, record: ObservedSessionMetrics, context: Context) -> SpanMirror | None:
        try:
            if suppressed(context):
                return None
            own = self._own_spans
            span = self._start_span(record) if own else trace.get_current_span(context)
            if not span.is_recording():
                return None
            if not own:
                return SpanMirror(span, owned=False)
            inside = trace.set_span_in_context(span, context)
            return SpanMirror(span, owned=True, context=inside)
        except Exception as fault:  # noqa: BLE001 - a broken provider is not the session's trouble
            caught("tracing", fault)
            return None

    def _start_span(self, record: ObservedSessionMetrics) -> Span:
        span = self._tracer.start_span(
            self._span_name,
            context=record.context,
            start_time=record.created_ns(),
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
        # Attributes, never keys of `__dict__`: who asks a session for that makes a dictionary of
        # what Python keeps in a faster form, and SQLAlchemy's own work on it becomes slower.
        _session_observer = observer
        _session_metrics: ObservedSessionMetrics | None = None
        _session_metrics_owner: Observer | None = None
        """Of a session that was adopted: the observer that counts it."""

        close = _ending(kind, "close")
        invalidate = _ending(kind, "invalidate")
        if hasattr(kind, "reset"):  # SQLAlchemy has it from 2.0.22
            reset = _ending(kind, "reset")

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


# What follows runs for every session. A call of a Python function costs as much there as ten of
# the lines below, so the common way - a record with no span - is written out in each place: the
# same as its `move`, `observe` and `close_session` do, and tests hold the two to one another.


def _ending(kind: type[Any], name: str) -> Callable[[Any], None]:  # noqa: C901 - see above
    """The method of an observed session that ends it as ``kind``'s own does."""

    def ended(self: Any) -> None:  # noqa: C901, PLR0912
        record: ObservedSessionMetrics | None = self._session_metrics
        if record is None or record._stage.state is _CLOSED:
            getattr(kind, name)(self)
            return
        try:
            if record._mirror is None:
                hit, record._stage = record._stage.moves[_CLOSING]
                hit()
            else:
                record.move(_CLOSING)
        except Exception as fault:  # noqa: BLE001
            caught("sessions", fault)
        try:
            getattr(kind, name)(self)
        except BaseException as error:
            # It is not closed, and may hold its connection still.
            if record.state is _CLOSING:
                record.record_error(error)
            raise
        try:
            if record.transaction_began is not None:
                record.ended_transaction("closed")
            stage = record._stage
            if record._mirror is None and stage.state is _CLOSING:
                seconds = perf_counter() - record._started
                record.total_time_ms = seconds * 1000
                factory = stage.factory
                factory.duration.add(seconds)
                factory.queries_per_session.add(record._queries)
                if len(factory.duration.pending) > PENDING_LIMIT:
                    factory.fold()
                hit, record._stage = stage.moves[_CLOSED]
                hit()
                stage.live.pop(id(record), None)
            else:
                record.close_session()
            if record.route:
                route = routes.admit(record.route)
                LEDGER.tally(catalog.ROUTE_SESSIONS, record.factory, route).hit()
            observer = self._session_metrics_owner or self._session_observer
            if observer.ended is not None:
                observer.ended(observer)
        except Exception as fault:  # noqa: BLE001
            caught("sessions", fault)

    ended.__name__ = name
    return ended


def _after_begin(  # noqa: C901
    session: Any, _: SessionTransaction, connection: Any
) -> None:
    try:
        observer: Observer = session._session_observer
        if observer.adopts:
            owner = observer.for_engine(connection.dialect)
            if owner is None:
                return
            observer = owner
        if connection.engine is not observer.met:
            observer.meet(connection.engine)
        record: ObservedSessionMetrics | None = session._session_metrics
        if record is None or record._stage.state is _CLOSED or record.context is not None:
            record = observer.working(session)
        now = perf_counter()
        if record.transaction_began is None:
            record.transaction_began = record.statement_ended = now
        fairy = connection._dbapi_connection
        holders = getattr(fairy._pool, "holders", None)
        if holders is not None:
            holder = holders.get(fairy._connection_record)
            if holder is not None:
                holder.session = record
        stage = record._stage
        if record._mirror is not None:
            record.move(_ACTIVE)
        elif stage.state is not _ACTIVE:
            hit, record._stage = stage.moves[_ACTIVE]
            hit()
            if stage.state is _CREATED:
                stage.factory.creation_duration.add(now - record._started)
        connection._session_metrics_record = record
    except Exception as fault:  # noqa: BLE001 - never the session's trouble
        caught("sessions", fault)


def _after_commit(session: Any) -> None:
    record: ObservedSessionMetrics | None = session._session_metrics
    # A savepoint's release is no commit, and a commit without a connection reached no database.
    if (
        record is None
        or record.transaction_began is None
        or session._nested_transaction is not None
    ):
        return
    try:
        stage = record._stage
        if record._mirror is None and stage.state is _ACTIVE:
            hit, duration = stage.factory.transaction_ends["committed"]
            hit()
            duration.add(perf_counter() - record.transaction_began)
            if len(duration.pending) > PENDING_LIMIT:
                duration.fold_if_free()
            record.transaction_began = None
            record._transactions += 1
            hit, record._stage = stage.moves[_COMMITTED]
            hit()
        else:
            record.ended_transaction("committed")
            record.move(_COMMITTED)
    except Exception as fault:  # noqa: BLE001
        caught("sessions", fault)


def _after_rollback(session: Any) -> None:
    record: ObservedSessionMetrics | None = session._session_metrics
    if record is None:
        return
    try:
        # Only here is it known that a flush failed on a row count: no event tells of it.
        error = sys.exc_info()[1]
        if isinstance(error, StaleDataError) and session._flushing:
            record.lost_optimistic_lock(error)
        if record.transaction_began is not None and session._nested_transaction is None:
            record.ended_transaction("rolled_back")
            record.move(SessionState.ROLLED_BACK)
    except Exception as fault:  # noqa: BLE001
        caught("sessions", fault)


def _after_flush(session: Any, _: UOWTransaction) -> None:
    record: ObservedSessionMetrics | None = session._session_metrics
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


def connection_refused(dialect: Dialect, error: BaseException) -> ObservedSessionMetrics | None:
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


def asking_record(dialect: Dialect) -> ObservedSessionMetrics | None:
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


def attached_record(session: Session) -> ObservedSessionMetrics | None:
    """The record that ``session`` carries, or None."""
    return getattr(session, ATTACHED, None)


class _Watch:
    """A class whose ``__init__`` is ours while somebody watches what is made of it.

    The class stays where it is, as listeners are registered with it; it is the session made of it
    that becomes an instance of an observed subclass.
    """

    def __init__(self, kind: type[Session]) -> None:
        self.kind = kind
        self.own = kind.__dict__.get("__init__")
        self._observers: list[Observer] = []
        self.observer: Observer
        self.observed: type[Session]

    def install(self) -> None:
        original: Callable[..., None] = self.kind.__init__
        kind = self.kind
        watch = self

        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            observer = watch.observer
            if self.__class__ is kind:
                self.__class__ = watch.observed
            elif observer_of(self) is None:
                self.__class__ = observer.observed_class(type(self))
            else:  # the watch on a class derived from this one came first
                original(self, *args, **kwargs)
                return
            original(self, *args, **kwargs)
            if observer.adopts:
                return
            try:
                observer.born(self)
                if self.bind is not observer.met:
                    observer.meet(self.bind)
            except Exception as fault:  # noqa: BLE001 - never the session's trouble
                caught("sessions", fault)

        self.kind.__init__ = __init__  # type: ignore[method-assign]

    def join(self, observer: Observer) -> None:
        self._observers.append(observer)
        self._choose()

    def _choose(self) -> None:
        """Whoever watches all the sessions comes before whoever only adopts some."""
        self.observer = min(self._observers, key=lambda observer: observer.adopts)
        self.observed = self.observer.observed_class(self.kind)

    def leave(self, observer: Observer) -> None:
        self._observers.remove(observer)
        if self._observers:
            self._choose()
            return
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
        found.join(observer)
        found.install()
    else:
        found.join(observer)
    return lambda: found.leave(observer)
