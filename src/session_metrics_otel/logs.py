"""Log records that say which session, and which trace, they were written in."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

from .faults import caught
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
    such as ``"%(message)s session=%(session_id)s trace=%(trace_id)s"``. What the application says
    itself under one of these names, by ``extra=`` or a record factory, stays.

    Call it once, at the start: sessions that were open before are not known.

    Returns:
        A call that ends it. It leaves alone what was put in its place meanwhile.
    """
    make = logging.Logger.makeRecord

    # No record factory: what one has set already, `extra=` may not set again (a KeyError).
    def make_record(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = make(*arguments, **options)
        for name, value in _fields().items():
            vars(record).setdefault(name, value)
        return record

    stop = follow_sessions()
    logging.Logger.makeRecord = make_record  # type: ignore[method-assign]

    def end() -> None:
        stop()
        if logging.Logger.makeRecord is make_record:
            logging.Logger.makeRecord = make  # type: ignore[method-assign]

    return end


def _fields() -> dict[str, str]:
    fields = dict.fromkeys(("session_id", "request_id", "trace_id", "span_id"), "")
    try:
        session: DatabaseSessionMetrics | None = current_session()
        span = trace.get_current_span().get_span_context()
        if session is not None:
            fields["session_id"] = one_line(session.session_id)
            fields["request_id"] = one_line(session.request_id)
            mirror: Any = session._mirror
            if mirror is not None:
                span = mirror.span.get_span_context()
        if span.is_valid:
            fields["trace_id"] = f"{span.trace_id:032x}"
            fields["span_id"] = f"{span.span_id:016x}"
    except Exception as fault:  # noqa: BLE001 - who logs is not to hear of it
        caught("logs", fault)
    return fields
