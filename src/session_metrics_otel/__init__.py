"""Prometheus and OpenTelemetry instrumentation for SQLAlchemy sessions."""

from __future__ import annotations

from . import prometheus
from .binding import bind
from .instrument import instrument, metrics_for, uninstrument
from .session_metrics import (
    BaseSessionMetrics,
    DatabaseMetrics,
    DatabaseSessionMetrics,
    SessionMetrics,
    SessionState,
    create_database_session_metrics,
)

__all__ = [
    "BaseSessionMetrics",
    "DatabaseMetrics",
    "DatabaseSessionMetrics",
    "SessionMetrics",
    "SessionState",
    "bind",
    "create_database_session_metrics",
    "instrument",
    "metrics_for",
    "uninstrument",
]

prometheus.register()
