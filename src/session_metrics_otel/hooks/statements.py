"""Statements: counted for the session that sent them.

A subclass of the dialect's ``execution_ctx_cls`` sees every statement. Listening to
``before_cursor_execute`` instead would turn on the engine's event path, which costs a quarter of a
whole session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from session_metrics_otel.faults import caught

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.engine import ExceptionContext

    from session_metrics_otel.session_metrics import DatabaseSessionMetrics

RECORD = "_session_metrics_record"
"""Where a Connection keeps the record of the session that began a transaction on it."""


def record_of(connection: Any) -> DatabaseSessionMetrics | None:
    """The record of the session whose transaction is open on ``connection``, or None."""
    return connection.__dict__.get(RECORD)  # type: ignore[no-any-return]


class _ObservedContext:
    """Laid over a dialect's execution context class."""

    root_connection: Any

    def pre_exec(self) -> None:
        record = self.root_connection.__dict__.get(RECORD)
        if record is not None and record.transaction_began is not None:
            try:
                record.sent_query()
            except Exception as fault:  # noqa: BLE001 - never the statement's trouble
                caught("statements", fault)
        super().pre_exec()  # type: ignore[misc]


def _handle_error(context: ExceptionContext) -> None:
    try:
        connection = context.connection
        record = None if connection is None else record_of(connection)
        if record is not None:
            # The driver's own exception: SQLAlchemy's wrapper quotes the statement's parameters.
            record.record_error(context.original_exception)
    except Exception as fault:  # noqa: BLE001 - never the statement's trouble
        caught("errors", fault)


def hook(engine: Engine) -> None:
    """Observe the statements of ``engine``, and of whatever shares its dialect."""
    dialect: Any = engine.dialect
    replaced = dialect.__dict__.get("execution_ctx_cls")
    dialect.execution_ctx_cls = type(
        dialect.execution_ctx_cls.__name__,
        (_ObservedContext, dialect.execution_ctx_cls),
        {"replaced": replaced},
    )
    event.listen(engine, "handle_error", _handle_error)


def unhook(engine: Engine) -> None:
    """Put ``engine`` back as it was."""
    dialect: Any = engine.dialect
    replaced = dialect.execution_ctx_cls.replaced
    if replaced is None:
        del dialect.execution_ctx_cls  # the dialect class's own attribute shows again
    else:
        dialect.execution_ctx_cls = replaced
    event.remove(engine, "handle_error", _handle_error)
