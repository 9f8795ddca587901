"""What each of SQLAlchemy's pool classes knows of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.pool import (
    AssertionPool,
    NullPool,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
)

from session_metrics_otel import catalog

if TYPE_CHECKING:
    from session_metrics_otel.catalog import Metric


def limits(pool: Any) -> dict[Metric, float]:
    """What the pool's class says of itself; what it cannot know is absent."""
    if isinstance(pool, QueuePool):
        size = pool.size()
        found: dict[Metric, float] = {catalog.CONNECTION_IDLE_MIN: 0}
        if size:  # 0 is no limit
            found[catalog.CONNECTION_IDLE_MAX] = size
            if pool._max_overflow > -1:
                found[catalog.CONNECTION_MAX] = size + pool._max_overflow
        return found
    if isinstance(pool, NullPool):
        return {catalog.CONNECTION_IDLE_MAX: 0, catalog.CONNECTION_IDLE_MIN: 0}
    if isinstance(pool, (StaticPool, AssertionPool)):
        return {catalog.CONNECTION_MAX: 1, catalog.CONNECTION_IDLE_MAX: 1}
    if isinstance(pool, SingletonThreadPool):
        return {catalog.CONNECTION_IDLE_MAX: pool.size}
    return {}


def _connected(pool: QueuePool) -> int:
    """How many of the entries in the pool have a connection.

    An entry outlives a connection that was invalidated or detached, and has another opened when it
    is wanted: ``checkedin()`` counts it all the same.
    """
    queue: Any = pool._pool
    if hasattr(queue, "queue"):
        entries = queue.queue
    else:  # asyncio's has another one inside, which it makes when it is asked for it
        inside = vars(queue).get("_queue")
        entries = [] if inside is None else inside._queue
    # A deque; where asyncio's is last in, first out, a list.
    return sum(entry.dbapi_connection is not None for entry in entries.copy())


def idle_connections(pool: Any, used: int) -> float | None:
    """How many connections are open in ``pool`` besides those ``used``; None: it cannot know."""
    if isinstance(pool, QueuePool):
        return _connected(pool)
    if isinstance(pool, NullPool):
        return 0
    if isinstance(pool, (StaticPool, AssertionPool)):
        # Looked up, as StaticPool's `connection` opens one where there is none.
        entry = vars(pool).get("connection" if isinstance(pool, StaticPool) else "_conn")
        opened = entry is not None and entry.dbapi_connection is not None
        return max(int(opened) - used, 0)
    return None
