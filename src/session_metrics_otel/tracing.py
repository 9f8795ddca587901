"""Record -> span: attributes, events, status. Through the OpenTelemetry API alone."""

from __future__ import annotations

from time import time
from traceback import format_tb
from typing import TYPE_CHECKING, Any

from opentelemetry import context as api_context
from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode

from .faults import caught
from .legible import encodable
from .series import Exemplar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.context import Context
    from opentelemetry.trace import Span
    from opentelemetry.util.types import AttributeValue

    from .catalog import SessionState
    from .series import Histogram

PREFIX = "sqlalchemy.session."
LEAK = "sqlalchemy.session.leak"
STACKTRACE_LIMIT = 65536
"""Characters of an exception's stack trace that are shown."""

STATE_EVENT = "sqlalchemy.session.state"

SUPPRESSED = "suppress_instrumentation"
"""What OpenTelemetry's instrumentations set in a context, and heed there, for silence."""

# The API's own key for the same has no public name.
_API_SUPPRESSED: str = getattr(api_context, "_SUPPRESS_INSTRUMENTATION_KEY", SUPPRESSED)


_exemplar = tuple.__new__  # a named tuple's own is a Python function


class SpanMirror:
    """Mirrors one record onto one span.

    Attributes:
        span: The span.
        owned: Whether the span is the session's own. Then its attributes are written once, at its
            end; on a span of the caller's, which may end at any time, with each change.
        context: The context that children of the span begin in; None where it is the caller's.
    """

    __slots__ = ("_ids", "context", "owned", "span")

    def __init__(self, span: Span, *, owned: bool, context: Context | None = None) -> None:
        self.span = span
        self.owned = owned
        self.context = context
        self._ids: tuple[int, int] | tuple[()] | None = None

    def moved(
        self,
        origin: SessionState,
        target: SessionState,
        fields: Callable[[], Mapping[str, AttributeValue]],
    ) -> None:
        """Add the event of a state transition."""
        try:
            # An enum's `value` is a property written in Python; this is where it keeps it.
            self.span.add_event(STATE_EVENT, {"from": origin._value_, "to": target._value_})
            if not self.owned:
                self.span.set_attributes(fields())
        except Exception as fault:  # noqa: BLE001 - whatever an SDK raises stays with telemetry
            caught("tracing", fault)

    def erred(self, error: BaseException | str, text: str) -> None:
        """Record an error: the exception as the convention's event, and the span's status.

        Args:
            error: The exception, or a text.
            text: What is shown of it. Its own message, and those of the exceptions that led to it,
                may quote what was sent to the database.
        """
        try:
            text = encodable(text)
            if isinstance(error, BaseException):
                trace_back = "".join(format_tb(error.__traceback__))
                trace_back += f"{type(error).__name__}: {text}"
                said = {
                    "exception.message": text,
                    "exception.stacktrace": encodable(trace_back, STACKTRACE_LIMIT),
                }
                self.span.record_exception(error, said)
            self.span.set_status(Status(StatusCode.ERROR, text))
        except Exception as fault:  # noqa: BLE001
            caught("tracing", fault)

    def leaked(self, reason: str) -> None:
        """Mark the span of a session that leaks."""
        try:
            self.span.set_attribute(LEAK, reason)
            self.span.add_event(LEAK, {"reason": reason})
        except Exception as fault:  # noqa: BLE001
            caught("tracing", fault)

    def counted(self, field: str, value: AttributeValue) -> None:
        """Take note of a field's new value."""
        if not self.owned:
            try:
                self.span.set_attribute(PREFIX + field, value)
            except Exception as fault:  # noqa: BLE001
                caught("tracing", fault)

    def ended(self, fields: Mapping[str, AttributeValue], at: int | None) -> None:
        """Write what the record says at its end, and end the span where it is the session's own.

        Args:
            fields: What the record says.
            at: The end in nanoseconds since the epoch, by whichever clock the span began with; None
                for now by the wall clock.
        """
        try:
            self.span.set_attributes(fields)
            if self.owned:
                self.span.end(at)
        except Exception as fault:  # noqa: BLE001
            caught("tracing", fault)

    def exemplar(self, value: float) -> Exemplar | None:
        """``value`` with the way to this trace, where the span is sampled."""
        try:
            if self._ids is None:
                self._ids = _ids_of(self.span)
            return _exemplar(Exemplar, (value, *self._ids, time())) if self._ids else None
        except Exception as fault:  # noqa: BLE001
            caught("tracing", fault)
            return None


def lead_to(mirror: SpanMirror | None, value: float, *histograms: Histogram) -> None:
    """Let ``value``, which was added to ``histograms``, lead to the span of ``mirror``."""
    exemplar = None if mirror is None else mirror.exemplar(value)
    if exemplar is not None:
        for histogram in histograms:
            histogram.exemplify(exemplar)


def _ids_of(span: Span) -> tuple[int, int] | tuple[()]:
    """The ids of the trace and of ``span``; nothing where it is not sampled."""
    context = span.get_span_context()
    return (context.trace_id, context.span_id) if context.trace_flags.sampled else ()


def suppressed(context: Context) -> bool:
    """Whether ``suppress_instrumentation()`` is in force in ``context``."""
    return bool(context.get(SUPPRESSED) or context.get(_API_SUPPRESSED))


def current_mirror() -> SpanMirror | None:
    """A mirror onto the span that is current now, or None where none is recording."""
    try:
        span = trace.get_current_span()
        return SpanMirror(span, owned=False) if span.is_recording() else None
    except Exception as fault:  # noqa: BLE001
        caught("tracing", fault)
        return None


def pool_exhausted(mirror: SpanMirror | None, report: Mapping[str, Any]) -> None:
    """Put the report on a pool that had no connection left onto the span of whoever waited."""
    if mirror is None:
        return
    try:
        holders = [
            f"{holder['session_id']} {holder['route']} {holder['taken_at']}".strip()
            for holder in report["holders"]
        ]
        attributes = {"db.client.connection.pool.name": report["pool"], "holders": holders}
        mirror.span.add_event("sqlalchemy.pool.exhausted", attributes)
    except Exception as fault:  # noqa: BLE001
        caught("tracing", fault)
