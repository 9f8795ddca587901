"""Spans for connecting, and for commit and rollback where these are asked for.

The dialect's own methods are what every pool and every connection calls; no event is as cheap, nor
does one tell when it is over.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from .sessions import asking_record
from .statements import record_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from .observed_record import ObservedSessionMetrics
    from .statement_spans import StatementSpans

    Replaced = dict[str, Any]

_METHODS = ("connect", "do_commit", "do_rollback")


def hook(engine: Engine) -> None:
    """Trace the connecting of ``engine``."""
    dialect: Any = engine.dialect
    connect = dialect.connect

    def observed_connect(*arguments: Any, **options: Any) -> Any:
        if _spans_for(dialect, None) is None:  # nobody here traces statements
            return connect(*arguments, **options)
        record = asking_record(dialect)
        spans = _spans_for(dialect, record)
        if spans is None:
            return connect(*arguments, **options)
        server = dialect.execution_ctx_cls.server
        return spans.around(
            "connect",
            record,
            server,
            lambda: connect(*arguments, **options),
            secrets=(arguments, options, engine.url.password),
        )

    observed_connect.replaced = dialect.__dict__.get("connect")  # type: ignore[attr-defined]
    dialect.connect = observed_connect


def hook_transactions(engine: Engine) -> None:
    """Trace its commits and rollbacks, too: done only where they are asked for, as it costs."""
    for name in ("do_commit", "do_rollback"):
        if not hasattr(vars(engine.dialect).get(name), "replaced"):
            setattr(engine.dialect, name, _observed(engine.dialect, name))


def _observed(dialect: Any, name: str) -> Callable[[Any], None]:
    finish = getattr(dialect, name)
    said = name.removeprefix("do_").upper()

    def observed(dbapi_connection: Any) -> None:
        # A pool rolls back what it takes back, too: that is nobody's transaction.
        caller = sys._getframe(1).f_locals.get("self")
        record = record_of(caller) if isinstance(caller, Connection) else None
        if record is not None and record.transaction_began is None:
            record = None
        spans = _spans_for(dialect, record) if isinstance(caller, Connection) else None
        if spans is None or not spans.transactions:
            finish(dbapi_connection)
            return
        attributes = {
            **dialect.execution_ctx_cls.server,
            "db.operation.name": said,
            "db.query.summary": said,
        }
        spans.around(said, record, attributes, lambda: finish(dbapi_connection))

    observed.replaced = dialect.__dict__.get(name)  # type: ignore[attr-defined]
    return observed


def _spans_for(dialect: Any, record: ObservedSessionMetrics | None) -> StatementSpans | None:
    if record is not None:
        found: StatementSpans | None = record.statement_spans
    else:
        # It is the dialect's own again where somebody else's wrapper has kept ours inside.
        found = getattr(dialect.execution_ctx_cls, "core_spans", None)
    return found


def unhook(engine: Engine) -> None:
    """Put ``engine`` back as it was."""
    dialect = vars(engine.dialect)
    for name in _METHODS:
        if not hasattr(dialect.get(name), "replaced"):
            continue
        replaced = dialect[name].replaced
        if replaced is None:
            del dialect[name]
        else:
            dialect[name] = replaced
