"""The demo, with its metrics pushed by OTLP as well: ``python -m servers.pushing_demo demo``."""

from __future__ import annotations

from opentelemetry import metrics
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

from session_metrics_otel.cli import main
from session_metrics_otel.otel_metrics import export_metrics

if __name__ == "__main__":
    metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())]))
    export_metrics()
    main()
