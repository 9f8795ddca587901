"""Log records that say which session, and which trace, they were written in."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

from .hooks.current import current_session, follow_sessions
from .legible import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from .session_metrics import DatabaseSessionMetrics


def correlate_logs() -> Callable[[], None]:
    """Give every ``logging`` record ``session_id``, ``request_id``, ``trace_id`` and ``span_id``.

    The session is the one opened last, and still open, in the context (the thread or the asyncio
    task) that the record is written in; the trace and the span are the session's where it is
    traced, else those that are current. What is not there is "". The fields are for a formatter,
    such as ``"%(message)s session=%(session_id)s trace=%(trace_id)s"``.

    Call it once, at the start: sessions that were open before are not known.

    Returns:
        A call that ends it. It leaves a record factory alone that was installed on top of ours.
    """
    make = logging.getLogRecordFactory()

    def factory(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = make(*arguments, **options)
        vars(record).update(_fields())
        return record

    stop = follow_sessions()
    logging.setLogRecordFactory(factory)

    def end() -> None:
        stop()
        if logging.getLogRecordFactory() is factory:
            logging.setLogRecordFactory(make)

    return end


def _fields() -> dict[str, str]:
    session: DatabaseSessionMetrics | None = current_session()
    span = trace.get_current_span().get_span_context()
    mirror: Any = None if session is None else session._mirror
    if mirror is not None:
        span = mirror.span.get_span_context()
    return {
        "session_id": "" if session is None else one_line(session.session_id),
        "request_id": "" if session is None else one_line(session.request_id),
        "trace_id": f"{span.trace_id:032x}" if span.is_valid else "",
        "span_id": f"{span.span_id:016x}" if span.is_valid else "",
    }
