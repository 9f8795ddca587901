"""The session that is open in the current context, for who asks; kept only while somebody does."""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from session_metrics_otel.catalog import SessionState

if TYPE_CHECKING:
    from collections.abc import Callable

    from .observed_record import ObservedSessionMetrics

    # A session, and those that were open when it was opened.
    Opened = tuple[weakref.ref[ObservedSessionMetrics], Any]

followers: list[object] = []
"""Who asks; while it is empty, nothing is kept."""

_opened: ContextVar[Opened | None] = ContextVar("session_metrics_opened", default=None)


def opened(record: ObservedSessionMetrics) -> None:
    """Note that the session of ``record`` was opened in this context."""
    _opened.set((weakref.ref(record), _still_open()))


def current_session() -> ObservedSessionMetrics | None:
    """The record of the session opened last in this context, and still open; or None."""
    found = _still_open()
    return None if found is None else found[0]()


def _still_open() -> Opened | None:
    found = _opened.get()
    while found is not None:
        record = found[0]()
        if record is not None and record.state is not SessionState.CLOSED:
            return found
        found = found[1]
    return None


def follow_sessions() -> Callable[[], None]:
    """Know the current session from here on; returns the call that ends it."""
    follower = object()
    followers.append(follower)
    return lambda: followers.remove(follower)
