"""Sessions: given a connection or refused one, committed, rolled back, flushed, ended."""

from __future__ import annotations

import sys
from time import perf_counter
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.orm import SessionTransaction
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.orm.session import _sessions

from session_metrics_otel import catalog
from session_metrics_otel.catalog import SessionState
from session_metrics_otel.faults import caught
from session_metrics_otel.ledger import LEDGER
from session_metrics_otel.series import PENDING_LIMIT
from session_metrics_otel.weak import alive

from .holders import Holder, routes
from .observer import observer_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Dialect
    from sqlalchemy.orm import Session, UOWTransaction

    from .observed_record import ObservedSessionMetrics
    from .observer import Observer

_ACTIVE = SessionState.ACTIVE
_CLOSED = SessionState.CLOSED
_CLOSING = SessionState.CLOSING
_COMMITTED = SessionState.COMMITTED
_CREATED = SessionState.CREATED

# What follows runs for every session. A call of a Python function costs as much there as ten of
# the lines below, so the common way - a record with no span - is written out in each place: the
# same as its `move`, `observe` and `close_session` do, and tests hold the two to one another.


def ending(kind: Any, name: str) -> Callable[[Any], None]:  # noqa: C901 - see above
    """The method of an observed session that ends it as ``kind``'s own does."""

    def ended(self: Any) -> None:  # noqa: C901, PLR0912
        record: ObservedSessionMetrics | None = self._session_metrics
        if record is None or record._stage.state is _CLOSED:
            getattr(kind, name)(self)
            return
        try:
            stage = record._stage
            if record._mirror is not None:
                record.move(_CLOSING)
            elif stage.state is not _CLOSING:
                hit, record._stage = stage.moves[_CLOSING]
                hit()
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
            stage = record._stage
            if stage.state is _CLOSED:  # one way to end it has called another
                return
            if record.transaction_began is not None:
                record.ended_transaction("closed")
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


def _taken_before(holders: dict[Any, Holder], entry: Any, now: float) -> Holder:
    """The holder of a connection whose pool was not observed yet when it was taken."""
    holder = Holder()
    holder.since = now
    holder.place = None
    if entry is not None:  # else it has been detached
        holders[entry] = holder
    return holder


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
        record: ObservedSessionMetrics | None = session._session_metrics
        if record is None or record._stage.state is _CLOSED or record.context is not None:
            record = observer.working(session)
        # Once it is born: nobody takes the hooks off an engine while a session is live.
        if connection.engine is not observer.met:
            observer.meet(connection.engine)
        now = perf_counter()
        if record.transaction_began is None:
            record.transaction_began = record.statement_ended = now
        fairy = connection._dbapi_connection
        holders = getattr(fairy._pool, "holders", None)
        if holders is not None:
            holder = holders.get(fairy._connection_record)
            if holder is None:
                holder = _taken_before(holders, fairy._connection_record, now)
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
            if stage.state is not _CLOSING:  # a close() of the application's own may commit
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
            if record._stage.state is not _CLOSING:  # or roll back
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


def listen(kind: type[Session]) -> None:
    """Hear what the sessions of ``kind``, an observed class, do."""
    # First of all: the application's own listeners may send statements, or raise.
    event.listen(kind, "after_begin", _after_begin, insert=True)
    event.listen(kind, "after_commit", _after_commit, insert=True)
    event.listen(kind, "after_rollback", _after_rollback, insert=True)
    event.listen(kind, "after_flush", _after_flush, insert=True)


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
            # Only where it asks: its listeners, which it calls, may ask for others of their own.
            asks = frame.f_code.co_name == "_connection_for_bind"
            asking = frame.f_locals.get("self") if asks else None
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
    return getattr(session, "_session_metrics", None)


def any_open(observer: Observer) -> bool:
    """Whether ``observer`` counts a session that is open."""
    # SQLAlchemy's own register: of a factory's name there may be others, and records kept by hand.
    for session in alive(_sessions.valuerefs()):
        record = attached_record(session)
        if record is not None and record._stage.state is not _CLOSED:
            watched: Any = session
            if (watched._session_metrics_owner or watched._session_observer) is observer:
                return True
    return False
