"""What is measured beside what: SQLAlchemy bare, what users pick today, and this package.

A peer is a function that instruments an engine and the sessionmaker made for it.
"""

from __future__ import annotations

import atexit
import os
import tempfile
import timeit
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler, TraceIdRatioBased
from sqlalchemy import event

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    Peer = Callable[[Engine, Any], None]

BARE = "SQLAlchemy alone"
METRICS = "ours: all metrics"
REPEATS = "ours: all metrics, repeated statements"
SAMPLED = "ours: all metrics, session and statement span sampled"
MANY = "ours: all metrics, multi-process mode"


class Discard(SpanExporter):
    """Exports to nowhere, so that only the making of spans is measured."""

    def export(self, spans: Any) -> SpanExportResult:  # noqa: ARG002
        """Drop them."""
        return SpanExportResult.SUCCESS


def provider(sampler: Sampler) -> TracerProvider:
    """A provider as an application has it: a batch processor behind ``sampler``."""
    made = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    made.add_span_processor(BatchSpanProcessor(Discard()))
    return made


def bare(engine: Engine, maker: Any) -> None:
    """Nothing."""


def by_hand(engine: Engine, maker: Any) -> None:
    """What one finds in many services: listeners that touch prometheus_client children."""
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

    registry = CollectorRegistry()
    opened = Counter("sessions_opened", "x", ["factory"], registry=registry)
    active = Gauge("sessions_active", "x", ["factory"], registry=registry)
    commits = Counter("commits", "x", ["factory"], registry=registry)
    queries = Counter("queries", "x", ["factory"], registry=registry)
    seconds = Histogram("query_seconds", "x", ["factory"], registry=registry)
    target = getattr(maker, "class_", maker)
    target = getattr(target, "sync_session_class", target)

    @event.listens_for(target, "after_begin")
    def _begin(*_: Any) -> None:
        opened.labels("orders").inc()
        active.labels("orders").inc()

    @event.listens_for(target, "after_commit")
    def _commit(_: Any) -> None:
        commits.labels("orders").inc()

    @event.listens_for(target, "after_transaction_end")
    def _end(*_: Any) -> None:
        active.labels("orders").dec()

    @event.listens_for(engine, "before_cursor_execute")
    def _before(connection: Any, *_: Any) -> None:
        connection.info["started"] = timeit.default_timer()

    @event.listens_for(engine, "after_cursor_execute")
    def _after(connection: Any, *_: Any) -> None:
        queries.labels("orders").inc()
        seconds.labels("orders").observe(timeit.default_timer() - connection.info["started"])


def empty_hooks(engine: Engine, maker: Any) -> None:
    """The places where this package looks on, and nothing done there: the least it could cost."""
    kind, pool, context = maker.class_, type(engine.pool), engine.dialect.execution_ctx_cls
    made = kind.__init__

    class Observed(kind):  # type: ignore[misc,valid-type]
        def close(self) -> None:
            kind.close(self)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        self.__class__ = Observed
        made(self, *args, **kwargs)

    class Context(context):  # type: ignore[misc,valid-type]
        def pre_exec(self) -> None:
            pass

        def post_exec(self) -> None:
            pass

    class Pool(pool):  # type: ignore[misc,valid-type]
        def connect(self) -> Any:
            return pool.connect(self)

        def _do_return_conn(self, record: Any) -> None:
            pool._do_return_conn(self, record)

    kind.__init__ = __init__
    event.listen(kind, "after_begin", lambda *_: None)
    event.listen(kind, "after_commit", lambda _: None)
    event.listen(engine, "handle_error", lambda _: None)
    engine.dialect.execution_ctx_cls = Context
    engine.pool.__class__ = Pool


def ours(sampler: Sampler | None = None, **options: Any) -> Peer:
    """This package; with spans where a sampler is given."""

    def instrument(_: Engine, maker: Any) -> None:
        import session_metrics_otel

        if sampler is not None:
            options["tracer_provider"] = provider(sampler)
        session_metrics_otel.instrument(maker, name="orders", **options)

    return instrument


def without_sessions(*, holder_lines: bool = True) -> Peer:
    """This package's hooks on pools and statements, and none on sessions."""

    def instrument(engine: Engine, _: Any) -> None:
        from session_metrics_otel.hooks import pools, statements

        pools.hook(engine, holder_lines=holder_lines)
        statements.hook(engine)

    return instrument


def many_processes(engine: Engine, maker: Any) -> None:
    """This package where each event is written to a file that other processes read."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder.name
    ours(spans="off")(engine, maker)


def usual(sampler: Sampler | None = None) -> Peer:
    """opentelemetry-instrumentation-sqlalchemy, which takes SQLAlchemy 2.0 and no newer."""

    def instrument(engine: Engine, _: Any) -> None:
        from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor

        if sampler is not None:
            trace.set_tracer_provider(provider(sampler))
        SQLAlchemyInstrumentor().instrument(engine=engine)

    return instrument


PEERS: dict[str, Peer] = {
    BARE: bare,
    "listeners by hand, prometheus_client": by_hand,
    "our hooks, empty": empty_hooks,
    METRICS: ours(spans="off"),
    REPEATS: ours(spans="off", repeated_statements=10),
    "ours: pools and statements alone": without_sessions(),
    "ours: pools and statements alone, no line of code": without_sessions(holder_lines=False),
    "ours: all metrics, no line of code in the report": ours(spans="off", holder_lines=False),
    "ours: all metrics, no tracer provider": ours(),
    "ours: all metrics, spans unsampled": ours(ALWAYS_OFF),
    SAMPLED: ours(ALWAYS_ON),
    "ours: all metrics, session span sampled": ours(ALWAYS_ON, statement_spans=False),
    MANY: many_processes,
    "opentelemetry-instrumentation-sqlalchemy, no SDK": usual(),
    "opentelemetry-instrumentation-sqlalchemy, 1 % sampled": usual(TraceIdRatioBased(0.01)),
    "opentelemetry-instrumentation-sqlalchemy, all sampled": usual(ALWAYS_ON),
}
"""By the name that the tables have."""

EVERYWHERE = list(PEERS)[:13]
"""Those that every SQLAlchemy takes."""

FEW = [BARE, "listeners by hand, prometheus_client", METRICS, SAMPLED]
"""Those that are measured in every work."""
