"""Tracing that raises, hangs or is shut down: the application gets what it would get without."""

from __future__ import annotations

import threading

import pytest
from faults.outcomes import FACTORY, bare, instrumented
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from reading import counted, value
from sqlalchemy.exc import OperationalError

from session_metrics_otel.hooks.comments import SqlComments


class Broken(RuntimeError):
    pass


def broken(*_args, **_options):
    raise Broken("telemetry is broken")


class BrokenProcessor(SpanProcessor):
    on_start = on_end = broken


class BrokenEnd(SpanProcessor):
    on_end = broken


class BrokenExporter(SpanExporter):
    export = broken


class BrokenProvider(trace.NoOpTracerProvider):
    get_tracer = broken


class BrokenTracer(trace.NoOpTracerProvider):
    def get_tracer(self, *_args, **_options):
        tracer = trace.NoOpTracer()
        tracer.start_span = broken
        return tracer


def with_processor(processor):
    provider = TracerProvider()
    provider.add_span_processor(processor)
    return provider


@pytest.fixture
def whole():
    """What ``shop`` counts, whatever becomes of its spans."""
    return {
        "creations success": 3,
        "creation_duration_seconds_count": 3,
        "duration_seconds_count": 3,
        "queries_per_session_count": 3,
        "queries": 5,
        "peak": 1,
        "transactions committed": 1,
        "transactions rolled_back": 2,
        "transactions closed": 2,
        "transaction_duration_seconds_count committed": 1,
        "transaction_duration_seconds_count rolled_back": 2,
        "transaction_duration_seconds_count closed": 2,
        "errors IntegrityError": 1,
        "errors OperationalError": 1,
        "state_transitions created active": 3,
        "state_transitions active committed": 1,
        "state_transitions committed active": 1,
        "state_transitions active error": 2,
        "state_transitions error rolled_back": 1,
        "state_transitions rolled_back active": 1,
        "state_transitions active rolled_back": 1,
        "state_transitions active closing": 1,
        "state_transitions error closing": 1,
        "state_transitions rolled_back closing": 1,
        "state_transitions closing closed": 3,
    }


@pytest.mark.faults
@pytest.mark.parametrize("spans", ["span", "attributes"])
@pytest.mark.parametrize(
    "make",
    [
        BrokenProvider,
        BrokenTracer,
        lambda: with_processor(BrokenProcessor()),
        lambda: with_processor(BrokenEnd()),
        lambda: with_processor(SimpleSpanProcessor(BrokenExporter())),
        lambda: with_processor(BatchSpanProcessor(BrokenExporter())),
    ],
    ids=["provider", "tracer", "processor", "end", "exporter", "batch exporter"],
)
def test_broken_tracing_changes_no_result_and_no_count(new_engine, make, spans, whole, caplog):
    provider = make()
    assert instrumented(
        new_engine, tracer_provider=provider, spans=spans, transaction_spans=True
    ) == bare(new_engine)
    assert counted(FACTORY) == whole
    ours = [record for record in caplog.records if record.name == "session_metrics_otel"]
    assert len(ours) <= 2  # one a component
    if isinstance(provider, TracerProvider):
        provider.shutdown()


@pytest.mark.faults
@pytest.mark.parametrize(
    "options", [{"statement_hook": broken}, {"sql_comments": SqlComments(tags=broken)}]
)
def test_a_hook_that_raises_changes_no_result_and_no_count(
    new_engine, provider, spans, options, whole
):
    assert instrumented(new_engine, tracer_provider=provider, **options) == bare(new_engine)
    statements = [span for span in spans.get_finished_spans() if "db.query.text" in span.attributes]
    assert len(statements) == 5
    assert counted(FACTORY) == whole
    component = "tracing" if "statement_hook" in options else "statements"
    # Once for each statement.
    faults = value("sqlalchemy_session_telemetry_faults_total", component=component)
    assert faults == 5


@pytest.mark.faults
def test_a_fault_logs_nothing_of_the_error_that_it_came_upon(new_engine, provider, caplog):
    def hook(_span, context):
        raise Broken("hook")

    def work(maker):
        from faults.outcomes import items
        from sqlalchemy import insert

        with maker() as session:
            session.execute(insert(items).values(name="s3cret"))
            with pytest.raises(Exception, match="s3cret"):
                session.execute(insert(items).values(name="s3cret"))

    instrumented(new_engine, work, tracer_provider=provider, statement_hook=hook)
    assert "Broken: hook" in caplog.text
    assert "s3cret" not in caplog.text


def test_an_exporter_that_hangs_holds_no_session_up(new_engine, whole):
    going_on = threading.Event()
    reached = threading.Event()

    class Hanging(SpanExporter):
        def export(self, spans):
            reached.set()
            going_on.wait(30)
            return SpanExportResult.SUCCESS

    provider = with_processor(BatchSpanProcessor(Hanging(), schedule_delay_millis=1))
    try:
        assert instrumented(new_engine, tracer_provider=provider) == bare(new_engine)
        assert reached.wait(30)
        assert not going_on.is_set()
        assert counted(FACTORY) == whole
    finally:
        going_on.set()
        provider.shutdown()


def test_a_provider_that_was_shut_down_changes_nothing(new_engine, provider, whole):
    provider.shutdown()
    assert instrumented(new_engine, tracer_provider=provider) == bare(new_engine)
    assert counted(FACTORY) == whole


def test_what_is_raised_without_us_is_what_a_caller_catches(new_engine):
    # The comparison itself can fail: an uninstrumented run does raise.
    raised = [outcome[1] for outcome in bare(new_engine) if outcome[0] == "raised"]
    assert OperationalError in raised
    assert ZeroDivisionError in raised
