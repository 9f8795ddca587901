"""Comments in SQL that lead from the database's log to the trace, in sqlcommenter's form.

https://google.github.io/sqlcommenter/spec/
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import sqlalchemy
from opentelemetry.context import get_value

from session_metrics_otel.legible import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.trace import SpanContext

FRAMEWORK_TAGS = "SQLCOMMENTER_ORM_TAGS_AND_VALUES"
"""Where OpenTelemetry's instrumentations of web frameworks leave tags for comments."""


@dataclass(frozen=True)
class SqlComments:
    """What the comment of a traced statement says.

    A statement whose text differs each time is prepared anew each time by drivers that keep
    prepared statements (asyncpg, psycopg): with these, ``traceparent`` costs more than its bytes.

    Attributes:
        traceparent: The statement's span, in W3C's form.
        db_driver: The driver's name.
        db_framework: ``sqlalchemy:`` and its version.
        framework: What a web framework's instrumentation left: route, controller.
        tags: Called for each statement, for tags of the application's own.
        in_query_text: Whether ``db.query.text`` shows the comment too.
    """

    traceparent: bool = True
    db_driver: bool = False
    db_framework: bool = False
    framework: bool = True
    tags: Callable[[], Mapping[str, str]] | None = None
    in_query_text: bool = False

    def comment(self, dialect: Any, span: SpanContext) -> str:
        """The comment for a statement whose span is ``span``; "" where there is nothing to say."""
        found: dict[str, Any] = {}
        if self.framework:
            found.update(get_value(FRAMEWORK_TAGS) or {})  # type: ignore[call-overload]
        if self.tags is not None:
            found.update(self.tags())
        if self.db_driver:
            found["db_driver"] = dialect.driver
        if self.db_framework:
            found["db_framework"] = f"sqlalchemy:{sqlalchemy.__version__}"
        if self.traceparent:
            found["traceparent"] = (
                f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"
            )
        pairs = [f"{_quoted(key)}='{_quoted(found[key])}'" for key in sorted(found)]
        comment = f"/*{','.join(pairs)}*/" if pairs else ""
        # A driver that fills in %s itself takes a percent sign for one of its own.
        return comment.replace("%", "%%") if "format" in dialect.paramstyle else comment


def _quoted(text: Any) -> str:
    # Letters, digits and _.-~ alone are left: nothing that ends a comment, a string or a parameter.
    return quote(one_line(text), safe="")


def with_comment(statement: str, comment: str) -> str:
    """``statement`` with ``comment`` at its end, before a closing semicolon."""
    kept = statement.rstrip()
    if kept.endswith(";"):
        return f"{kept[:-1].rstrip()} {comment};"
    return f"{kept} {comment}"
