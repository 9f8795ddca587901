"""Who counts the sessions of one factory: gives each its record, and its span."""

from __future__ import annotations

import os
import secrets
from hashlib import sha256
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, ref

from opentelemetry import trace
from opentelemetry.context import get_current
from sqlalchemy import Engine
from sqlalchemy.engine.base import OptionEngineMixin

from session_metrics_otel.binding import current_binding
from session_metrics_otel.catalog import SessionState
from session_metrics_otel.faults import caught
from session_metrics_otel.ledger import LEDGER
from session_metrics_otel.legible import one_line
from session_metrics_otel.tracing import SpanMirror, suppressed

from . import current
from .observed_record import ObservedSessionMetrics
from .places import place_of_birth
from .repeats import Repeats

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer
    from sqlalchemy import Dialect

    from .statement_spans import StatementSpans

_CLOSED = SessionState.CLOSED
_CREATED = SessionState.CREATED


def _new_prefix() -> None:
    """Give this process's session ids a beginning of their own, also after a fork."""
    global _prefix  # noqa: PLW0603
    _prefix = secrets.token_hex(6) + "-"


_prefix = ""
_new_prefix()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_prefix)
_serial = count(1)
_new: Callable[[type[ObservedSessionMetrics]], Any] = object.__new__


def engine_behind(engine: Engine) -> Engine:
    """The one that ``engine`` was made from by ``execution_options()``, as may be each request."""
    while isinstance(engine, OptionEngineMixin):
        engine = engine._proxied
    return engine


class Observer:
    """Watches the sessions of one factory.

    Args:
        name: The factory's name.
        spans: ``span``, ``attributes`` or ``off``.
        user_id: ``plain``, ``hashed`` or None: how the user's id goes onto a span.
        tracer: Where spans come from.
        statements: What statements are traced with; None where they are not.
        repeated_statements: How often a session may send the same statement; None: not counted.
        holder_lines: Whether its engines' pools take note of the line that takes a connection.
        own_provider: Whether the tracer is of a provider that was given for it.
        meet: Called with each engine that the sessions are bound to when it is first met, so that
            its statements are seen.

    Attributes:
        engines: The engines its sessions were seen to use.
        met: The last of them: as a rule there is one.
        ended: Called after each session's end once the factory has been given back.
    """

    adopts = False

    def __init__(
        self,
        name: str,
        *,
        spans: str,
        user_id: str | None,
        tracer: Tracer,
        own_provider: bool,
        statements: StatementSpans | None,
        repeated_statements: int | None,
        holder_lines: bool,
        meet: Callable[[Observer, Any], object],
    ) -> None:
        self.name = name
        factory = LEDGER.factory(name)
        factory.seen = True
        self._birth = factory.created
        self.engines: WeakSet[Engine] = WeakSet()
        self.ended: Callable[[Observer], None] | None = None
        self._traces = spans != "off"
        self._own_spans = spans == "span"
        self._user_id = user_id
        self._tracer = tracer
        self._own_provider = own_provider
        self.statements = statements
        self._repeated_statements = repeated_statements
        self.holder_lines = holder_lines
        self._meet = meet
        self.met: Any = None
        self._span_name = f"session {factory.name}"

    def born(self, session: Any) -> ObservedSessionMetrics:
        """Give ``session`` a new record."""
        record: ObservedSessionMetrics = _new(ObservedSessionMetrics)
        record.session_id = f"{_prefix}{next(_serial):x}"
        bound = current_binding.get()
        record.request_id = bound.request_id
        record.user_id = bound.user_id
        record.route = bound.route
        record._started = perf_counter()
        record._queries = record._transactions = record._errors = 0
        record.total_time_ms = 0.0
        record.last_error = record.last_statement = record.repeats = record._dates = None
        record._mirror = record.context = record.statement_spans = record._created_ns = None
        record.transaction_began = record.statement_ended = None
        record.born_at = place_of_birth()
        record._stage = stage = self._birth
        live = stage.live
        live[id(record)] = ref(record)
        if len(live) > stage.factory.peak:
            stage.factory.raise_peak(len(live))
        # There is no public way to ask whether a provider was set; where this one is gone, it may.
        if self._traces and (
            self._own_provider or getattr(trace, "_TRACER_PROVIDER", self) is not None
        ):
            record.context = get_current()
        if self._repeated_statements is not None:
            record.repeats = Repeats(self._repeated_statements)
        session._session_metrics = record
        if session._session_observer is not self:
            session._session_metrics_owner = self
        if current.followers:
            current.opened(record)
        return record

    def for_engine(self, dialect: Dialect) -> Observer | None:  # noqa: ARG002 - see Adopter
        """Who counts a session that uses the engine of ``dialect``."""
        return self

    def meet(self, bind: Any) -> None:
        """Make sure that the engine behind ``bind`` is observed."""
        if bind is None or bind is self.met:
            return
        # Never a connection: one that is dropped unclosed goes back to its pool.
        bound = getattr(bind, "sync_engine", bind).engine
        engine = engine_behind(bound)
        # None: the factory was given back, and its engines may be unhooked just now.
        unsure = self.met is None or engine not in self.engines
        if unsure and isinstance(engine, Engine):  # else it is a test's double of one
            self._meet(self, engine)
        self.met = bound

    def working(self, session: Any) -> ObservedSessionMetrics:
        """The record of a session that is being used: a new one where the last was closed."""
        record: ObservedSessionMetrics | None = session._session_metrics
        if record is None or record._stage.state is _CLOSED:
            record = self.born(session)
        # It may have asked for its connection before, and have its span since.
        if record.context is not None and record._stage.state is _CREATED and not record._mirror:
            record.mirror_on(self._start_mirror(record, record.context), self.statements)
        return record

    def _start_mirror(self, record: ObservedSessionMetrics, context: Context) -> SpanMirror | None:
        try:
            if suppressed(context):
                return None
            own = self._own_spans
            span = self._start_span(record) if own else trace.get_current_span(context)
            if not span.is_recording():
                return None
            if not own:
                return SpanMirror(span, owned=False)
            inside = trace.set_span_in_context(span, context)
            return SpanMirror(span, owned=True, context=inside)
        except Exception as fault:  # noqa: BLE001 - a broken provider is not the session's trouble
            caught("tracing", fault)
            return None

    def _start_span(self, record: ObservedSessionMetrics) -> Span:
        span = self._tracer.start_span(
            self._span_name,
            context=record.context,
            start_time=record.created_ns(),
        )
        if self._user_id is not None and record.user_id:
            if self._user_id == "hashed":
                as_bytes = record.user_id.encode("utf-8", "surrogatepass")
                span.set_attribute("user.hash", sha256(as_bytes).hexdigest())
            else:
                span.set_attribute("user.id", one_line(record.user_id))
        return span


class Adopter(Observer):
    """Stands in for the observers of engines that were instrumented alone.

    It counts no session until that uses such an engine, and then leaves it to the engine's own
    observer.
    """

    adopts = True

    def __init__(  # an observer of no factory: it only stands in
        self, owner: Callable[[Dialect], Observer | None]
    ) -> None:
        self._owner = owner

    def for_engine(self, dialect: Dialect) -> Observer | None:
        """The observer of the engine of ``dialect``, or None where that is not instrumented."""
        return self._owner(dialect)


def observer_of(session: object) -> Observer | None:
    """Who watches ``session``, or None."""
    return getattr(session, "_session_observer", None)
