"""Spans for what reaches the database: statements, connecting, commit and rollback.

None is ever made the current span. Its parent is the session's span, unless the caller has opened a
span of its own inside the session; without a session, it is the current span.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry import trace
from opentelemetry.context import attach, detach, get_current, set_value
from opentelemetry.trace import SpanKind, Status, StatusCode

from session_metrics_otel.faults import caught
from session_metrics_otel.legible import encodable, one_line
from session_metrics_otel.tracing import SUPPRESSED, SpanMirror, lead_to, suppressed

from .comments import with_comment
from .error_text import error_text
from .queries import Query, batch_size, describe
from .servers import Attributes, error_type, status_code

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer
    from sqlalchemy.engine.interfaces import ExecutionContext

    from session_metrics_otel.series import Histogram

    from .comments import SqlComments
    from .observed_record import ObservedSessionMetrics

    StatementHook = Callable[[Span, ExecutionContext], None]

BEGINNING = "_session_metrics_span"
"""Where a compiled statement keeps what its spans begin with."""

_NOWHERE = trace.INVALID_SPAN


class Beginning(NamedTuple):
    """What every span of one statement begins with."""

    query: Query
    server: Attributes
    name: str
    attributes: Attributes


class Started:
    """A span of a statement that is being executed.

    Attributes:
        span: The span.
    """

    __slots__ = ("_hook", "_token", "span")

    def __init__(self, span: Span, hook: StatementHook | None) -> None:
        self.span = span
        self._hook = hook
        self._token: Any = None

    def silence(self) -> None:
        """Keep OpenTelemetry's instrumentation of the driver from a span of its own."""
        self._token = attach(set_value(SUPPRESSED, True))  # noqa: FBT003

    def lead_from(self, duration: Histogram, seconds: float) -> None:
        """Let what was measured of the statement lead to its span."""
        lead_to(SpanMirror(self.span, owned=False), seconds, duration)

    def end(self, execution: Any, error: BaseException | None, text: str) -> None:
        """End the span, with ``error`` where that came of it, of which ``text`` may be shown."""
        if self._token is not None:
            detach(self._token)
        span = self.span
        try:
            if error is not None:
                failed(span, error, text)
            if self._hook is not None:
                self._hook(span, execution)
        finally:
            span.end()


class StatementSpans:
    """How the statements of one factory are traced.

    Args:
        tracer: Where spans come from.
        hook: Called with each statement's span, before it ends, and SQLAlchemy's execution context.
        comments: What comments say; None for no comments.
        transactions: Whether commit and rollback have spans.
        own_spans: Whether sessions have spans of their own to be the parents.
    """

    def __init__(
        self,
        tracer: Tracer,
        *,
        hook: StatementHook | None = None,
        comments: SqlComments | None = None,
        transactions: bool = False,
        own_spans: bool = True,
    ) -> None:
        self._start_span = tracer.start_span
        self._hook = hook
        self._comments = comments
        self._own_spans = own_spans
        self.transactions = transactions

    def parent(self, record: ObservedSessionMetrics | None) -> Context | None:
        """The context that a span is to begin in, or None where there is to be none."""
        current = get_current()
        if record is None:
            return None if suppressed(current) else current
        mirror: Any = record._mirror
        if current is record.context and self._own_spans:
            return None if mirror is None else mirror.context
        span = trace.get_current_span(current)
        if suppressed(current):
            return None
        if self._own_spans and span is trace.get_current_span(record.context):
            return None if mirror is None else mirror.context
        # The caller's own, inside the session; where that is not sampled, this is not either.
        return current if span.is_recording() else None

    def start(
        self, execution: Any, record: ObservedSessionMetrics | None, server: Attributes
    ) -> Started | None:
        """Begin the span of a statement, where it is to have one that is recorded."""
        context = self.parent(record)
        if context is None:
            return None
        beginning = _beginning(execution, server)
        attributes = beginning.attributes
        size = batch_size(execution)
        if size:
            attributes = {**attributes, "db.operation.batch.size": size}
        span = self._start_span(
            beginning.name, context=context, kind=SpanKind.CLIENT, attributes=attributes
        )
        if not span.is_recording():
            return None
        started = Started(span, self._hook)
        if self._comments is not None:
            self._add_comment(self._comments, execution, span, beginning.query)
        if _traced_by_driver(type(execution.cursor)):
            started.silence()
        return started

    def around(
        self,
        name: str,
        record: ObservedSessionMetrics | None,
        attributes: Mapping[str, Any],
        call: Callable[[], Any],
        *,
        secrets: Any = None,
    ) -> Any:
        """Call ``call`` within a span called ``name``, and return what it returns.

        What of ``secrets`` an error quotes is hidden.
        """
        span = self._begun(name, record, attributes)
        try:
            return call()
        except BaseException as error:
            failed(span, error, error_text(error, parameters=secrets))
            raise
        finally:
            _end(span)

    def _begun(
        self, name: str, record: ObservedSessionMetrics | None, attributes: Mapping[str, Any]
    ) -> Span:
        try:
            context = self.parent(record)
            if context is None:
                return _NOWHERE
            return self._start_span(
                name, context=context, kind=SpanKind.CLIENT, attributes=attributes
            )
        except Exception as fault:  # noqa: BLE001 - never the connection's trouble
            caught("tracing", fault)
            return _NOWHERE

    @staticmethod
    def _add_comment(comments: SqlComments, execution: Any, span: Span, query: Query) -> None:
        try:
            comment = comments.comment(execution.dialect, span.get_span_context())
            if comment:
                execution.statement = with_comment(execution.statement, comment)
                if comments.in_query_text:
                    span.set_attribute("db.query.text", with_comment(query.text, comment))
        except Exception as fault:  # noqa: BLE001 - the tags are the application's; the span goes on
            caught("statements", fault)


def _end(span: Span) -> None:
    try:
        span.end()
    except Exception as fault:  # noqa: BLE001 - the connection is made, the commit is done
        caught("tracing", fault)


def failed(span: Span, error: BaseException, text: str) -> None:
    """Say on ``span`` that ``error`` came of it, of which ``text`` is shown. Never raises."""
    try:
        code = status_code(error)
        if code:
            span.set_attribute("db.response.status_code", code)
        span.set_attribute("error.type", error_type(error))
        span.set_status(Status(StatusCode.ERROR, text))
    except Exception as fault:  # noqa: BLE001
        caught("tracing", fault)


def _beginning(execution: Any, server: Attributes) -> Beginning:
    query = describe(execution)
    compiled = execution.compiled
    if compiled is None:
        return _begin(query, server)
    found: Beginning | None = compiled.__dict__.get(BEGINNING)
    if found is None or found.query is not query or found.server is not server:
        found = compiled.__dict__[BEGINNING] = _begin(query, server)
    return found


def _begin(query: Query, server: Attributes) -> Beginning:
    said = {
        "db.operation.name": query.operation,
        "db.collection.name": query.collection,
        "db.query.summary": query.summary,
        "db.query.text": query.text,
    }
    shown = {key: encodable(value) for key, value in said.items() if value}
    attributes = {**server, **shown}
    name = one_line(query.summary or server["db.system.name"])
    return Beginning(query, server, name, attributes)


_traced: dict[type, bool] = {}


def _traced_by_driver(kind: type) -> bool:
    """Whether cursors of ``kind`` are made by OpenTelemetry's instrumentation of the driver."""
    found = _traced.get(kind)
    if found is None:
        found = any(base.__module__.startswith("opentelemetry.") for base in kind.__mro__)
        _traced[kind] = found
    return found
