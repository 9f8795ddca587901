"""Write the pages in docs/reference that say what is exported, from the code that exports it.

Metrics come from the catalogue; spans from running sessions and looking at what they left. How many
series there are is written into docs/how-to/fleets.md, between its marks.
``--check`` changes nothing, and fails where a page says something else.
"""

from __future__ import annotations

import io
import os
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import generated
import series
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import StaticPool

from session_metrics_otel import bind, instrument, metrics_for, settings
from session_metrics_otel.attributes import METRIC_ATTRIBUTES, SPAN_ATTRIBUTES
from session_metrics_otel.catalog import CATALOG, Kind, Metric, SessionState, label_name
from session_metrics_otel.cli import main as command_line

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.sdk.trace import ReadableSpan

    from session_metrics_otel.instrument import UserIdMode

DOCS = Path(__file__).resolve().parent.parent / "docs"
FLEETS = DOCS / "how-to" / "fleets.md"
NOTE = "<!-- Written by scripts/reference.py: change the code, then run `make reference`. -->\n"
KINDS = {
    Kind.COUNTER: "counter",
    Kind.UP_DOWN_COUNTER: "up-down counter (a gauge on /metrics)",
    Kind.GAUGE: "gauge",
    Kind.HISTOGRAM: "histogram",
}
GROUPS = (
    ("Sessions", "sqlalchemy.session"),
    ("Routes", "sqlalchemy.route."),
    ("Statements", ("db.client.operation.", "db.client.response.")),
    ("Pools", ("db.client.connection.", "sqlalchemy.pool")),
    ("User sessions of the application", "application."),
)
STATES = {
    SessionState.CREATED: "It has been made, and has not had a connection yet.",
    SessionState.ACTIVE: "It holds a connection.",
    SessionState.IDLE: "It holds a connection in an open transaction and sends nothing.",
    SessionState.COMMITTED: "Its last transaction was committed; it holds nothing.",
    SessionState.ROLLED_BACK: "Its last transaction was rolled back; it holds nothing.",
    SessionState.ERROR: "The database raised an exception. Until it is rolled back or closed, it "
    "may hold a connection.",
    SessionState.CLOSING: "`close()` is running.",
    SessionState.CLOSED: "It has ended. If it is used again, it counts as a new session.",
}
ELSEWHERE = {
    "PROMETHEUS_MULTIPROC_DIR": "prometheus_client's folder for [several processes]"
    "(../processes.md). Set before Python starts.",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "Where `demo` sends its spans.",
    "OTEL_SERVICE_NAME": "The name of `demo` in its traces.",
    "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "What `opentelemetry-instrument` leaves out: "
    "`session_metrics` is this package, `sqlalchemy` is opentelemetry-instrumentation-sqlalchemy.",
}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    columns = list(head)
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def metric_section(metric: Metric) -> str:
    """What there is to say of one metric."""
    labels = ", ".join(f"`{label_name(name)}`" for name in metric.attributes)
    lines = [
        f"### `{metric.prometheus_name}`\n",
        f"{metric.help}\n",
        f"- OpenTelemetry: `{metric.name}`",
        f"- {KINDS[metric.kind]}, unit `{metric.unit}`",
        f"- labels: {labels}",
    ]
    if metric.buckets:
        lines.append(f"- buckets: {', '.join(f'{bound:g}' for bound in metric.buckets)}")
    return "\n".join(lines) + "\n"


ABOUT_METRICS = """\
The heading is a metric's name on `/metrics`. Through OpenTelemetry it has the other name, and the
same values. A label is an attribute's name with `_` instead of `.`, and is absent if it has no
value. Units are those of UCUM: `s` for seconds, `By` for bytes, `{session}` for a number of
sessions.
"""


def metrics_page() -> str:
    """Every metric, and every attribute of metrics."""
    parts = [NOTE, "# Metrics\n", ABOUT_METRICS]
    left = list(CATALOG)
    for title, prefix in GROUPS:
        chosen = [metric for metric in left if metric.name.startswith(prefix)]
        left = [metric for metric in left if metric not in chosen]
        parts += [f"## {title}\n", *map(metric_section, chosen)]
    if left:
        names = ", ".join(metric.name for metric in left)
        message = f"In no group: {names}; see GROUPS."
        raise SystemExit(message)
    used = dict.fromkeys(name for metric in CATALOG for name in metric.attributes)
    rows = [(f"`{name}`", f"`{label_name(name)}`", METRIC_ATTRIBUTES[name]) for name in used]
    parts += ["## Attributes\n", table(("attribute", "label", "what it says"), rows)]
    rows_of_states = [(f"`{state.value}`", STATES[state]) for state in SessionState]
    parts += ["## States\n", table(("state", "what it says"), rows_of_states)]
    return "\n".join(parts)


def sample_spans() -> list[ReadableSpan]:
    """What sessions leave that did all there is to do."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    modes: tuple[UserIdMode, ...] = ("plain", "hashed")
    for user_id in modes:
        engine = create_engine("sqlite://", poolclass=StaticPool)
        Session = sessionmaker(engine)  # noqa: N806
        instrument(
            Session,
            name="orders",
            user_id=user_id,
            tracer_provider=provider,
            transaction_spans=True,
            repeated_statements=1,
        )
        with bind(request_id="r-1", user_id="u-1"), Session() as session:
            for _ in range(2):
                session.execute(text("select 1"))
            session.connection().execute(text("create table orders (id integer)"))
            session.commit()
            try:
                session.execute(text("select 1 from nowhere"))
            except OperationalError:
                session.rollback()
            session.execute(text("insert into orders values (:id)"), [{"id": 1}, {"id": 2}])
            session.rollback()
            mirror: Any = metrics_for(session).span_mirror()
            mirror.leaked("overdue")
        engine.dispose()
    return list(exporter.get_finished_spans())


CLIENT_ONLY = {
    "db.operation.name": "str",
    "db.collection.name": "str",
    "server.address": "str",
    "server.port": "int",
    "db.namespace": "str",
    "db.response.status_code": "str",
}
"""What SQLite's own spans and ``text()`` do not have, and other databases' statements do."""


def types_of(spans: Iterable[ReadableSpan]) -> dict[str, str]:
    """The attributes of ``spans``, and the type of each."""
    return {
        name: type(value).__name__
        for span in spans
        for name, value in (span.attributes or {}).items()
    }


def attribute_table(types: dict[str, str]) -> str:
    """The attributes, in the order in which they are declared."""
    unknown = types.keys() - SPAN_ATTRIBUTES.keys()
    if unknown:
        message = f"attributes.py does not say what {', '.join(sorted(unknown))} is."
        raise SystemExit(message)
    rows = [
        (f"`{name}`", f"`{types[name]}`", said)
        for name, said in SPAN_ATTRIBUTES.items()
        if name in types
    ]
    return table(("attribute", "type", "what it says"), rows)


ABOUT_SESSIONS = """\
There is one for each session that did something, from its creation to its close. An attribute
without a value is absent.
"""


def spans_page() -> str:
    """Every span, attribute and event."""
    spans = sample_spans()
    sessions = [span for span in spans if span.name.startswith("session ")]
    others = [span for span in spans if span not in sessions]
    events = {
        event.name: dict(event.attributes or {}) for span in sessions for event in span.events
    }
    event_rows = [
        (f"`{name}`", ", ".join(f"`{key}`" for key in sorted(attributes)), EVENTS[name])
        for name, attributes in sorted(events.items())
    ]
    event_rows.append(
        ("`sqlalchemy.pool.exhausted`", "`db.client.connection.pool.name`, `holders`",
         "On the span of a session that did not get a connection: who held the pool's.")
    )  # fmt: skip
    kind = sessions[0].kind.name.lower()
    statement_kinds = {span.kind.name.lower() for span in others}
    return "\n".join([
        NOTE,
        "# Spans\n",
        "[Tracing](../tracing.md) says which span is whose child, and has the options.\n",
        "## `session {factory}`\n",
        f"Kind {kind}. {ABOUT_SESSIONS}",
        attribute_table(types_of(sessions)),
        "### Events\n",
        table(("event", "attributes", "when"), event_rows),
        "## Statements, `connect`, `COMMIT`, `ROLLBACK`\n",
        f"Kind {', '.join(statement_kinds)}. A statement's span has `db.query.summary` as name.\n",
        attribute_table(types_of(others) | CLIENT_ONLY),
    ])  # fmt: skip


EVENTS = {
    "sqlalchemy.session.state": "Each change of state.",
    "sqlalchemy.session.leak": "The watchdog found that the session leaks.",
    "exception": "A database error, by OpenTelemetry's convention.",
}


def environment_page() -> str:
    """Every environment variable, in the words of the module that reads them."""
    said = (settings.__doc__ or "").replace("``", "`")
    rows = [(f"`{name}`", what) for name, what in ELSEWHERE.items()]
    return "\n".join([
        NOTE,
        "# Environment variables\n",
        said,
        "## Variables of other projects that are used here\n",
        table(("variable", "what it does"), rows),
    ])  # fmt: skip


def command_line_page() -> str:
    """What each command says of itself."""
    os.environ["COLUMNS"] = "88"
    parts = [NOTE, "# Command line\n"]
    for command in ("", "demo", "doctor", "top", "dashboards export", "rules export"):
        said = io.StringIO()
        with suppress(SystemExit), redirect_stdout(said):
            command_line([*command.split(), "--help"])
        title = f"## {command}\n\n" if command else ""
        parts.append(f"{title}```text\n{said.getvalue()}```\n")
    return "\n".join(parts)


def main() -> None:
    """Write the pages, or say which are not up to date."""
    pages = {
        DOCS / "reference" / "metrics.md": metrics_page(),
        DOCS / "reference" / "spans.md": spans_page(),
        DOCS / "reference" / "environment.md": environment_page(),
        DOCS / "reference" / "command-line.md": command_line_page(),
        FLEETS: series.filled(FLEETS.read_text()),
    }
    generated.write(pages, "make reference")


if __name__ == "__main__":
    main()
