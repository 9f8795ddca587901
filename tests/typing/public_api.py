"""What must type-check as a user writes it. Read by mypy, never run."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from typing_extensions import assert_type

from session_metrics_otel import (
    DatabaseSessionMetrics,
    SessionMetrics,
    SessionState,
    SystemSessionMetrics,
    bind,
    create_database_session_metrics,
    create_system_session_metrics,
    instrument,
    metrics_for,
    uninstrument,
)

engine = create_engine("sqlite://")
maker = sessionmaker(engine)
async_maker = async_sessionmaker(create_async_engine("sqlite+aiosqlite://"))


class Mine(Session):
    """A session class of an application."""


class MineToo(AsyncSession):
    """An asynchronous one."""


instrument(maker, name="orders", spans="attributes", user_id="hashed")
instrument(async_maker)
instrument(scoped_session(maker))
instrument(engine)
instrument(create_async_engine("sqlite+aiosqlite://"))
instrument(Mine)
instrument(MineToo)
uninstrument(maker)

instrument(42)  # type: ignore[arg-type]
instrument(maker, spans="loud")  # type: ignore[arg-type]

with bind(request_id="r", route="/orders/{id}"), maker() as session:
    assert_type(metrics_for(session), DatabaseSessionMetrics)

metrics = SessionMetrics("s", "r", "u", factory="orders")
assert_type(metrics.state, SessionState)
assert_type(metrics.query_count, int)
assert_type(metrics.last_activity, datetime)
assert_type(metrics.closed_at, datetime | None)
assert_type(metrics.to_dict(), dict[str, Any])
metrics.query_count += 1
metrics.state = SessionState.ACTIVE
metrics.increment_transaction_count(outcome="committed")
assert_type(create_database_session_metrics("s"), DatabaseSessionMetrics)
assert_type(create_system_session_metrics(), SystemSessionMetrics)
