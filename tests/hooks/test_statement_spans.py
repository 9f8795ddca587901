"""Which spans statements have, what these say, and whose children they are."""

from __future__ import annotations

import asyncio
import threading
from functools import partial

import pytest
from hooks.conftest import Base, Order
from opentelemetry import trace
from opentelemetry.context import attach, detach, set_value
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind, StatusCode, format_span_id
from prometheus_client import REGISTRY
from reading import counted, value
from sqlalchemy import insert, select, text
from sqlalchemy.exc import OperationalError, StatementError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool

from session_metrics_otel import bind, instrument, uninstrument
from session_metrics_otel.hooks.comments import SqlComments
from session_metrics_otel.hooks.servers import error_type, server_attributes, status_code

ONE = text("select 1")


@pytest.fixture
def tracer(provider):
    return provider.get_tracer("application")


@pytest.fixture
def traced(engine, instrumented, provider):
    """Instruments a factory called ``traced``, with the options given."""
    Base.metadata.create_all(engine)
    return partial(instrumented, name="traced", tracer_provider=provider)


def tree(spans):
    """Every span as (its name, its parent's name), in the order of their ends."""
    found = spans.get_finished_spans()
    names = {span.context.span_id: span.name for span in found}
    return [(span.name, span.parent and names.get(span.parent.span_id, "?")) for span in found]


def one(spans, name):
    (found,) = [span for span in spans.get_finished_spans() if span.name == name]
    return found


def span_id(span):
    return format_span_id(span.context.span_id)


class TestWhatASpanSays:
    def test_of_a_statement_that_sqlalchemy_made(self, traced, spans):
        with traced()() as session:
            session.scalars(select(Order.id).where(Order.item == "secret")).all()
        span = one(spans, "SELECT orders")
        assert span.kind is SpanKind.CLIENT
        assert span.status.status_code is StatusCode.UNSET
        assert span.events == ()
        assert span.instrumentation_scope.name == "session_metrics_otel"
        assert dict(span.attributes) == {
            "db.system.name": "sqlite",
            "db.operation.name": "SELECT",
            "db.collection.name": "orders",
            "db.query.summary": "SELECT orders",
            "db.query.text": "SELECT orders.id \nFROM orders \nWHERE orders.item = ?",
        }

    def test_of_a_text(self, traced, spans):
        with traced()() as session:
            session.execute(
                text("select * from orders where item = 'secret' and id = :id"), {"id": 1}
            )
        assert dict(one(spans, "SELECT orders").attributes) == {
            "db.system.name": "sqlite",
            "db.query.summary": "SELECT orders",
            "db.query.text": "select * from orders where item = ? and id = ?",
        }

    def test_of_a_batch(self, traced, spans):
        with traced()() as session:
            session.execute(insert(Order), [{"id": 1}, {"id": 2}, {"id": 3}])
        assert dict(one(spans, "BATCH INSERT orders").attributes) == {
            "db.system.name": "sqlite",
            "db.operation.name": "BATCH INSERT",
            "db.collection.name": "orders",
            "db.operation.batch.size": 3,
            "db.query.summary": "BATCH INSERT orders",
            "db.query.text": "INSERT INTO orders (id, item) VALUES (?, ?)",
        }

    def test_of_a_batch_that_returns_what_the_database_made(self, traced, spans):
        with traced()() as session:
            session.add_all([Order(item=str(n)) for n in range(5)])
            session.flush()
        assert one(spans, "BATCH INSERT orders").attributes["db.operation.batch.size"] == 5

    def test_one_set_of_parameters_is_no_batch(self, traced, spans):
        with traced()() as session:
            session.execute(insert(Order), [{"id": 1}])
        assert "db.operation.batch.size" not in one(spans, "INSERT orders").attributes

    def test_of_an_error_of_the_database(self, traced, spans):
        with traced()() as session, pytest.raises(OperationalError):
            session.execute(text("select :x from nowhere"), {"x": "secret"})
        span = one(spans, "SELECT nowhere")
        assert span.attributes["error.type"] == "OperationalError"
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == "no such table: nowhere"
        assert "secret" not in span.to_json()
        assert tree(spans) == [("SELECT nowhere", "session traced"), ("session traced", None)]

    def test_of_an_error_that_is_not_the_database_s(self, traced, spans):
        class Unbindable:
            pass

        with traced()() as session:
            with pytest.raises((StatementError, OperationalError)):
                session.execute(text("select :x"), {"x": Unbindable()})
            session.rollback()
            session.execute(ONE)
        failed, succeeded = [s for s in spans.get_finished_spans() if s.name == "SELECT"]
        assert failed.status.status_code is StatusCode.ERROR
        assert succeeded.status.status_code is StatusCode.UNSET

    def test_where_the_server_is(self, new_engine):
        pytest.importorskip("psycopg")
        url = "postgresql+psycopg://ann:secret@db.example.org:5433/shop"
        assert server_attributes(new_engine(url)) == {
            "db.system.name": "postgresql",
            "db.namespace": "shop",
            "server.address": "db.example.org",
            "server.port": 5433,
        }

    @pytest.mark.parametrize(
        ("dialect", "system"),
        [
            ("sqlite", "sqlite"),
            ("mssql", "microsoft.sql_server"),
            ("oracle", "oracle.db"),
            ("cockroachdb", "cockroachdb"),
            ("redshift", "aws.redshift"),
            ("spanner+spanner", "gcp.spanner"),
            ("hana", "sap.hana"),
            ("ibm_db_sa", "ibm.db2"),
            ("informix", "ibm.informix"),
            ("netezza", "ibm.netezza"),
            ("firebird", "firebirdsql"),
            ("teradatasql", "teradata"),
            ("clickhousedb", "clickhouse"),
        ],
    )
    def test_a_database_has_the_name_that_the_conventions_have_for_it(
        self, engine, monkeypatch, dialect, system
    ):
        monkeypatch.setattr(engine.dialect, "name", dialect)
        assert server_attributes(engine)["db.system.name"] == system

    def test_a_socket_s_folder_is_its_address(self, new_engine):
        pytest.importorskip("psycopg")
        url = "postgresql+psycopg://ann@/shop?host=/run/postgresql"
        assert server_attributes(new_engine(url)) == {
            "db.system.name": "postgresql",
            "db.namespace": "shop",
            "server.address": "/run/postgresql",
        }


class WithState(Exception):
    def __init__(self, *args, **attributes):
        super().__init__(*args)
        self.__dict__.update(attributes)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (WithState("x", sqlstate="23505"), "23505"),
        (WithState("x", pgcode="40001"), "40001"),
        (WithState(1062, "Duplicate entry"), "1062"),
        (WithState(type("Oracle", (), {"full_code": "ORA-00942"})()), "ORA-00942"),
        (WithState("x", sqlstate=None), ""),
        (WithState(), ""),
    ],
)
def test_status_codes(error, code):
    assert status_code(error) == code
    assert error_type(error) == (code or "WithState")


def led_to(name):
    """The ids of the spans that the exemplars of the histogram ``name`` lead to."""
    return {
        sample.exemplar.labels["span_id"]
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name == f"{name}_bucket" and sample.exemplar is not None
    }


class TestExemplars:
    def test_a_statement_s_duration_leads_to_its_span(self, traced, spans):
        with traced()() as session:
            session.execute(ONE)
        assert led_to("db_client_operation_duration_seconds") == {span_id(one(spans, "SELECT"))}

    def test_that_of_one_that_failed_does_too(self, traced, spans):
        with traced()() as session, pytest.raises(OperationalError):
            session.execute(text("select * from missing"))
        statement = one(spans, "SELECT missing")
        assert led_to("db_client_operation_duration_seconds") == {span_id(statement)}

    def test_the_time_that_a_connection_was_held_leads_to_its_session(self, traced, spans):
        with bind(route="/orders"), traced()() as session:
            session.execute(ONE)
        session_id = span_id(one(spans, "session traced"))
        assert led_to("db_client_connection_use_time_seconds") == {session_id}
        assert led_to("sqlalchemy_route_connection_use_time_seconds") == {session_id}

    def test_what_is_not_sampled_leads_nowhere(self, traced, provider):
        provider.sampler = ALWAYS_OFF
        with bind(route="/orders"), traced()() as session:
            session.execute(ONE)
        assert led_to("db_client_operation_duration_seconds") == set()
        assert led_to("db_client_connection_use_time_seconds") == set()
        assert led_to("sqlalchemy_route_connection_use_time_seconds") == set()


class TestParents:
    def test_the_session_s_span(self, traced, spans, tracer):
        maker = traced()
        with tracer.start_as_current_span("request"), maker() as session:
            session.execute(ONE)
            assert trace.get_current_span().name == "request"
            session.scalars(select(Order)).all()
            session.commit()
        assert tree(spans) == [
            ("SELECT", "session traced"),
            ("SELECT orders", "session traced"),
            ("session traced", "request"),
            ("request", None),
        ]

    def test_a_span_that_the_caller_opened_inside(self, traced, spans, tracer):
        maker = traced()
        with tracer.start_as_current_span("request"), maker() as session:
            with tracer.start_as_current_span("import"):
                with tracer.start_as_current_span("row"):
                    session.execute(ONE)
                session.execute(select(Order))
            session.execute(insert(Order))
        assert tree(spans) == [
            ("SELECT", "row"),
            ("row", "import"),
            ("SELECT orders", "import"),
            ("import", "request"),
            ("INSERT orders", "session traced"),
            ("session traced", "request"),
            ("request", None),
        ]

    def test_other_values_in_the_context_are_no_span(self, traced, spans):
        with traced()() as session:
            token = attach(set_value("colour", "green"))
            session.execute(ONE)
            detach(token)
        assert tree(spans) == [("SELECT", "session traced"), ("session traced", None)]

    def test_core_without_a_session_takes_the_current_span(self, engine, provider, spans, tracer):
        engine.connect().close()
        instrument(engine, tracer_provider=provider)
        with tracer.start_as_current_span("request"), engine.connect() as connection:
            connection.execute(ONE)
        with engine.connect() as connection:
            connection.exec_driver_sql("select 2")
        assert tree(spans) == [("SELECT", "request"), ("request", None), ("SELECT", None)]
        uninstrument(engine)

    def test_a_connection_that_outlives_its_session(self, engine, provider, spans):
        engine.connect().close()
        instrument(engine, tracer_provider=provider)
        with engine.connect() as connection:
            with Session(connection) as session:
                session.execute(ONE)
            connection.execute(ONE)
        assert tree(spans) == [
            ("SELECT", "session default"),
            ("session default", None),
            ("SELECT", None),
        ]
        uninstrument(engine)

    def test_an_unsampled_session_has_none(self, traced, spans, provider):
        provider.sampler = ParentBased(ALWAYS_OFF)
        tracer = provider.get_tracer("application")
        maker = traced()
        with tracer.start_as_current_span("request"), maker() as session:
            session.execute(ONE)
        with maker() as session:
            session.execute(ONE)
        assert spans.get_finished_spans() == ()
        assert counted("traced")["queries"] == 2

    def test_an_unsampled_session_with_a_recorded_span_inside(
        self, traced, spans, provider, tracer
    ):
        maker = traced(tracer_provider=provider)
        with trace.use_span(trace.NonRecordingSpan(trace.SpanContext(7, 7, is_remote=True))):
            session = maker()
            session.execute(ONE)
            with tracer.start_as_current_span("job", context=trace.Context()):
                session.execute(select(Order))
            session.close()
        assert tree(spans) == [("SELECT orders", "job"), ("job", None)]

    def test_a_sampled_session_with_an_unsampled_span_inside(self, traced, spans):
        with traced()() as session:
            with trace.use_span(trace.NonRecordingSpan(trace.SpanContext(7, 7, is_remote=False))):
                session.execute(ONE)
        assert tree(spans) == [("session traced", None)]

    def test_threads_have_each_their_own(self, traced, spans, tracer):
        maker = traced()
        lock = threading.Lock()

        def work(n):
            with tracer.start_as_current_span(f"request {n}"), bind(request_id=str(n)):
                with lock, maker() as session:
                    session.execute(ONE)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = spans.get_finished_spans()
        assert len(found) == 24
        assert len({span.context.trace_id for span in found}) == 8
        assert tree(spans).count(("SELECT", "session traced")) == 8

    def test_asyncio_tasks_have_each_their_own(self, tmp_path, provider, spans, tracer):
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{tmp_path}/db", poolclass=AsyncAdaptedQueuePool, pool_size=4
        )
        maker = async_sessionmaker(engine)
        instrument(maker, name="traced", tracer_provider=provider)

        async def work(n):
            with tracer.start_as_current_span(f"request {n}"):
                async with maker() as session:
                    await asyncio.sleep(0)
                    await session.execute(ONE)
                    with tracer.start_as_current_span(f"inner {n}"):
                        await session.execute(text("select 2 from sqlite_master"))

        async def main():
            await asyncio.gather(*(work(n) for n in range(8)))
            await engine.dispose()

        asyncio.run(main())
        uninstrument(maker)
        found = spans.get_finished_spans()
        assert len({span.context.trace_id for span in found}) == 8
        names = {span.context.span_id: span for span in found}
        for n in range(8):
            request = one(spans, f"request {n}")
            mine = [s for s in found if s.context.trace_id == request.context.trace_id]
            parents = {span.name: names[span.parent.span_id].name for span in mine if span.parent}
            # Whoever found the pool empty connected, below its session.
            assert parents.pop("connect", "session traced") == "session traced"
            assert parents == {
                "session traced": f"request {n}",
                "SELECT": "session traced",
                f"inner {n}": f"request {n}",
                "SELECT sqlite_master": f"inner {n}",
            }


class TestModes:
    def test_attributes_takes_the_current_span(self, traced, spans, tracer):
        maker = traced(spans="attributes")
        with tracer.start_as_current_span("request"), maker() as session:
            session.execute(ONE)
        with maker() as session:
            session.execute(ONE)
        assert tree(spans) == [("SELECT", "request"), ("request", None)]

    def test_off(self, traced, spans, tracer):
        maker = traced(spans="off")
        with tracer.start_as_current_span("request"), maker() as session:
            session.execute(ONE)
        assert tree(spans) == [("request", None)]

    def test_sessions_only(self, traced, spans):
        with traced(statement_spans=False)() as session:
            session.execute(ONE)
        assert tree(spans) == [("session traced", None)]

    def test_two_factories_of_one_engine_have_each_their_own(self, traced, spans, tracer):
        silent, loud = traced(spans="off"), traced()
        with silent() as session:
            session.execute(ONE)
        with loud() as session:
            session.execute(ONE)
        assert tree(spans) == [("SELECT", "session traced"), ("session traced", None)]

    def test_none_after_uninstrument(self, engine, provider, spans):
        engine.connect().close()
        ours = ("connect", "do_commit", "do_rollback", "execution_ctx_cls")
        before = [getattr(engine.dialect, name) for name in ours]
        instrument(engine, tracer_provider=provider)
        uninstrument(engine)
        assert [getattr(engine.dialect, name) for name in ours] == before
        assert not set(ours) & set(vars(engine.dialect))
        with engine.connect() as connection:
            connection.execute(ONE)
            connection.commit()
        assert spans.get_finished_spans() == ()


class TestConnectionsAndTransactions:
    def test_connecting_has_a_span_below_the_session(self, new_engine, tmp_path, provider, spans):
        engine = new_engine(f"sqlite:///{tmp_path}/db", poolclass=NullPool)
        maker = sessionmaker(engine)
        instrument(maker, name="traced", tracer_provider=provider)
        with maker() as session:
            session.execute(ONE)
        assert tree(spans) == [
            ("connect", "session traced"),
            ("SELECT", "session traced"),
            ("session traced", None),
        ]
        span = one(spans, "connect")
        assert span.kind is SpanKind.CLIENT
        assert dict(span.attributes) == {
            "db.system.name": "sqlite",
            "db.namespace": f"{tmp_path}/db",
        }
        uninstrument(maker)

    def test_connecting_that_fails(self, new_engine, tmp_path, provider, spans):
        engine = new_engine(f"sqlite:///{tmp_path}/no/db")
        instrument(engine, tracer_provider=provider)
        with pytest.raises(OperationalError):
            engine.connect()
        span = one(spans, "connect")
        assert span.attributes["error.type"] == "OperationalError"
        assert span.status.description == "unable to open database file"
        uninstrument(engine)

    def test_commit_and_rollback_by_option(self, traced, spans):
        with traced(transaction_spans=True)() as session:
            session.execute(ONE)
            session.commit()
            session.execute(ONE)
            session.rollback()
        assert tree(spans) == [
            ("SELECT", "session traced"),
            ("COMMIT", "session traced"),
            ("SELECT", "session traced"),
            ("ROLLBACK", "session traced"),
            ("session traced", None),
        ]
        assert dict(one(spans, "COMMIT").attributes) == {
            "db.system.name": "sqlite",
            "db.operation.name": "COMMIT",
            "db.query.summary": "COMMIT",
        }

    def test_a_commit_that_fails(self, engine, provider, spans, monkeypatch):
        instrument(engine, tracer_provider=provider, transaction_spans=True)
        with engine.connect() as connection:
            connection.exec_driver_sql("pragma foreign_keys = on")
            connection.commit()
            connection.exec_driver_sql("create table a (id integer primary key)")
            connection.exec_driver_sql(
                "create table b (a integer references a (id) deferrable initially deferred)"
            )
            connection.exec_driver_sql("insert into b values (7)")
            with pytest.raises(Exception, match="FOREIGN KEY"):
                connection.commit()
        failed = [s for s in spans.get_finished_spans() if s.name == "COMMIT"][-1]
        assert failed.attributes["error.type"] == "IntegrityError"
        uninstrument(engine)


class TestSuppression:
    @pytest.fixture(params=["instrumentation", "api"])
    def silence(self, request):
        if request.param == "instrumentation":
            utils = pytest.importorskip("opentelemetry.instrumentation.utils")
            return utils.suppress_instrumentation

        from contextlib import contextmanager

        from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY

        @contextmanager
        def silence():
            token = attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
            yield
            detach(token)

        return silence

    def test_no_spans_at_all(self, traced, spans, silence, engine):
        with silence():
            with traced()() as session:
                session.execute(ONE)
            with engine.connect() as connection:
                connection.execute(ONE)
        assert spans.get_finished_spans() == ()
        assert counted("traced")["queries"] == 1

    def test_within_a_session(self, traced, spans, silence):
        with traced()() as session:
            with silence():
                session.execute(ONE)
            session.execute(select(Order))
        assert tree(spans) == [("SELECT orders", "session traced"), ("session traced", None)]


def test_a_driver_s_own_instrumentation_makes_no_second_span(tmp_path, new_engine, provider, spans):
    """A stand-in for the cursor that OpenTelemetry's instrumentation of a driver makes."""
    import sqlite3

    from opentelemetry.context import get_value

    tracer = provider.get_tracer("driver")

    class TracedCursor(sqlite3.Cursor):
        def execute(self, *args):
            if get_value("suppress_instrumentation"):
                return super().execute(*args)
            with tracer.start_as_current_span("by the driver"):
                return super().execute(*args)

    TracedCursor.__module__ = "opentelemetry.instrumentation.dbapi"

    class TracedConnection(sqlite3.Connection):
        def cursor(self, *args):
            return super().cursor(TracedCursor)

    engine = new_engine(f"sqlite:///{tmp_path}/db", connect_args={"factory": TracedConnection})
    with engine.connect() as connection:
        connection.execute(ONE)
    assert ("by the driver", None) in tree(spans)
    spans.clear()
    instrument(engine, tracer_provider=provider)
    with engine.connect() as connection:
        connection.execute(ONE)
        with pytest.raises(OperationalError):
            connection.execute(text("select 1 from nowhere"))
    assert tree(spans) == [("SELECT", None), ("SELECT nowhere", None)]
    assert not get_value("suppress_instrumentation")
    uninstrument(engine)


def test_a_hook_adds_attributes(traced, spans):
    def hook(span, context):
        span.set_attribute("rows", context.cursor.rowcount)

    with traced(statement_hook=hook)() as session:
        session.execute(insert(Order), [{"id": 1}, {"id": 2}])
    assert one(spans, "BATCH INSERT orders").attributes["rows"] == 2


class TestComments:
    @pytest.fixture
    def sent(self, engine):
        """The statements that reach the driver."""
        sent = []
        with engine.connect() as connection:
            connection.connection.dbapi_connection.set_trace_callback(sent.append)
        return sent

    def comment(self, sent, statement):
        (found,) = [text for text in sent if text.startswith(statement)]
        return found.removeprefix(statement)

    def test_traceparent_of_the_statement_s_span(self, traced, spans, sent):
        with traced(sql_comments=SqlComments())() as session:
            session.execute(ONE)
        span = one(spans, "SELECT")
        trace_id, span_id, *_, flags = span.context[:4]
        ids = f"00-{trace_id:032x}-{span_id:016x}-{flags:02x}"
        assert self.comment(sent, "select 1") == f" /*traceparent='{ids}'*/"
        assert span.attributes["db.query.text"] == "select ?"

    def test_everything_there_is_to_say(self, traced, spans, sent):
        comments = SqlComments(
            traceparent=False,
            db_driver=True,
            tags=lambda: {"route": "/orders/{id}", "team": "it's */ drop table orders; --%?:x"},
            in_query_text=True,
        )
        token = attach(set_value("SQLCOMMENTER_ORM_TAGS_AND_VALUES", {"framework": "flask"}))
        with traced(sql_comments=comments)() as session:
            session.execute(text("select 1;"))
        detach(token)
        said = (
            "/*db_driver='pysqlite',framework='flask',route='%2Forders%2F%7Bid%7D',"
            "team='it%27s%20%2A%2F%20drop%20table%20orders%3B%20--%25%3F%3Ax'*/"
        )
        assert self.comment(sent, "select 1") == f" {said};"
        assert one(spans, "SELECT").attributes["db.query.text"] == f"select ? {said};"

    def test_a_percent_sign_is_doubled_for_drivers_that_fill_in_their_own(self):
        class Psycopg:
            driver, paramstyle = "psycopg", "pyformat"

        comments = SqlComments(traceparent=False, tags=lambda: {"a": "/"})
        assert comments.comment(Psycopg, trace.INVALID_SPAN_CONTEXT) == "/*a='%%2F'*/"

    def test_nothing_to_say_changes_nothing(self, traced, sent):
        with traced(sql_comments=SqlComments(traceparent=False))() as session:
            session.execute(ONE)
        assert self.comment(sent, "select 1") == ""

    def test_a_batch_that_returns_what_the_database_made(self, traced, spans, sent):
        with traced(sql_comments=SqlComments(traceparent=False, db_driver=True))() as session:
            session.add_all([Order(item=str(n)) for n in range(3)])
            session.commit()
            assert len(session.scalars(select(Order)).all()) == 3
        inserts = [text for text in sent if text.startswith("INSERT")]
        assert inserts
        assert all(text.endswith(" /*db_driver='pysqlite'*/") for text in inserts)

    def test_none_where_no_span_is_recorded(self, traced, provider, sent):
        provider.sampler = ALWAYS_OFF
        with traced(sql_comments=SqlComments())() as session:
            session.execute(ONE)
        assert self.comment(sent, "select 1") == ""


@pytest.mark.faults
class TestFaults:
    def test_a_hook_that_raises_is_kept_from_the_statement(self, traced, spans):
        def hook(span, context):
            raise RuntimeError("broken hook")

        with traced(statement_hook=hook)() as session:
            assert session.scalar(ONE) == 1
        assert tree(spans) == [("SELECT", "session traced"), ("session traced", None)]
        assert value("sqlalchemy_session_telemetry_faults_total", component="tracing") == 1

    def test_tags_that_raise_are_kept_from_the_statement(self, traced):
        def tags():
            raise RuntimeError("broken tags")

        with traced(sql_comments=SqlComments(tags=tags))() as session:
            assert session.scalar(ONE) == 1
        assert value("sqlalchemy_session_telemetry_faults_total", component="statements") == 1

    def test_a_provider_that_raises_is_kept_from_everything(self, new_engine, tmp_path):
        class Broken(SpanProcessor):
            def on_start(self, span, parent_context=None):
                raise RuntimeError("broken processor")

            on_end = on_start

        provider = TracerProvider()
        provider.add_span_processor(Broken())
        engine = new_engine(f"sqlite:///{tmp_path}/db", poolclass=NullPool)
        instrument(engine, tracer_provider=provider, transaction_spans=True)
        with engine.connect() as connection:
            assert connection.scalar(ONE) == 1
            connection.commit()
            with pytest.raises(OperationalError, match="nowhere"):
                connection.execute(text("select * from nowhere"))
        uninstrument(engine)
        provider.shutdown()
