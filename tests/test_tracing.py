from __future__ import annotations

import asyncio
import gc
import hashlib
import threading
from datetime import datetime, timezone
from functools import partial

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind, StatusCode
from reading import counted, value
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from session_metrics_otel import bind, instrument, metrics_for, uninstrument

ONE = text("select 1")


@pytest.fixture
def make(instrumented):
    """Instruments a factory called ``traced`` with the options given."""
    # What is tested here is the session's own span.
    return partial(instrumented, name="traced", statement_spans=False)


def served(spans, factory):
    """For each session's span: the name of the request's that it is below, and its request id."""
    found = spans.get_finished_spans()
    names = {span.context.span_id: span.name for span in found}
    return sorted(
        (names[span.parent.span_id], span.attributes["sqlalchemy.session.request_id"])
        for span in found
        if span.name == f"session {factory}"
    )


def moves(span):
    return [
        (event.attributes["from"], event.attributes["to"])
        for event in span.events
        if event.name == "sqlalchemy.session.state"
    ]


class TestSessionSpan:
    def test_name_kind_times_and_attributes(self, make, provider, spans):
        maker = make(tracer_provider=provider)
        with bind(request_id="r-1"), maker() as session:
            record = metrics_for(session)
            session.execute(ONE)
            session.commit()
        (span,) = spans.get_finished_spans()
        assert span.name == "session traced"
        assert span.kind is SpanKind.INTERNAL
        assert span.parent is None
        began = datetime.fromtimestamp(span.start_time // 1000 / 1e6, tz=timezone.utc)
        assert began == record.created_at
        assert dict(span.attributes) == {
            "sqlalchemy.session.id": record.session_id,
            "sqlalchemy.session.factory": "traced",
            "sqlalchemy.session.request_id": "r-1",
            "sqlalchemy.session.state": "closed",
            "sqlalchemy.session.query_count": 1,
            "sqlalchemy.session.transaction_count": 1,
            "sqlalchemy.session.error_count": 0,
            "sqlalchemy.session.total_time_ms": record.total_time_ms,
        }
        assert span.status.status_code is StatusCode.UNSET
        assert span.instrumentation_scope.name == "session_metrics_otel"

    def test_one_event_for_each_transition_in_order(self, make, provider, spans):
        with make(tracer_provider=provider)() as session:
            session.execute(ONE)
            session.commit()
            session.execute(ONE)
            session.rollback()
        (span,) = spans.get_finished_spans()
        assert moves(span) == [
            ("created", "active"),
            ("active", "committed"),
            ("committed", "active"),
            ("active", "rolled_back"),
            ("rolled_back", "closing"),
            ("closing", "closed"),
        ]

    def test_an_error_records_the_exception_and_sets_the_status(self, make, provider, spans):
        with make(tracer_provider=provider)() as session, pytest.raises(OperationalError):
            session.execute(text("select :secret from nowhere"), {"secret": "hunter2"})
        (span,) = spans.get_finished_spans()
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == "no such table: nowhere"
        assert span.attributes["sqlalchemy.session.last_error"] == "no such table: nowhere"
        assert span.attributes["sqlalchemy.session.error_count"] == 1
        (exception,) = (event for event in span.events if event.name == "exception")
        assert exception.attributes["exception.type"] == "sqlite3.OperationalError"
        assert "hunter2" not in span.to_json()

    def test_a_session_that_did_nothing_has_none(self, make, provider, spans):
        with make(tracer_provider=provider)():
            pass
        assert spans.get_finished_spans() == ()

    def test_a_session_used_again_has_another(self, make, provider, spans):
        session = make(tracer_provider=provider)()
        for _ in range(2):
            session.execute(ONE)
            session.close()
        first, second = spans.get_finished_spans()
        assert (
            first.attributes["sqlalchemy.session.id"]
            != (second.attributes["sqlalchemy.session.id"])
        )

    def test_a_leaked_one_ends_and_says_so(self, make, provider, spans):
        session = make(tracer_provider=provider)()
        session.execute(ONE)
        del session
        gc.collect()
        (span,) = spans.get_finished_spans()
        assert span.attributes["sqlalchemy.session.leak"] == "garbage_collected"
        assert moves(span) == [("created", "active"), ("active", "closed")]


class TestParents:
    def test_is_what_was_current_when_the_session_was_created(self, make, provider, spans):
        maker = make(tracer_provider=provider)
        tracer = provider.get_tracer("application")
        with tracer.start_as_current_span("request") as request:
            session = maker()
            with tracer.start_as_current_span("inner"):
                session.execute(ONE)
            session.close()
        found = {span.name: span for span in spans.get_finished_spans()}
        assert found["session traced"].parent.span_id == request.get_span_context().span_id

    def test_an_unsampled_parent_has_no_session_span(self, make, spans, provider):
        provider.sampler = ParentBased(ALWAYS_OFF)
        maker = make(tracer_provider=provider)
        with provider.get_tracer("application").start_as_current_span("request"):
            with maker() as session:
                session.execute(ONE)
        assert spans.get_finished_spans() == ()
        assert counted("traced")["queries"] == 1

    def test_no_provider_at_all(self, make):
        with make()() as session:
            session.execute(ONE)
            assert metrics_for(session).query_count == 1
        assert counted("traced")["duration_seconds_count"] == 1

    def test_asyncio_tasks_have_each_their_own(self, tmp_path, provider, spans):
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{tmp_path}/db", poolclass=AsyncAdaptedQueuePool, pool_size=10
        )
        maker = async_sessionmaker(engine)
        instrument(maker, name="async", tracer_provider=provider)
        tracer = provider.get_tracer("application")

        async def one(n):
            with tracer.start_as_current_span(f"request {n}"), bind(request_id=str(n)):
                async with maker() as session:
                    await asyncio.sleep(0)
                    await session.execute(ONE)

        async def work():
            await asyncio.gather(*(one(n) for n in range(10)))
            await engine.dispose()

        asyncio.run(work())
        uninstrument(maker)
        assert served(spans, "async") == [(f"request {n}", str(n)) for n in range(10)]

    def test_threads_have_each_their_own(self, make, provider, spans):
        maker = make(tracer_provider=provider)
        tracer = provider.get_tracer("application")
        lock = threading.Lock()

        def one(n):
            with tracer.start_as_current_span(f"request {n}"), bind(request_id=str(n)):
                with lock, maker() as session:
                    session.execute(ONE)

        threads = [threading.Thread(target=one, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert served(spans, "traced") == [(f"request {n}", str(n)) for n in range(8)]


class TestModes:
    def test_attributes_go_onto_the_callers_span(self, make, provider, spans):
        maker = make(spans="attributes", tracer_provider=provider)
        with provider.get_tracer("application").start_as_current_span("request"):
            with maker() as session:
                session.execute(ONE)
                session.commit()
        (span,) = spans.get_finished_spans()
        assert span.name == "request"
        assert span.attributes["sqlalchemy.session.factory"] == "traced"
        assert span.attributes["sqlalchemy.session.query_count"] == 1
        assert span.attributes["sqlalchemy.session.state"] == "closed"
        assert moves(span) == [
            ("created", "active"),
            ("active", "committed"),
            ("committed", "closing"),
            ("closing", "closed"),
        ]

    def test_attributes_without_a_caller_go_nowhere(self, make, provider, spans):
        with make(spans="attributes", tracer_provider=provider)() as session:
            session.execute(ONE)
        assert spans.get_finished_spans() == ()
        assert counted("traced")["queries"] == 1

    def test_off(self, make, provider, spans):
        maker = make(spans="off", tracer_provider=provider)
        with provider.get_tracer("application").start_as_current_span("request"):
            with maker() as session:
                session.execute(ONE)
        (span,) = spans.get_finished_spans()
        assert dict(span.attributes) == {}
        assert span.events == ()


class TestUserId:
    def use(self, maker):
        with bind(user_id="ann@example.org"), maker() as session:
            session.execute(ONE)

    def test_is_not_there_unless_asked_for(self, make, provider, spans):
        self.use(make(tracer_provider=provider))
        (span,) = spans.get_finished_spans()
        assert "ann@example.org" not in span.to_json()
        assert "user.id" not in span.attributes
        assert "user.hash" not in span.attributes

    def test_plain(self, make, provider, spans):
        self.use(make(tracer_provider=provider, user_id="plain"))
        (span,) = spans.get_finished_spans()
        assert span.attributes["user.id"] == "ann@example.org"

    def test_hashed(self, make, provider, spans):
        self.use(make(tracer_provider=provider, user_id="hashed"))
        (span,) = spans.get_finished_spans()
        assert span.attributes["user.hash"] == hashlib.sha256(b"ann@example.org").hexdigest()
        assert "ann@example.org" not in span.to_json()


class TestFaults:
    @pytest.mark.faults
    def test_a_span_processor_that_raises_is_kept_from_the_session(self, make, caplog):
        class Broken(SpanProcessor):
            def on_start(self, span, parent_context=None):
                raise RuntimeError("broken processor")

            def on_end(self, span):
                raise RuntimeError("broken processor")

        provider = TracerProvider()
        provider.add_span_processor(Broken())
        maker = make(tracer_provider=provider)
        for _ in range(3):
            with maker() as session:
                assert session.scalar(ONE) == 1
        logged = [r for r in caplog.records if r.name == "session_metrics_otel"]
        assert len(logged) == 1
        assert value("sqlalchemy_session_telemetry_faults_total", component="tracing") == 3
        assert counted("traced")["duration_seconds_count"] == 3
        provider.shutdown()

    @pytest.mark.faults
    def test_a_span_that_raises_is_kept_from_the_session(self, make, caplog):
        class BrokenSpan(trace.NonRecordingSpan):
            def is_recording(self):
                return True

            def broken(self, *_args, **_kwargs):
                raise RuntimeError("broken span")

            add_event = set_attributes = set_attribute = set_status = broken
            record_exception = end = get_span_context = broken

        class Tracer(trace.NoOpTracer):
            def start_span(self, *_args, **_kwargs):
                return BrokenSpan(trace.INVALID_SPAN_CONTEXT)

        class Provider(trace.NoOpTracerProvider):
            def get_tracer(self, *_args, **_kwargs):
                return Tracer()

        with make(tracer_provider=Provider())() as session:
            assert session.scalar(ONE) == 1
            with pytest.raises(OperationalError):
                session.execute(text("select * from nowhere"))
        logged = [r for r in caplog.records if r.name == "session_metrics_otel"]
        assert len(logged) == 1
        assert counted("traced")["duration_seconds_count"] == 1
        assert counted("traced")["state_transitions active error"] == 1
        assert counted("traced")["state_transitions closing closed"] == 1
