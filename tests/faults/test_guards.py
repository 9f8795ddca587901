"""Each part of the instrumentation breaks in turn: the application gets what it would get."""

from __future__ import annotations

import pytest
from faults.outcomes import bare, instrumented, outcome_of, shop
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import REGISTRY
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import QueuePool

from session_metrics_otel import (
    exhaustion_reports,
    instrument,
    otel_metrics,
    uninstrument,
)
from session_metrics_otel.hooks import holders, pools, statements
from session_metrics_otel.hooks.observed_record import ObservedSessionMetrics
from session_metrics_otel.hooks.statement_spans import StatementSpans
from session_metrics_otel.tracing import SpanMirror

pytestmark = pytest.mark.faults


def broken(*_args, **_options):
    raise RuntimeError("telemetry is broken")


def faults():
    """The components that failed, as /metrics says."""
    return {
        sample.labels["component"]
        for family in REGISTRY.collect()
        if family.name == "sqlalchemy_session_telemetry_faults"
        for sample in family.samples
        if sample.name.endswith("_total") and sample.value
    }


@pytest.mark.parametrize(
    ("owner", "name", "component"),
    [
        (ObservedSessionMetrics, "move", "sessions"),
        (ObservedSessionMetrics, "ended_transaction", "sessions"),
        (ObservedSessionMetrics, "note_error", "errors"),
        (statements, "error_text", "errors"),
        (statements, "series_of", "statements"),
        (StatementSpans, "start", "statements"),
        (pools, "Holder", "pools"),
        (pools, "place_of_checkout", "pools"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__.rpartition(".")[2],
)
def test_what_breaks_is_counted_and_the_work_goes_on(
    new_engine, monkeypatch, provider, owner, name, component
):
    expected = bare(new_engine)
    monkeypatch.setattr(owner, name, broken)
    assert instrumented(new_engine, shop, tracer_provider=provider) == expected
    assert component in faults()


def starve(new_engine, tmp_path, name):
    """What somebody is told who asks a pool in vain, with and without a session."""
    engine = new_engine(
        f"sqlite:///{tmp_path}/{name}", poolclass=QueuePool, pool_size=1, max_overflow=0,
        pool_timeout=0,
    )  # fmt: skip
    maker = sessionmaker(engine)
    return engine, maker, lambda: [
        outcome_of(lambda: maker().execute(text("select 1"))),
        outcome_of(engine.connect),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("owner", "name"), [(pools, "report_exhaustion"), (pools, "describe_waiter")]
)
def test_who_waits_in_vain_is_told_as_ever(new_engine, tmp_path, monkeypatch, owner, name):
    engine, _, ask = starve(new_engine, tmp_path, "bare")
    with engine.connect():
        expected = ask()
    monkeypatch.setattr(owner, name, broken)
    engine, maker, ask = starve(new_engine, tmp_path, "observed")
    instrument(maker, name="orders")
    with engine.connect():
        assert ask() == expected
    assert "pools" in faults()
    uninstrument(maker)


def test_a_report_is_made_without_the_summary_that_breaks(new_engine, tmp_path, monkeypatch):
    from session_metrics_otel.hooks import queries

    _, maker, ask = starve(new_engine, tmp_path, "db")
    instrument(maker, name="orders")
    with maker() as holding:
        holding.execute(text("select 1"))
        monkeypatch.setattr(queries, "_query_of", broken)
        monkeypatch.setattr(queries, "KEPT", "_none")
        ask()
    (report,) = exhaustion_reports()
    assert [holder["last_statement"] for holder in report["holders"]] == [""]
    assert "queries" in faults()
    uninstrument(maker)
    assert holders.exhaustion_reports() == [report]


def test_a_span_that_is_the_applications_and_breaks(new_engine, monkeypatch, provider):
    maker = sessionmaker(new_engine())
    instrument(maker, name="orders")
    span = provider.get_tracer("application").start_span("request")
    mirror = SpanMirror(span, owned=False)
    for method in ("set_attribute", "add_event"):
        monkeypatch.setattr(span, method, broken)
    mirror.leaked("overdue")
    mirror.counted("query_count", 1)
    assert faults() == {"tracing"}
    uninstrument(maker)


def test_what_breaks_while_opentelemetry_collects(new_engine, monkeypatch):
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    end = otel_metrics.export_metrics(provider)
    maker = sessionmaker(new_engine())
    instrument(maker, name="orders")
    with maker() as session:
        assert session.scalar(text("select 1")) == 1
    monkeypatch.setattr(otel_metrics, "_attributes", broken)
    reader.get_metrics_data()
    assert faults() == {"otel metrics"}
    uninstrument(maker)
    end()
    provider.shutdown()


def test_an_engine_that_cannot_be_instrumented_is_made_all_the_same(monkeypatch):
    pytest.importorskip("opentelemetry.instrumentation.instrumentor")
    from session_metrics_otel import autoload

    instrumentor = autoload.SessionMetricsInstrumentor()
    instrumentor.instrument()
    try:
        monkeypatch.setattr(autoload, "instrument", broken)
        engine = create_engine("sqlite://")
        with engine.connect() as connection:
            assert connection.scalar(text("select 1")) == 1
        engine.dispose()
        assert faults() == {"autoload"}
    finally:
        monkeypatch.undo()
        instrumentor.uninstrument()
