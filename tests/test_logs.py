"""What log records say of the session and the trace that they were written in."""

from __future__ import annotations

import asyncio
import logging

import pytest
from opentelemetry import trace
from reading import value
from sqlalchemy import text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from session_metrics_otel import bind, instrument, metrics_for, uninstrument
from session_metrics_otel.hooks import current
from session_metrics_otel.logs import correlate_logs

ONE = text("select 1")
FIELDS = ("session_id", "request_id", "trace_id", "span_id")
NOTHING = ("", "", "", "")


@pytest.fixture
def said(caplog):
    """What the record of a message just written says."""
    caplog.set_level(logging.INFO, "application")

    def said(message="hello"):
        logging.getLogger("application").info(message)
        return tuple(getattr(caplog.records[-1], field) for field in FIELDS)

    return said


@pytest.fixture
def correlated():
    before = logging.Logger.makeRecord
    end = correlate_logs()
    yield
    end()
    assert logging.Logger.makeRecord is before
    assert current.followers == []


@pytest.fixture
def orders(instrumented, provider):
    return instrumented(name="orders", tracer_provider=provider)


def ids(span):
    context = span.get_span_context()
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


@pytest.mark.usefixtures("correlated")
class TestCorrelation:
    def test_outside_of_everything(self, said):
        assert said() == NOTHING

    def test_within_a_session(self, orders, said, spans):
        with bind(request_id="r-1"), orders() as session:
            record = metrics_for(session)
            assert said() == (record.session_id, "r-1", "", "")  # it has no span yet
            session.execute(ONE)
            during = said()
        (span,) = [found for found in spans.get_finished_spans() if found.name == "session orders"]
        assert during == (record.session_id, "r-1", *ids(span))
        assert said() == NOTHING

    def test_sessions_within_one_another(self, orders, said):
        with orders() as outer:
            with orders() as inner:
                assert said()[0] == metrics_for(inner).session_id
            assert said()[0] == metrics_for(outer).session_id
        assert said() == NOTHING

    def test_a_trace_without_a_session(self, provider, said):
        with provider.get_tracer("application").start_as_current_span("request") as span:
            assert said() == ("", "", *ids(span))
        assert trace.get_current_span() is trace.INVALID_SPAN

    def test_what_the_application_says_itself_comes_first(self, orders, caplog):
        caplog.set_level(logging.INFO, "application")
        with bind(request_id="r-1"), orders() as session:
            extra = {"request_id": "its own", "trace_id": "another"}
            logging.getLogger("application").info("hello", extra=extra)
            (record,) = caplog.records
            assert record.session_id == metrics_for(session).session_id
        assert (record.request_id, record.trace_id, record.span_id) == ("its own", "another", "")

    @pytest.mark.faults
    def test_a_span_that_raises_is_no_trouble_of_who_logs(self, said, caplog):
        class Broken(trace.NonRecordingSpan):
            def get_span_context(self):
                raise RuntimeError("broken")

        with trace.use_span(Broken(trace.INVALID_SPAN_CONTEXT)):
            assert said() == NOTHING
            assert said() == NOTHING
        assert caplog.text.count("Session telemetry (logs) failed") == 1
        assert value("sqlalchemy_session_telemetry_faults_total", component="logs") == 3

    def test_asyncio_tasks_have_each_their_own(self, said, provider, tmp_path):
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{tmp_path}/db", poolclass=AsyncAdaptedQueuePool
        )
        maker = async_sessionmaker(engine)
        instrument(maker, tracer_provider=provider)

        async def work(n):
            with bind(request_id=str(n)):
                async with maker() as session:
                    await session.execute(ONE)
                    await asyncio.sleep(0)
                    assert said()[:2] == (metrics_for(session).session_id, str(n))

        async def main():
            await asyncio.gather(*(work(n) for n in range(4)))
            await engine.dispose()

        asyncio.run(main())
        uninstrument(maker)


def test_nothing_is_kept_while_nobody_asks(orders):
    with orders():
        assert current.current_session() is None


def test_what_came_on_top_stays(monkeypatch):
    before = logging.Logger.makeRecord
    end = correlate_logs()
    ours = logging.Logger.makeRecord

    def on_top(*arguments, **options):
        return ours(*arguments, **options)

    monkeypatch.setattr(logging.Logger, "makeRecord", on_top)
    end()
    assert logging.Logger.makeRecord is on_top
    monkeypatch.setattr(logging.Logger, "makeRecord", before)
