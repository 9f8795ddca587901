"""One request's session, from ``with`` or ``async with`` to its end."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .faults import caught
from .instrument import metrics_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session, SessionTransaction

logger = logging.getLogger("session_metrics_otel")

S = TypeVar("S", bound="Session | AsyncSession")


class RequestScope(Generic[S]):
    """One request's session. It is closed at the end whatever happens; nothing is committed."""

    def __init__(self, make: Callable[[], S], *, is_async: bool) -> None:
        self._make = make
        self._is_async = is_async
        self._session: Any = None

    def __enter__(self) -> S:
        """Make the session."""
        if self._is_async:
            raise TypeError("This factory makes AsyncSessions: use `async with`, not `with`.")
        return self._begin()

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        """Close the session."""
        _log_failure(self._session, error)
        self._session.close()

    async def __aenter__(self) -> S:
        """Make the session. Nothing is awaited: a task cannot be cancelled half-way."""
        if not self._is_async:
            raise TypeError("This factory makes Sessions: use `with`, not `async with`.")
        return self._begin()

    async def __aexit__(
        self, _kind: object, error: BaseException | None, _traceback: object
    ) -> None:
        """Close the session, even where the task is cancelled once more meanwhile."""
        _log_failure(self._session, error)
        await _close_for_certain(self._session)

    def _begin(self) -> S:
        if self._session is not None:
            raise RuntimeError("A request's session is begun once: ask the factory for another.")
        self._session = session = self._make()
        return session


async def _close_for_certain(session: AsyncSession) -> None:
    # Asked for now: closing forgets it first, and then rolls back.
    transaction = session.sync_session.get_transaction()
    closing = asyncio.ensure_future(session.close())
    cancelled: asyncio.CancelledError | None = None
    while not closing.done():
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError as again:  # noqa: PERF203 - one turn as a rule
            cancelled = again  # the closing goes on: wait for it, then let the task end
        except Exception:  # noqa: BLE001 - it is raised below
            break
    if closing.cancelled() or closing.exception() is not None:
        # It may hold its connection still, in an unknown state: throw that away.
        with suppress(Exception):
            await session.run_sync(lambda _: _throw_connections_away(transaction))
    if cancelled is not None:
        if not closing.cancelled():
            closing.exception()  # looked at, so that asyncio does not say nobody did
        raise cancelled
    closing.result()


def _throw_connections_away(transaction: SessionTransaction | None) -> None:
    # As SessionTransaction.close(invalidate=True) does: connections that the session was given by
    # its caller (autoclose is false) are the caller's own.
    connections = {} if transaction is None else transaction._connections
    for connection, _, _, autoclose in set(connections.values()):
        if autoclose:
            connection.invalidate()


def _log_failure(session: Any, error: BaseException | None) -> None:
    """Log what failed, with the six fields of its record. Never raises.

    That a task is cancelled, or the process asked to end, is no failure.
    """
    if not isinstance(error, Exception):
        return
    try:
        record = metrics_for(session)
        said = record.to_dict()
        context = {
            "session_id": record.session_id,
            "state": record.state.value,
            "created_at": str(said["created_at"]),
            "last_activity": str(said["last_activity_at"]),
            "operations_count": record.operations_count,
            "errors": record.errors,
        }
        logger.error(
            "A request-scoped session failed with %s: %s",
            type(error).__name__,
            ", ".join(f"{name}={value}" for name, value in context.items()),
            extra={"session_metrics": context},
        )
    except Exception as fault:  # noqa: BLE001 - the request's own error is what has to be seen
        caught("factory", fault)
