"""Statements: counted for the session that sent them.

A subclass of the dialect's ``execution_ctx_cls`` sees every statement. Listening to
``before_cursor_execute`` instead would turn on the engine's event path, which costs a quarter of a
whole session.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.engine.default import DefaultExecutionContext

from session_metrics_otel.binding import current_binding
from session_metrics_otel.catalog import SessionState
from session_metrics_otel.faults import caught
from session_metrics_otel.series import PENDING_LIMIT

from .error_text import error_text
from .servers import server_attributes
from .statement_metrics import KEPT, series_of

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.engine import ExceptionContext

    from .holders import Holder
    from .observed_record import ObservedSessionMetrics
    from .servers import Attributes
    from .statement_spans import Started, StatementSpans

_ACTIVE = SessionState.ACTIVE
_CLOSING = SessionState.CLOSING

RECORD = "_session_metrics_record"
"""Where a Connection keeps the record of the session that began a transaction on it."""


def record_of(connection: Any) -> ObservedSessionMetrics | None:
    """The record of the session whose transaction is open on ``connection``, or None."""
    return getattr(connection, RECORD, None)


class _ObservedContext:
    """Laid over a dialect's execution context class.

    Attributes:
        server: The attributes that all spans of the engine have.
        core_spans: What statements that no session sent are traced with; None: not at all.
        started: The span of the statement that is being executed, or None.
        sent_at: ``time.perf_counter()`` when it was sent; None once it is measured.
        record: The record of the session that sends it, or None.
        told: Whether ``_handle_error`` has heard of its failure.
    """

    root_connection: Any
    compiled: Any
    cursor: Any
    statement: str
    replaced: Any
    server: Attributes
    core_spans: StatementSpans | None
    started: Started | None = None
    sent_at: float | None = None
    record: ObservedSessionMetrics | None = None
    told = False
    parameters: Any
    _insertmanyvalues_rows: list[Any] | None
    _is_server_side: bool

    def pre_exec(self) -> None:
        record = getattr(self.root_connection, RECORD, None)
        try:
            if record is None or record.transaction_began is None:
                spans = self.core_spans
                fairy = self.root_connection._dbapi_connection
                try:
                    holder: Holder = fairy._pool.holders[fairy._connection_record]
                except (AttributeError, KeyError):
                    pass  # with its first connection a dialect talks before any pool has it
                else:
                    holder.session = None  # it may have had one before, by Session(bind=connection)
                    holder.statements += 1
                    holder.last_statement = self.compiled or self.statement
                    holder.bound = current_binding.get()
            else:
                self.record = record
                record._queries += 1
                stage = record._stage
                stage.factory.queries.hit()
                # To close may take one: going back to a savepoint.
                if stage.state is not _ACTIVE and stage.state is not _CLOSING:
                    record.move(_ACTIVE)
                record.last_statement = self.compiled or self.statement
                record.statement_ended = None  # it is being executed: that is not idle
                spans = record.statement_spans
                if record.repeats is not None:
                    record.repeats.sent(self, record)
            if spans is not None:
                self.started = spans.start(self, self.record, self.server)
        except Exception as fault:  # noqa: BLE001 - never the statement's trouble
            caught("statements", fault)
        self.sent_at = perf_counter()

    def post_exec(self) -> None:
        ended = perf_counter()
        if self.record is not None:
            self.record.statement_ended = ended
        try:
            # Kept with the compiled statement, which SQLAlchemy caches and reuses.
            series = getattr(self.compiled, KEPT, None) or series_of(self, self.server)
            duration = series.duration
            seconds = ended - self.sent_at  # type: ignore[operator] # see pre_exec
            duration.add(seconds)
            if len(duration.pending) > PENDING_LIMIT:
                duration.fold_if_free()
            self.sent_at = None
            # A cursor at the server, as of stream_results=True, says some number or other.
            if (
                series.rows is not None
                and not self._is_server_side
                and self.cursor.description is not None
            ):
                fetched = self._insertmanyvalues_rows  # the cursor knows its last batch alone
                rows = self.cursor.rowcount if fetched is None else len(fetched)
                if rows >= 0:
                    series.rows.observe(rows)
            if self.started is not None:
                self.started.lead_from(duration, seconds)
                self._end_span(None)
        except Exception as fault:  # noqa: BLE001 - never the statement's trouble
            caught("statements", fault)
            self._end_span(None)

    def handle_dbapi_exception(self, e: BaseException) -> None:
        if not self.told:  # a handle_error of the application's has raised, which ends the round
            try:
                text = error_text(e, parameters=self.parameters, statement=self.statement)
                # SQLAlchemy looks whether there is a table, and expects that there may be none.
                looks = self.root_connection.get_execution_options().get("skip_user_error_events")
                _note_error(e, text, self, None if looks else self.root_connection)
            except Exception as fault:  # noqa: BLE001 - never the statement's trouble
                caught("errors", fault)
        super().handle_dbapi_exception(e)  # type: ignore[misc]

    def _failed(self, error: BaseException, text: str) -> None:
        if self.record is not None:
            self.record.statement_ended = perf_counter()
        if self.sent_at is not None:
            seconds = perf_counter() - self.sent_at
            self.sent_at = None
            duration = series_of(self, self.server).failed(error)
            duration.observe(seconds)
            if self.started is not None:
                self.started.lead_from(duration, seconds)
        self._end_span(error, text)

    def _end_span(self, error: BaseException | None, text: str = "") -> None:
        started, self.started = self.started, None
        try:
            if started is not None:
                started.end(self, error, text)
        except Exception as fault:  # noqa: BLE001 - never the statement's trouble
            caught("tracing", fault)


class _ObservedAroundContext(_ObservedContext):
    """The same, where the dialect's own class has something to do before or after a statement."""

    def pre_exec(self) -> None:
        super(_ObservedContext, self).pre_exec()  # type: ignore[misc]
        super().pre_exec()

    def post_exec(self) -> None:
        super().post_exec()
        super(_ObservedContext, self).post_exec()  # type: ignore[misc]


def _handle_error(context: ExceptionContext) -> None:
    try:
        error, execution = context.original_exception, context.execution_context
        text = error_text(error, parameters=context.parameters, statement=context.statement)
        # The driver's own exception: SQLAlchemy's wrapper quotes the statement's parameters.
        _note_error(error, text, execution, context.connection)
    except Exception as fault:  # noqa: BLE001 - never the statement's trouble
        caught("errors", fault)


def _note_error(error: BaseException, text: str, execution: Any, connection: Any) -> None:
    if isinstance(execution, _ObservedContext):
        execution.told = True
        execution._failed(error, text)
    record = None if connection is None else record_of(connection)
    if record is not None:
        record.statement_ended = perf_counter()
        record.note_error(error, text)


def hook(engine: Engine) -> None:
    """Observe the statements of ``engine``, and of whatever shares its dialect."""
    dialect: Any = engine.dialect
    kind = dialect.execution_ctx_cls
    own = {
        "replaced": dialect.__dict__.get("execution_ctx_cls"),
        "server": server_attributes(engine),
        "core_spans": None,
    }
    has_nothing_to_do = (
        kind.pre_exec is DefaultExecutionContext.pre_exec
        and kind.post_exec is DefaultExecutionContext.post_exec
    )
    observed = _ObservedContext if has_nothing_to_do else _ObservedAroundContext
    dialect.execution_ctx_cls = type(kind.__name__, (observed, kind), own)
    event.listen(engine, "handle_error", _handle_error)


def trace_core(engine: Engine, spans: StatementSpans | None) -> None:
    """Trace the statements of ``engine`` that no session sends with ``spans``."""
    engine.dialect.execution_ctx_cls.core_spans = spans  # type: ignore[attr-defined]


def unhook(engine: Engine) -> None:
    """Put ``engine`` back as it was."""
    dialect: Any = engine.dialect
    replaced = dialect.execution_ctx_cls.replaced
    if replaced is None:
        del dialect.execution_ctx_cls  # the dialect class's own attribute shows again
    else:
        dialect.execution_ctx_cls = replaced
    event.remove(engine, "handle_error", _handle_error)
