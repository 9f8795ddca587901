"""Ledger -> OpenTelemetry instruments: the names and values of /metrics, by OTLP or otherwise.

Counts and gauges are read when a reader collects. The SDK has no histogram that is read, so what
goes into a histogram's buckets is recorded in its instrument as it does. The reading at the start
of a collection puts all that is pending there first, so both ways out say the same.
"""

from __future__ import annotations

import inspect
import threading
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics, trace
from opentelemetry.metrics import Histogram, Meter, Observation
from prometheus_client import REGISTRY

from .catalog import CATALOG, Kind
from .faults import caught
from .ledger import LEDGER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.context import Context
    from opentelemetry.metrics import CallbackOptions, MeterProvider

    from .catalog import Metric
    from .ledger import Snapshot
    from .series import Distribution, Exemplar, Labels

# Older releases of the API, which are supported, have neither.
_ADVISORY = "explicit_bucket_boundaries_advisory"
_HAS_ADVISORY = _ADVISORY in inspect.signature(Meter.create_histogram).parameters
_HAS_CONTEXT = "context" in inspect.signature(Histogram.record).parameters


def export_metrics(meter_provider: MeterProvider | None = None) -> Callable[[], None]:
    """Export every metric of the catalogue through ``meter_provider``, from here on.

    Call it once, before the first session: the exported histograms do not have measurements that
    were taken before. They have the catalogue's buckets if the OpenTelemetry API takes buckets from
    an instrument (1.30 and newer).

    Args:
        meter_provider: Where instruments come from; if None, the application's own (global) one.

    Returns:
        A call that ends it.

    Raises:
        ValueError: OpenTelemetry's Prometheus exporter shows its metrics in prometheus_client's
            default registry, which already has them.
    """
    _refuse_twice()
    meter = metrics.get_meter("session_metrics_otel", meter_provider=meter_provider)
    reading = _Reading()
    histograms = {}
    for metric in CATALOG:
        if metric.kind is Kind.HISTOGRAM:
            histograms[metric] = _histogram(meter, metric)
        else:
            create = getattr(meter, _CREATE[metric.kind])
            create(metric.name, [reading.callback(metric)], metric.unit, metric.help)

    def listener(metric: Metric, labels: Labels) -> Callable[..., None]:
        return _recorder(histograms[metric], _attributes(metric, labels))

    stop = LEDGER.listen(listener)

    def end() -> None:
        reading.ended = True
        stop()

    return end


_CREATE = {
    Kind.COUNTER: "create_observable_counter",
    Kind.UP_DOWN_COUNTER: "create_observable_up_down_counter",
    Kind.GAUGE: "create_observable_gauge",
}


class _Reading:
    """One snapshot of the ledger for all instruments of a collection."""

    def __init__(self) -> None:
        self.ended = False
        self._lock = threading.Lock()
        self._snapshot: Snapshot = {}

    def callback(self, metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
        """What an instrument of ``metric`` calls to be read."""

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            try:
                series = {} if self.ended else self._series(metric)
                return [
                    Observation(value, _attributes(metric, labels))  # type: ignore[arg-type]
                    for labels, value in series.items()
                ]
            except Exception as fault:  # noqa: BLE001 - a collection is the application's too
                caught("otel metrics", fault)
                return []

        return observe

    def _series(self, metric: Metric) -> dict[Labels, float | Distribution]:
        with self._lock:
            # Whoever comes again begins the next collection.
            if metric not in self._snapshot:
                self._snapshot = LEDGER.snapshot()
            return self._snapshot.pop(metric)


def _attributes(metric: Metric, labels: Labels) -> dict[str, str | int]:
    return {
        name: int(text) if name == "server.port" else text  # the one number, by the conventions
        for name, text in zip(metric.attributes, labels, strict=True)
        if text
    }


def _histogram(meter: Meter, metric: Metric) -> Histogram:
    advice: dict[str, Any] = {_ADVISORY: metric.buckets} if _HAS_ADVISORY else {}
    return meter.create_histogram(metric.name, metric.unit, metric.help, **advice)


def _recorder(
    instrument: Histogram, attributes: dict[str, str | int]
) -> Callable[[list[float], dict[int, Exemplar]], None]:
    def record(values: list[float], exemplars: dict[int, Exemplar]) -> None:
        try:
            traced = {kept.value: kept for kept in exemplars.values()} if _HAS_CONTEXT else {}
            for value in values:
                kept = traced.get(value)
                if kept is None:
                    instrument.record(value, attributes)
                else:
                    instrument.record(value, attributes, _context(kept))
        except Exception as fault:  # noqa: BLE001 - a session may be what filled the histogram
            caught("otel metrics", fault)

    return record


def _context(exemplar: Exemplar) -> Context:
    """A context in which the SDK finds the span that the exemplar leads to."""
    span = trace.SpanContext(
        exemplar.trace_id,
        exemplar.span_id,
        is_remote=False,
        trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(span))


def _refuse_twice() -> None:
    for collector in list(REGISTRY._collector_to_names):
        if type(collector).__module__.startswith("opentelemetry.exporter.prometheus"):
            message = (
                "OpenTelemetry's Prometheus exporter is on prometheus_client's default registry, "
                "where these metrics are already: each would be on /metrics twice. Leave out "
                "export_metrics(), or use a reader that sends OTLP."
            )
            raise ValueError(message)
