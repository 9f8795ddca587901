"""Sessions for one request each: tagged, isolated by user, and closed whatever happens."""

from __future__ import annotations

import threading
from contextlib import suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload
from uuid import uuid4

from sqlalchemy import Engine
from sqlalchemy.orm import sessionmaker

from . import catalog
from .application_sessions import ConnectionPoolMetrics
from .binding import bind, current_binding
from .catalog import SessionState
from .hooks.holders import exhaustion_reports
from .instrument import asyncio_class, factory_name_of, instrument, metrics_for, uninstrument
from .ledger import LEDGER
from .request_scope import RequestScope
from .series import Distribution
from .watchdog import leak_reports
from .weak import alive

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
    from sqlalchemy.orm import Session

    from .session_metrics import DatabaseSessionMetrics

S = TypeVar("S", bound="Session | AsyncSession")

POOL_TIMEOUT = "TimeoutError"
"""The ``error.type`` of a session that waited for a connection of a pool in vain."""


class RequestScopedSessionFactory(Generic[S]):
    """Makes sessions that belong to one request of one user.

    The same calls work for threads and for asyncio: what the factory is made from decides which.
    Every figure it gives is read from the ledger, as ``/metrics`` is.

    Args:
        target: A ``sessionmaker`` or ``Engine``, or an ``async_sessionmaker`` or ``AsyncEngine``.
            A sessionmaker that is not yet instrumented will be.
        name: The group its series are counted under (the attribute ``factory``). A sessionmaker
            that is instrumented already keeps its own.

    Attributes:
        name: The group its series are counted under.
        target: What it was made from.
        is_async: Whether its sessions are for asyncio.

    Raises:
        TypeError: ``target`` is none of these.
    """

    @overload
    def __init__(
        self: RequestScopedSessionFactory[Session],
        target: sessionmaker[Session] | Engine,
        *,
        name: str = ...,
    ) -> None: ...

    @overload
    def __init__(
        self: RequestScopedSessionFactory[AsyncSession],
        target: async_sessionmaker[AsyncSession] | AsyncEngine,
        *,
        name: str = ...,
    ) -> None: ...

    def __init__(self, target: Any, *, name: str = "request_scoped") -> None:
        self.target = target
        self._maker = _maker_of(target)
        self.is_async = not isinstance(self._maker, sessionmaker)
        known = factory_name_of(self._maker)
        self._instruments = known is None
        if self._instruments:
            instrument(self._maker, name=name)
        self.name = name if known is None else known
        self._closed = False

    def get_request_scoped_session(
        self, user_id: str, request_id: str | None = None, thread_id: str | None = None
    ) -> RequestScope[S]:
        """A session for one request, as a context manager: ``with``, or ``async with``.

        It commits nothing by itself, and is closed at the end whatever happens, also when the task
        is cancelled. In its ``info`` are ``user_id``, ``request_id``, ``thread_id``,
        ``session_id``, ``created_at`` (UTC, ISO 8601), ``is_request_scoped``, ``factory_managed``.

        Args:
            user_id: Whose request it is.
            request_id: The request's id; where None, the one that is bound, or a new one.
            thread_id: The id of the conversation it belongs to, where there is one.

        Raises:
            ValueError: ``user_id`` is empty.
            RuntimeError: The factory is closed.
        """
        if not user_id:
            message = f"user_id={user_id!r}: a request-scoped session belongs to a user."
            raise ValueError(message)
        if self._closed:
            message = f"The session factory {self.name!r} is closed: make another."
            raise RuntimeError(message)
        return RequestScope(
            lambda: self._new_session(str(user_id), request_id, thread_id), is_async=self.is_async
        )

    def _new_session(self, user_id: str, request_id: str | None, thread_id: str | None) -> S:
        request_id = request_id or current_binding.get().request_id or uuid4().hex
        with bind(request_id=request_id, user_id=user_id):
            session: S = self._maker()
        record = _record_of(session)
        session.info.update(
            user_id=user_id,
            request_id=request_id,
            thread_id=thread_id,
            # The record's is unique by its making; a time or a user's id would not be.
            session_id=uuid4().hex if record is None else record.session_id,
            created_at=datetime.now(timezone.utc).isoformat(),
            is_request_scoped=True,
            factory_managed=True,
        )
        return session

    def validate_session_isolation(self, session: Any, user_id: str) -> None:
        """Make sure that ``session`` is of a factory like this one, and of this user.

        Raises:
            ValueError: It is not; the message says what was expected and what was found.
        """
        validate_session_isolation(session, user_id)

    def get_pool_metrics(self) -> ConnectionPoolMetrics:
        """What ``/metrics`` says of this factory now, as one record."""
        snapshot: Any = LEDGER.snapshot()
        mine: Any = {
            metric: {
                labels[1:]: value for labels, value in series.items() if labels[0] == self.name
            }
            for metric, series in snapshot.items()
        }
        closed = 0.0
        for (origin, target), count in mine[catalog.SESSION_TRANSITIONS].items():
            ended, began_again = target == SessionState.CLOSED, origin == SessionState.CLOSED
            closed += (ended - began_again) * count
        active = sum(mine[catalog.SESSIONS].values())
        pool_name = self._pool_name()
        if pool_name is None:  # sessions that choose their engine: what they met themselves
            timeouts = mine[catalog.SESSION_ERRORS].get((POOL_TIMEOUT,), 0)
        else:
            timeouts = snapshot[catalog.CONNECTION_TIMEOUTS].get((pool_name,), 0)
        return ConnectionPoolMetrics(
            active_sessions=int(active),
            total_sessions_created=int(active + closed),
            sessions_closed=int(closed),
            pool_exhaustion_events=int(timeouts),
            leaked_sessions=int(sum(mine[catalog.SESSION_LEAKS].values())),
            avg_session_lifetime_ms=_mean(mine[catalog.SESSION_DURATION].get(())) * 1000,
            peak_concurrent_sessions=int(mine[catalog.SESSION_PEAK].get((), 0)),
            last_pool_exhaustion=max(
                (
                    datetime.fromisoformat(report["last_at"])
                    for report in exhaustion_reports()
                    if report["pool"] == pool_name
                ),
                default=None,
            ),
            last_leak_detection=max(
                (
                    datetime.fromtimestamp(report.noticed_at, timezone.utc)
                    for report in leak_reports()
                    if report.factory == self.name
                ),
                default=None,
            ),
        )

    def get_session_metrics(self) -> dict[str, DatabaseSessionMetrics]:
        """The records of the sessions open now, by session id."""
        references = list(LEDGER.factory(self.name).live.values())
        return {record.session_id: record for record in alive(references)}

    def health_check(self) -> dict[str, Any]:
        """How the factory fares, ready for JSON.

        Returns:
            ``status``: ``healthy``; ``degraded`` where sessions have leaked or the pool was
            exhausted since the start; ``closed``. ``factory_metrics``: counts since the start.
            ``pool_status``: the pool's connections now.
        """
        figures = self.get_pool_metrics()
        trouble = figures.leaked_sessions or figures.pool_exhaustion_events
        return {
            "status": "closed" if self._closed else "degraded" if trouble else "healthy",
            "factory_metrics": {
                "active_sessions": figures.active_sessions,
                "total_created": figures.total_sessions_created,
                "total_closed": figures.sessions_closed,
                "leaked_sessions": figures.leaked_sessions,
                "pool_exhaustion_events": figures.pool_exhaustion_events,
                "peak_concurrent": figures.peak_concurrent_sessions,
                "avg_lifetime_ms": figures.avg_session_lifetime_ms,
            },
            "pool_status": self._pool_status(),
        }

    def _engine(self) -> Any:
        """The one engine of its sessions, or None: they choose among several."""
        bind_ = self._maker.kw.get("bind")
        return getattr(bind_, "sync_engine", bind_)

    def _pool_name(self) -> str | None:
        meter = getattr(getattr(self._engine(), "pool", None), "observed_meter", None)
        return None if meter is None else meter.name

    def _pool_status(self) -> dict[str, Any]:
        engine = self._engine()
        if engine is None:
            return {"kind": None}  # sessions that choose their engine have many pools
        status: dict[str, Any] = {"kind": type(engine.pool).__name__}
        for figure in ("size", "checkedout", "checkedin", "overflow"):
            read = getattr(engine.pool, figure, None)  # not every pool knows each of them
            if callable(read):
                status[figure] = read()
        return status

    def close(self) -> None:
        """Make no more sessions. Those that are open go on to their end; the engine is yours."""
        if not self._closed:
            self._closed = True
            if self._instruments:
                uninstrument(self._maker)


def _record_of(session: Any) -> DatabaseSessionMetrics | None:
    with suppress(LookupError):
        return metrics_for(session)
    return None


def _mean(value: object) -> float:
    if not isinstance(value, Distribution) or not sum(value.counts):
        return 0.0
    return value.sum / sum(value.counts)


def _maker_of(target: Any) -> Any:
    if isinstance(target, Engine):
        return sessionmaker(target)
    if isinstance(target, asyncio_class("AsyncEngine")):
        from sqlalchemy.ext.asyncio import async_sessionmaker

        # An attribute that has expired cannot be loaded again without an await.
        return async_sessionmaker(target, expire_on_commit=False)
    if isinstance(target, (sessionmaker, asyncio_class("async_sessionmaker"))):
        return target
    message = (
        f"RequestScopedSessionFactory takes a sessionmaker, async_sessionmaker, Engine or "
        f"AsyncEngine, not {target!r}."
    )
    raise TypeError(message)


def validate_session_isolation(session: Any, user_id: str) -> None:
    """Make sure that ``session`` came from a request-scoped factory, for this user.

    Raises:
        ValueError: It did not; the message says what was expected and what was found.
    """
    for key, expected, trouble in (
        ("is_request_scoped", True, "Session is not marked as request-scoped"),
        ("factory_managed", True, "Session is not managed by RequestScopedSessionFactory"),
        ("user_id", str(user_id), "Session isolation violated"),
    ):
        found = session.info.get(key)
        # By the type as well: 1 equals True.
        if type(found) is not type(expected) or found != expected:
            message = f"{trouble}: expected {key}={expected!r} in its info, found {found!r}."
            raise ValueError(message)


_lock = threading.Lock()
_default: RequestScopedSessionFactory[Any] | None = None


def get_session_factory(
    target: Any = None, *, name: str = "request_scoped"
) -> RequestScopedSessionFactory[Any]:
    """The application's one factory, made from ``target`` when it is first asked for.

    Args:
        target: As ``RequestScopedSessionFactory`` takes it; left out once the factory is there.
        name: The group its series are counted under.

    Raises:
        RuntimeError: There is none yet, and no ``target`` to make it from; or there is one.
    """
    global _default  # noqa: PLW0603
    with _lock:
        if _default is None:
            if target is None:
                raise RuntimeError(
                    "There is no session factory yet: call get_session_factory(sessionmaker) once, "
                    "where the application starts."
                )
            _default = RequestScopedSessionFactory(target, name=name)
        elif target is not None and _default.target is not target:
            raise RuntimeError(
                "There is a session factory already: leave the target out, or call "
                "shutdown_session_factory() first."
            )
        return _default


def get_isolated_session(
    user_id: str, request_id: str | None = None, thread_id: str | None = None
) -> RequestScope[Any]:
    """A request's session from the application's one factory."""
    return get_session_factory().get_request_scoped_session(user_id, request_id, thread_id)


def get_factory_health() -> dict[str, Any]:
    """``health_check()`` of the application's one factory; where there is none, that status."""
    factory = _default
    return {"status": "not_initialized"} if factory is None else factory.health_check()


def shutdown_session_factory() -> None:
    """Close the application's one factory; the next ``get_session_factory`` makes another."""
    global _default  # noqa: PLW0603
    with _lock:
        if _default is not None:
            _default.close()
            _default = None
