"""A session opened, used for one statement, committed and closed: bare, and with what users pick.

In-memory SQLite answers at once, so this is the worst case there is: on a database across a network
the same microseconds are a far smaller part. Variants take turns in short rounds, and what is
printed is the median over rounds of each one's ratio to the bare session of the same round.
"""

from __future__ import annotations

import timeit
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from sqlalchemy import create_engine, event, text
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import StaticPool

from session_metrics_otel import instrument

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 60
SESSIONS = 200
ONE = text("select 1")


class Discard(SpanExporter):
    """Exports to nowhere, so that only the making of spans is measured."""

    def export(self, spans: Any) -> SpanExportResult:  # noqa: ARG002
        """Drop them."""
        return SpanExportResult.SUCCESS


def factory() -> sessionmaker[Any]:
    """A sessionmaker on a database of its own."""
    engine = create_engine(
        "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
    )
    return sessionmaker(engine)


def bare() -> sessionmaker[Any]:
    """SQLAlchemy alone."""
    return factory()


def by_hand() -> sessionmaker[Any]:
    """What one finds in many services: listeners that touch prometheus_client children."""
    maker, registry = factory(), CollectorRegistry()
    opened = Counter("sessions_opened", "x", ["factory"], registry=registry)
    active = Gauge("sessions_active", "x", ["factory"], registry=registry)
    commits = Counter("commits", "x", ["factory"], registry=registry)
    queries = Counter("queries", "x", ["factory"], registry=registry)
    seconds = Histogram("query_seconds", "x", ["factory"], registry=registry)
    engine = maker.kw["bind"]

    @event.listens_for(maker, "after_begin")
    def _begin(*_: Any) -> None:
        opened.labels("orders").inc()
        active.labels("orders").inc()

    @event.listens_for(maker, "after_commit")
    def _commit(_: Any) -> None:
        commits.labels("orders").inc()

    @event.listens_for(maker, "after_transaction_end")
    def _end(*_: Any) -> None:
        active.labels("orders").dec()

    @event.listens_for(engine, "before_cursor_execute")
    def _before(connection: Any, *_: Any) -> None:
        connection.info["started"] = timeit.default_timer()

    @event.listens_for(engine, "after_cursor_execute")
    def _after(connection: Any, *_: Any) -> None:
        queries.labels("orders").inc()
        seconds.labels("orders").observe(timeit.default_timer() - connection.info["started"])

    return maker


def ours(**options: Any) -> Callable[[], sessionmaker[Any]]:
    """This package, with options."""

    def make() -> sessionmaker[Any]:
        maker = factory()
        instrument(maker, name="orders", **options)
        return maker

    return make


def sampled() -> TracerProvider:
    """A provider that keeps every span."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Discard()))
    return provider


def variants() -> dict[str, Callable[[], sessionmaker[Any]]]:
    """What is measured, by the name it has in the table."""
    unsampled = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    return {
        "SQLAlchemy alone": bare,
        "listeners by hand, prometheus_client": by_hand,
        "metrics, spans off": ours(spans="off"),
        "metrics, no tracer provider": ours(),
        "metrics, spans unsampled": ours(tracer_provider=unsampled),
        "metrics, spans sampled": ours(tracer_provider=sampled()),
    }


def work(maker: sessionmaker[Any]) -> Callable[[], None]:
    """One session."""

    def run() -> None:
        with maker() as session:
            session.execute(ONE)
            session.commit()

    return run


def measure() -> dict[str, tuple[float, float, float, float]]:
    """By variant: microseconds at best, median ratio to bare, and the ratio's quartiles."""
    works = {name: work(make()) for name, make in variants().items()}
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, run in works.items():
            times[name].append(timeit.timeit(run, number=SESSIONS) / SESSIONS * 1e6)
    base = times["SQLAlchemy alone"]
    found = {}
    for name, taken in times.items():
        ratios = [a / b for a, b in zip(taken, base, strict=True)]
        low, _, high = quantiles(ratios, n=4) if name != "SQLAlchemy alone" else (1.0, 1.0, 1.0)
        found[name] = (min(taken), median(ratios), low, high)
    return found


def table() -> str:
    """The measurements as Markdown."""
    lines = ["| | µs | ratio | quartiles |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {best:.0f} | {ratio:.2f} | {low:.2f} - {high:.2f} |"
        for name, (best, ratio, low, high) in measure().items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
