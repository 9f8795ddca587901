from __future__ import annotations

import sqlite3

import pytest
from prometheus_client import REGISTRY
from reading import counted
from sqlalchemy import (
    Column,
    Engine,
    ForeignKey,
    Integer,
    MetaData,
    Table,
    event,
    insert,
    select,
    text,
)
from sqlalchemy.dialects import registry as dialects
from sqlalchemy.dialects.sqlite.base import SQLiteExecutionContext
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import registry, relationship, selectinload, sessionmaker

from session_metrics_otel import instrument, metrics_for, uninstrument
from session_metrics_otel.hooks import statement_metrics
from session_metrics_otel.series import Bounded

ONE = text("select 1")
ITEMS = Table("items", MetaData(), Column("id", Integer, primary_key=True))


def durations() -> dict[tuple[str, ...], float]:
    """How often statements were measured, by operation, collection and error."""
    found = {}
    for family in REGISTRY.collect():
        for sample in family.samples:
            if sample.name == "db_client_operation_duration_seconds_count" and sample.value:
                labels = sample.labels
                assert labels["db_system_name"] == "sqlite"
                names = ("db_operation_name", "db_collection_name", "error_type")
                found[tuple(labels.get(name, "") for name in names)] = sample.value
    return found


OTHER_PAIR = ("_OTHER", "_OTHER")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(statement_metrics, "_pairs", Bounded(500, OTHER_PAIR))
    monkeypatch.setattr(statement_metrics, "_error_types", Bounded(32, "_OTHER"))


@pytest.fixture
def maker(engine):
    ITEMS.create(engine)
    engine.clear_compiled_cache()  # it keeps the series of the statements in it
    maker = sessionmaker(engine)
    instrument(maker, name="timed", repeated_statements=3)
    yield maker
    uninstrument(maker)


def test_by_operation_and_collection(maker):
    with maker() as session:
        session.execute(insert(ITEMS), [{"id": 1}, {"id": 2}])
        for _ in range(2):
            session.execute(select(ITEMS)).all()
        session.execute(ONE)
        session.commit()
    assert durations() == {
        ("BATCH INSERT", "items", ""): 1,
        ("SELECT", "items", ""): 2,
        ("", "", ""): 1,
    }


def test_a_failed_one_has_its_error(maker):
    with maker() as session, pytest.raises(OperationalError):
        session.execute(text("select * from nowhere"))
    assert durations() == {("", "", "OperationalError"): 1}


@pytest.mark.parametrize("level", ["engine", "every engine"])
def test_a_failed_one_is_counted_though_a_listener_raises_another_error(
    engine, provider, spans, level
):
    class Ours(Exception):
        pass

    def translate(_):
        raise Ours

    target = engine if level == "engine" else Engine
    event.listen(target, "handle_error", translate)
    maker = sessionmaker(engine)
    instrument(maker, name="timed", tracer_provider=provider)
    with maker() as session:
        with pytest.raises(Ours):
            session.execute(text("select * from nowhere"))
        assert metrics_for(session).last_error == "no such table: nowhere"
    event.remove(target, "handle_error", translate)
    uninstrument(maker)
    assert durations() == {("", "", "OperationalError"): 1}
    assert counted("timed")["errors OperationalError"] == 1
    failed = next(span for span in spans.get_finished_spans() if "nowhere" in span.name)
    assert failed.attributes["error.type"] == "OperationalError"


def test_an_error_that_sqlalchemy_expects_is_the_statement_s_and_not_the_session_s(maker):
    with maker() as session:
        connection = session.connection().execution_options(skip_user_error_events=True)
        with pytest.raises(OperationalError):  # as of MySQL's has_table()
            connection.execute(text("select * from nowhere"))
        assert metrics_for(session).state == "active"
        assert metrics_for(session).idle_seconds() > 0
    assert durations() == {("", "", "OperationalError"): 1}
    assert [key for key in counted("timed") if "error" in key] == []


def test_core_statements_too(maker):
    with maker.kw["bind"].connect() as connection:
        connection.execute(select(ITEMS))
        connection.exec_driver_sql("select 1")
    assert durations() == {("SELECT", "items", ""): 1, ("", "", ""): 1}


def test_sqlite_does_not_know_its_rows(maker):
    with maker() as session:
        session.execute(select(ITEMS)).all()
    found = [f.name for f in REGISTRY.collect() if f.name == "db_client_response_returned_rows"]
    assert found == []


class Cursor(sqlite3.Cursor):
    rowcount = 3


class CursorAtTheServer(sqlite3.Cursor):
    rowcount = 18446744073709551615  # as PyMySQL's says


class Context(SQLiteExecutionContext):
    def create_default_cursor(self):
        return self._dbapi_connection.cursor(Cursor)

    def create_server_side_cursor(self):
        return self._dbapi_connection.cursor(CursorAtTheServer)


@pytest.mark.parametrize(
    ("database", "streams", "rows"),
    [("mysql", False, [3]), ("mysql", True, []), ("oracle", False, [])],
)
def test_a_driver_that_counts_as_it_fetches_does_not_know_its_rows(
    new_engine, monkeypatch, database, streams, rows
):
    dialect = type(
        "Dialect",
        (SQLiteDialect_pysqlite,),
        {
            "name": database,
            "supports_server_side_cursors": True,
            "supports_statement_cache": True,
            "execution_ctx_cls": Context,
        },
    )
    monkeypatch.setitem(dialects.impls, "counting", lambda: dialect)
    engine = new_engine("counting://", creator=lambda: sqlite3.connect(":memory:"))
    instrument(engine, name="rows")
    with engine.connect() as connection:
        connection.execute(ONE, execution_options={"stream_results": streams}).all()
    uninstrument(engine)
    assert [
        sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name == "db_client_response_returned_rows_sum" and sample.value
    ] == rows


def test_series_are_bounded(maker, monkeypatch):
    monkeypatch.setattr(statement_metrics, "_pairs", Bounded(2, OTHER_PAIR))
    metadata = MetaData()
    with maker() as session:
        for number in range(4):
            table = Table(f"items_{number}", metadata, Column("id", Integer))
            table.create(session.connection())
            session.execute(select(table))
    assert len(durations()) == 3
    assert durations()[("_OTHER", "_OTHER", "")] == 6


def test_databases_are_bounded(new_engine, tmp_path, monkeypatch):
    monkeypatch.setattr(statement_metrics, "_databases", Bounded(2, ("_OTHER", "", "")))
    engines = [new_engine(f"sqlite:///{tmp_path}/tenant-{number}") for number in range(4)]
    for engine in (*engines, engines[0]):
        instrument(engine, name="tenants")
        with engine.connect() as connection:
            connection.execute(select(1))
    for engine in engines:
        uninstrument(engine)
    assert {
        sample.labels["db_namespace"]: sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name == "db_client_operation_duration_seconds_count"
    } == {f"{tmp_path}/tenant-0": 2, f"{tmp_path}/tenant-1": 1, "_OTHER": 2}


class TestRepeats:
    def test_a_session_that_repeats_itself_is_counted_once(self, maker):
        with maker() as session:
            for number in range(10):
                session.execute(select(ITEMS).where(ITEMS.c.id == number))
        with maker() as session:
            for _ in range(3):
                session.execute(select(ITEMS))
            session.execute(ONE)
        assert counted("timed")["repeated_statements"] == 1

    def test_statements_that_are_not_cached_are_told_apart_by_their_text(self, maker):
        with maker() as session:
            session.connection(execution_options={"compiled_cache": None})
            for number in range(10):
                session.execute(select(ITEMS).where(ITEMS.c.id == number))
        with maker() as session:
            for number in range(10):
                session.connection().exec_driver_sql(f"select {number}")
        assert counted("timed")["repeated_statements"] == 1

    def test_of_more_statements_than_are_kept_the_first_are_looked_for(self, maker):
        with maker() as session:
            for number in range(1010):
                session.connection().exec_driver_sql(f"select {number}")
            assert len(metrics_for(session).repeats._counts) == 1000
            for _ in range(4):
                session.connection().exec_driver_sql("select 1009")
            assert counted("timed").get("repeated_statements") is None
            for _ in range(3):
                session.connection().exec_driver_sql("select 999")
        assert counted("timed")["repeated_statements"] == 1

    def test_a_list_of_any_length_is_one_shape(self, maker):
        with maker() as session:
            for number in range(4):
                session.execute(select(ITEMS).where(ITEMS.c.id.in_(range(number))))
        assert counted("timed")["repeated_statements"] == 1

    def test_ten_times_are_not_more_than_ten(self, engine):
        maker = sessionmaker(engine)
        instrument(maker, name="ten", repeated_statements=10)
        for times in (10, 11):
            with maker() as session:
                for _ in range(times):
                    session.execute(ONE)
            assert counted("ten").get("repeated_statements", 0) == times - 10
        uninstrument(maker)

    def test_lazy_loads_are_what_it_is_for(self, engine, provider, spans):
        metadata = MetaData()
        orders = Table("orders", metadata, Column("id", Integer, primary_key=True))
        lines = Table(
            "lines",
            metadata,
            Column("id", Integer, primary_key=True),
            Column("order_id", ForeignKey("orders.id")),
        )
        mapped = registry(metadata=metadata)
        Line = type("Line", (), {})  # noqa: N806
        Order = type("Order", (), {})  # noqa: N806
        mapped.map_imperatively(Line, lines)
        mapped.map_imperatively(Order, orders, properties={"lines": relationship(Line)})
        metadata.create_all(engine)
        maker = sessionmaker(engine)
        with maker() as session:
            session.add_all([Order() for _ in range(11)])
            session.commit()
        instrument(maker, name="shop", repeated_statements=10, tracer_provider=provider)
        with maker() as session:
            for order in session.scalars(select(Order).options(selectinload(Order.lines))):
                assert order.lines == []
        with maker() as session:
            for order in session.scalars(select(Order)):
                assert order.lines == []
        uninstrument(maker)
        assert counted("shop")["repeated_statements"] == 1
        good, bad = [s for s in spans.get_finished_spans() if s.name == "session shop"]
        assert "sqlalchemy.session.repeated_statement" not in good.attributes
        assert bad.attributes["sqlalchemy.session.repeated_statement"] == "SELECT lines"
        assert bad.attributes["sqlalchemy.session.repeated_statement.count"] == 11

    def test_it_is_said_on_the_span(self, engine, provider, spans):
        ITEMS.create(engine)
        maker = sessionmaker(engine)
        instrument(
            maker,
            name="timed",
            repeated_statements=3,
            tracer_provider=provider,
            statement_spans=False,
        )
        with maker() as session:
            for number in range(10):
                session.execute(select(ITEMS).where(ITEMS.c.id == number))
        uninstrument(maker)
        (span,) = spans.get_finished_spans()
        assert span.attributes["sqlalchemy.session.repeated_statement"] == "SELECT items"
        assert span.attributes["sqlalchemy.session.repeated_statement.count"] == 10

    def test_is_not_looked_for_unless_asked(self, engine):
        maker = sessionmaker(engine)
        instrument(maker, name="timed")
        with maker() as session:
            for _ in range(20):
                session.execute(ONE)
        uninstrument(maker)
        assert "repeated_statements" not in counted("timed")
