"""Records that an application or a session factory keeps of many sessions at once."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from . import catalog
from .base import BaseSessionMetrics, plain
from .catalog import DEFAULT_FACTORY, OTHER
from .faults import guarded
from .ledger import LEDGER
from .series import Bounded
from .weak import alive

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .catalog import Metric
    from .series import Labels

SECONDS_PER_MINUTE = 60
BYTES_PER_MB = 1024 * 1024

MAX_NAMES = 200
"""Different names that have series of their own; the rest is ``_OTHER``."""

_names = Bounded(MAX_NAMES, OTHER)

# An application has one record, and all its threads count with it. Reentrant, as a method assigns.
_lock = threading.RLock()


def _renew_lock() -> None:
    """In a child after ``fork``: a thread that did not come along may have held it."""
    global _lock  # noqa: PLW0603
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_renew_lock)

_COUNTED = {
    "total_sessions": catalog.APPLICATION_SESSION_CREATED,
    "sessions_reused_today": catalog.APPLICATION_SESSION_REUSED,
    "expired_sessions_cleaned": catalog.APPLICATION_SESSION_EXPIRED,
}


def _today() -> str:
    return datetime.now(timezone.utc).date().isoformat()


@dataclass(kw_only=True)
class SystemSessionMetrics(BaseSessionMetrics):
    """What an application knows about its own user sessions, mirrored as ``application.*``.

    A rise of ``total_sessions``, ``sessions_reused_today`` or ``expired_sessions_cleaned``, by
    method or by assignment, is counted. The rest are gauges, read when somebody scrapes; records
    of one name add up, and a record that is gone is out of them. A copy is not mirrored.

    Its methods are exact under threads; ``total_sessions += 1`` reads and assigns, and is not.

    Attributes:
        name: The group that its series are shown under (the attribute ``name``).
        total_sessions: User sessions created.
        active_sessions: User sessions active now.
        expired_sessions_cleaned: User sessions that expired and were cleaned up.
        sessions_created_today: Created since midnight (UTC).
        sessions_reused_today: Reused since midnight (UTC).
        average_session_duration_minutes: Mean duration of a user session, in minutes.
        memory_usage_mb: Memory that user sessions take, in MiB.
    """

    name: str = DEFAULT_FACTORY
    total_sessions: int = 0
    active_sessions: int = 0
    expired_sessions_cleaned: int = 0
    sessions_created_today: int = 0
    sessions_reused_today: int = 0
    average_session_duration_minutes: float = 0.0
    memory_usage_mb: float = 0.0
    _day: str = field(default_factory=_today, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Mirror from here on: what the constructor was given was counted by whoever gives it."""
        super().__post_init__()
        _mirrored_records[id(self)] = self
        for metric in _COUNTED.values():
            LEDGER.tally(metric, _names.admit(self.name))

    def __setattr__(self, name: str, value: Any) -> None:
        """Count what a counted field rises by."""
        metric = _COUNTED.get(name)
        with _lock:
            if metric is not None and id(self) in _mirrored_records:
                LEDGER.tally(metric, _names.admit(self.name)).add(value - getattr(self, name))
            super().__setattr__(name, value)

    def record_error(self, error: BaseException | str) -> None:
        """Count ``error`` and keep its text."""
        with _lock:
            super().record_error(error)

    def increment_total_sessions(self) -> None:
        """Count a user session created, today's as well."""
        with _lock:
            self._turn_day()
            self.total_sessions += 1
            self.sessions_created_today += 1
        self.mark_activity()

    def increment_active_sessions(self) -> None:
        """Say that one more user session is active."""
        with _lock:
            self.active_sessions += 1
        self.mark_activity()

    def decrement_active_sessions(self) -> None:
        """Say that one user session less is active; never below 0."""
        with _lock:
            self.active_sessions = max(self.active_sessions - 1, 0)
        self.mark_activity()

    def record_session_cleanup(self, n: int = 1) -> None:
        """Count ``n`` expired user sessions cleaned up."""
        with _lock:
            self.expired_sessions_cleaned += n
        self.mark_activity()

    def record_session_reuse(self) -> None:
        """Count a user session found again."""
        with _lock:
            self._turn_day()
            self.sessions_reused_today += 1
        self.mark_activity()

    def update_memory_usage(self, mb: float) -> None:
        """Say how much memory user sessions take, in MiB."""
        self.memory_usage_mb = mb

    def update_average_duration(self, minutes: float) -> None:
        """Say how long a user session lasts in the mean, in minutes."""
        self.average_session_duration_minutes = minutes

    def to_dict(self) -> dict[str, Any]:
        """Everything there is to know, ready for JSON: times in ISO 8601 form."""
        with _lock:
            self._turn_day()
        return {
            item.name: plain(getattr(self, item.name))
            for item in fields(self)
            if not item.name.startswith("_")
        }

    def _turn_day(self) -> None:
        if self._day != _today():
            self._day = _today()
            self.sessions_created_today = self.sessions_reused_today = 0


_mirrored_records: WeakValueDictionary[int, SystemSessionMetrics] = WeakValueDictionary()


def _read() -> Iterator[tuple[Metric, Labels, float]]:
    by_name: dict[str, list[SystemSessionMetrics]] = {}
    for record in alive(_mirrored_records.valuerefs()):
        by_name.setdefault(_names.admit(record.name), []).append(record)
    for name, records in by_name.items():
        minutes = sum(record.average_session_duration_minutes for record in records) / len(records)
        active = sum(record.active_sessions for record in records)
        memory = sum(record.memory_usage_mb for record in records)
        yield catalog.APPLICATION_SESSIONS, (name,), active
        yield catalog.APPLICATION_SESSION_DURATION_MEAN, (name,), minutes * SECONDS_PER_MINUTE
        yield catalog.APPLICATION_SESSION_MEMORY_USAGE, (name,), memory * BYTES_PER_MB


LEDGER.read_with(guarded("application sessions", _read))

SystemMetrics = SystemSessionMetrics


def create_system_session_metrics(**fields: Any) -> SystemSessionMetrics:
    """Make a record of an application's user sessions; fields as its class takes them."""
    return SystemSessionMetrics(**fields)


@dataclass
class ConnectionPoolMetrics:
    """What a session factory says of its sessions and its pool: a snapshot, read from the ledger.

    Attributes:
        active_sessions: Sessions open now.
        total_sessions_created: Sessions ever created.
        sessions_closed: Sessions closed.
        pool_exhaustion_events: Checkouts that timed out.
        circuit_breaker_trips: Times that a caller's circuit breaker opened; the caller's to say.
        leaked_sessions: Sessions that leaked.
        avg_session_lifetime_ms: Mean time from a session's creation to its close, in milliseconds.
        peak_concurrent_sessions: The most sessions open at once.
        last_pool_exhaustion: When a checkout last timed out (UTC), or None.
        last_leak_detection: When a leak was last noticed (UTC), or None.
    """

    active_sessions: int = 0
    total_sessions_created: int = 0
    sessions_closed: int = 0
    pool_exhaustion_events: int = 0
    circuit_breaker_trips: int = 0
    leaked_sessions: int = 0
    avg_session_lifetime_ms: float = 0.0
    peak_concurrent_sessions: int = 0
    last_pool_exhaustion: datetime | None = None
    last_leak_detection: datetime | None = None

    def update_peak_concurrent(self) -> None:
        """Let the peak be at least the sessions open now."""
        self.peak_concurrent_sessions = max(self.peak_concurrent_sessions, self.active_sessions)

    def record_pool_exhaustion(self) -> None:
        """Note a checkout that timed out now."""
        self.pool_exhaustion_events += 1
        self.last_pool_exhaustion = datetime.now(timezone.utc)

    def record_leak(self) -> None:
        """Note a leak now."""
        self.leaked_sessions += 1
        self.last_leak_detection = datetime.now(timezone.utc)
