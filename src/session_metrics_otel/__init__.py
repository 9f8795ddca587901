"""Prometheus and OpenTelemetry instrumentation for SQLAlchemy sessions."""

from __future__ import annotations

from . import prometheus
from .binding import bind
from .hooks.holders import exhaustion_reports
from .instrument import instrument, metrics_for, uninstrument
from .session_metrics import (
    BaseSessionMetrics,
    ConnectionPoolMetrics,
    DatabaseMetrics,
    DatabaseSessionMetrics,
    SessionMetrics,
    SessionState,
    SystemMetrics,
    SystemSessionMetrics,
    create_database_session_metrics,
    create_system_session_metrics,
)

__all__ = [
    "BaseSessionMetrics",
    "ConnectionPoolMetrics",
    "DatabaseMetrics",
    "DatabaseSessionMetrics",
    "SessionMetrics",
    "SessionState",
    "SystemMetrics",
    "SystemSessionMetrics",
    "bind",
    "create_database_session_metrics",
    "create_system_session_metrics",
    "exhaustion_reports",
    "instrument",
    "metrics_for",
    "uninstrument",
]

prometheus.register()
