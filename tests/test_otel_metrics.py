"""The same names and values by OpenTelemetry as on /metrics, family by family."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import REGISTRY
from reading import value
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from session_metrics_otel import SystemSessionMetrics, bind
from session_metrics_otel.catalog import CATALOG, Kind, label_name
from session_metrics_otel.ledger import LEDGER
from session_metrics_otel.otel_metrics import _HAS_ADVISORY, _HAS_CONTEXT, export_metrics
from session_metrics_otel.series import PENDING_LIMIT

ONE = text("select 1")

# They go by the clock, and it goes on between two readings.
MOVING = {"sqlalchemy.session.oldest_age"}


@pytest.fixture
def reader():
    return InMemoryMetricReader()


@pytest.fixture
def exported(reader):
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    end = export_metrics(provider)
    yield provider
    end()
    provider.shutdown()


@pytest.fixture
def orders(instrumented, provider):
    return instrumented(name="orders", tracer_provider=provider)


def collected(reader):
    """By OpenTelemetry name: the metric."""
    data = reader.get_metrics_data()
    if data is None:
        return {}
    return {
        metric.name: metric
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if scope.scope.name == "session_metrics_otel"
    }


def labels_of(point):
    return {label_name(name): text for name, text in point.attributes.items()}


def use(maker):
    with bind(request_id="r", user_id="u", route="/orders"):
        for n in range(PENDING_LIMIT + 10):
            with maker() as session:
                session.execute(ONE)
                session.commit() if n % 2 else session.rollback()
        with maker() as session, pytest.raises(OperationalError):
            session.execute(text("select * from nowhere"))
        with maker():
            pass
    people = SystemSessionMetrics()
    people.increment_total_sessions()
    people.increment_active_sessions()
    return people


def test_every_family_says_the_same_both_ways(orders, exported, reader):
    open_still = orders()
    open_still.execute(ONE)
    people = use(orders)
    found = collected(reader)
    scraped = {family.name: family for family in REGISTRY.collect()}
    shown = {
        metric.name: scraped[metric.prometheus_name.removesuffix("_total")]
        for metric in CATALOG
        if metric.prometheus_name.removesuffix("_total") in scraped
    }
    assert found.keys() == shown.keys()
    assert {"sqlalchemy.session.creations", "application.sessions"} <= found.keys()
    for metric in CATALOG:
        if metric.name in found.keys() - MOVING:
            same(metric, found[metric.name], shown[metric.name])
    open_still.close()
    del people


def same(metric, exported, family):
    assert exported.unit == metric.unit
    assert exported.description == metric.help
    points = {frozenset(labels_of(point).items()): point for point in exported.data.data_points}
    if metric.kind is not Kind.HISTOGRAM:
        samples = {frozenset(s.labels.items()): s.value for s in family.samples}
        assert {labels: point.value for labels, point in points.items()} == samples
        return
    samples = {(s.name, frozenset(s.labels.items())): s.value for s in family.samples}
    counts = {labels for name, labels in samples if name.endswith("_count")}
    used = {labels for labels in counts if samples[metric.prometheus_name + "_count", labels]}
    assert points.keys() == used
    for labels, point in points.items():
        assert point.count == samples[metric.prometheus_name + "_count", labels]
        assert point.sum == pytest.approx(samples[metric.prometheus_name + "_sum", labels])
        if not _HAS_ADVISORY:  # the oldest OpenTelemetry has buckets of its own
            continue
        assert tuple(point.explicit_bounds) == metric.buckets
        total = 0
        for bound, count in zip((*metric.buckets, float("inf")), point.bucket_counts, strict=True):
            total += count
            le = value(
                metric.prometheus_name + "_bucket",
                le="+Inf" if bound == float("inf") else str(float(bound)),
                **dict(labels),
            )
            assert total == le


def test_kinds(orders, exported, reader):
    use(orders)
    found = collected(reader)
    assert found["sqlalchemy.session.queries"].data.is_monotonic is True
    assert found["sqlalchemy.sessions"].data.is_monotonic is False
    assert not hasattr(found["sqlalchemy.session.peak"].data, "is_monotonic")
    durations = found["sqlalchemy.session.duration"].data.data_points
    assert {labels_of(point)["factory"] for point in durations} == {"orders"}


def test_each_collection_reads_anew(orders, exported, reader):
    for n in (1, 2, 3):
        with orders() as session:
            session.execute(ONE)
        found = collected(reader)
        (queries,) = found["sqlalchemy.session.queries"].data.data_points
        (durations,) = found["sqlalchemy.session.duration"].data.data_points
        assert (queries.value, durations.count) == (n, n)


@pytest.mark.skipif(not _HAS_CONTEXT, reason="the oldest OpenTelemetry has no exemplars")
def test_an_exemplar_leads_to_the_session_s_span(orders, exported, reader, spans):
    with orders() as session:
        session.execute(ONE)
    (session_span,) = [s for s in spans.get_finished_spans() if s.name == "session orders"]
    (point,) = collected(reader)["sqlalchemy.session.duration"].data.data_points
    (exemplar,) = point.exemplars
    assert exemplar.trace_id == session_span.context.trace_id
    assert exemplar.span_id == session_span.context.span_id


def test_what_came_before_is_in_no_histogram(orders, reader):
    with orders() as session:
        session.execute(ONE)
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    end = export_metrics(provider)
    found = collected(reader)
    assert "sqlalchemy.session.duration" not in found
    assert found["sqlalchemy.session.queries"].data.data_points[0].value == 1
    end()
    provider.shutdown()


def test_ending_it(orders, reader):
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    end = export_metrics(provider)
    end()
    with orders() as session:
        session.execute(ONE)
    assert collected(reader) == {}
    assert all(not kept.listeners for kept in LEDGER._series.values() if hasattr(kept, "listeners"))
    provider.shutdown()


def test_is_refused_where_each_would_be_on_metrics_twice():
    class PrometheusExporter:
        def collect(self):
            return []

    PrometheusExporter.__module__ = "opentelemetry.exporter.prometheus"
    collector = PrometheusExporter()
    REGISTRY.register(collector)
    try:
        with pytest.raises(ValueError, match="twice"):
            export_metrics(MeterProvider(shutdown_on_exit=False))
    finally:
        REGISTRY.unregister(collector)
