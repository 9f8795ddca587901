"""Run an incident with the usual instrumentation beside ours, on the same /metrics.

    python examples/incidents/usual.py spans.jsonl dependency_without_finally --broken

Usual are opentelemetry-instrumentation-sqlalchemy, which takes no SQLAlchemy but 2.0, and gauges of
the pool as many services write them by hand. Each span is a line of JSON in the file named first.
"""

import runpy
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any

import sqlalchemy
import sqlalchemy.ext.asyncio
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from prometheus_client import REGISTRY, Counter, Gauge, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import Pool, event


class UsageCollector(Collector):
    """``db.client.connections.usage``, the one metric that the instrumentation has."""

    def __init__(self, reader: InMemoryMetricReader) -> None:
        self._reader = reader

    def collect(self) -> Iterable[Metric]:
        usage = GaugeMetricFamily(
            "usual_connections_usage", "By the instrumentation.", labels=["pool", "state"]
        )
        data = self._reader.get_metrics_data()
        for resource in data.resource_metrics if data is not None else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        if isinstance(point, NumberDataPoint):
                            said = point.attributes or {}
                            of = [str(said["pool.name"]), str(said["state"])]
                            usage.add_metric(of, point.value)
        yield usage


def watch_by_hand(pool: Pool) -> None:
    """Gauges that ask the pool at a scrape, and a counter in a listener."""
    checkouts = Counter("usual_pool_checkouts", "Connections taken.")
    event.listen(pool, "checkout", lambda *_: checkouts.inc())
    for name in ("size", "checkedout", "overflow"):
        if hasattr(pool, name):  # NullPool has none of them
            Gauge(f"usual_pool_{name}", f"{name}()").set_function(getattr(pool, name))


def watching_its_engine(create: Callable[..., Any]) -> Callable[..., Any]:
    """``create``, of which the first engine that the program makes is watched by hand.

    There is but one, one would think: prometheus_client refuses a second gauge of the name.
    """
    watched = False

    @wraps(create)
    def create_and_watch(*args: Any, **kwargs: Any) -> Any:
        nonlocal watched
        engine = create(*args, **kwargs)
        if sys._getframe(1).f_globals["__name__"] == "__main__" and not watched:
            watched = True
            watch_by_hand(engine.pool)
        return engine

    return create_and_watch


def main() -> None:
    spans, name, *arguments = sys.argv[1:]
    reader, tracers = InMemoryMetricReader(), TracerProvider()
    lines = Path(spans).open("w", encoding="utf-8", buffering=1)  # noqa: SIM115 - until the end
    exporter = ConsoleSpanExporter(out=lines, formatter=lambda span: span.to_json(None) + "\n")
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    SQLAlchemyInstrumentor().instrument(
        tracer_provider=tracers, meter_provider=MeterProvider([reader])
    )
    REGISTRY.register(UsageCollector(reader))
    for module, function in [
        (sqlalchemy, "create_engine"),
        (sqlalchemy.ext.asyncio, "create_async_engine"),
    ]:
        setattr(module, function, watching_its_engine(getattr(module, function)))
    program = Path(__file__).with_name(f"{name}.py")
    sys.argv = [str(program), *arguments]
    runpy.run_path(str(program), run_name="__main__")


if __name__ == "__main__":
    main()
