"""What statements are called, and what of their text is shown."""

from __future__ import annotations

import pytest
from hooks.conftest import Base, Order, Versioned
from reading import value
from sqlalchemy import (
    DDL,
    Index,
    MetaData,
    case,
    delete,
    event,
    extract,
    func,
    insert,
    literal_column,
    schema,
    select,
    text,
    union,
    update,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import Session, aliased

from session_metrics_otel.hooks import queries
from session_metrics_otel.hooks.queries import UNKNOWN, Query, describe
from session_metrics_otel.hooks.query_text import SUMMARY_LIMIT, TEXT_LIMIT, sanitised, summary_of


@pytest.fixture
def described(engine):
    """What is executed, described at the moment when it is."""
    Base.metadata.create_all(engine)
    found = []

    @event.listens_for(engine, "before_cursor_execute")
    def describe_it(conn, cursor, statement, parameters, context, executemany):
        found.append(describe(context))

    return found


def words(query: Query) -> tuple[str, str, str]:
    return query.operation, query.collection, query.summary


other = aliased(Order)
COPY = Order.__table__.to_metadata(MetaData())

MADE_BY_SQLALCHEMY = [
    (select(Order), ("SELECT", "orders", "SELECT orders")),
    (select(Order.id).where(Order.id == 7), ("SELECT", "orders", "SELECT orders")),
    (select(other), ("SELECT", "orders", "SELECT orders")),
    (select(func.now()), ("SELECT", "", "SELECT")),
    (select(func.count()).select_from(Order), ("SELECT", "orders", "SELECT orders")),
    (
        select(Order).join(Versioned, Versioned.id == Order.id),
        ("SELECT", "", "SELECT orders versioned"),
    ),
    (
        select(Order).where(Order.id.in_(select(Versioned.id))),
        ("SELECT", "orders", "SELECT orders SELECT versioned"),
    ),
    (
        select(select(Order.id).subquery()),
        ("SELECT", "orders", "SELECT SELECT orders"),
    ),
    (
        select(select(Order.id).cte("recent")),
        ("SELECT", "orders", "SELECT orders SELECT recent"),
    ),
    (
        union(select(Order.id), select(Versioned.id)),
        ("SELECT", "", "SELECT orders SELECT versioned"),
    ),
    (
        select(Order.id).where(extract("year", Order.item) == 1),
        ("SELECT", "orders", "SELECT orders"),
    ),
    (insert(Order).values(item="x"), ("INSERT", "orders", "INSERT orders")),
    (
        insert(Versioned).from_select(["id", "version"], select(Order.id, Order.id)),
        ("INSERT", "versioned", "INSERT versioned SELECT orders"),
    ),
    (update(Order).values(item="x"), ("UPDATE", "orders", "UPDATE orders")),
    (delete(Order).where(Order.id == 1), ("DELETE", "orders", "DELETE orders")),
    (
        schema.CreateTable(Order.__table__, if_not_exists=True),
        ("CREATE TABLE", "orders", "CREATE TABLE orders"),
    ),
    (
        schema.CreateIndex(Index("by_item", COPY.c.item)),
        ("CREATE INDEX", "orders", "CREATE INDEX by_item"),
    ),
    (schema.DropTable(Versioned.__table__), ("DROP TABLE", "versioned", "DROP TABLE versioned")),
]


@pytest.mark.parametrize(("statement", "expected"), MADE_BY_SQLALCHEMY)
def test_what_sqlalchemy_made_is_known_by_its_structure(engine, described, statement, expected):
    with engine.connect() as connection:
        connection.execute(statement)
    assert [words(query) for query in described] == [expected]


@pytest.mark.parametrize(
    "statement",
    [text("select * from orders where id = 7"), DDL("select * from orders where id = 7")],
)
def test_a_text_has_a_summary_and_no_operation_or_collection(engine, described, statement):
    with engine.connect() as connection:
        connection.execute(statement)
    assert described == [Query("", "", "SELECT orders", "select * from orders where id = ?")]


def test_a_text_that_goes_to_the_driver_as_it_is(engine, described):
    with engine.connect() as connection:
        connection.exec_driver_sql("select * from orders where item = 'tea'")
    assert described == [Query("", "", "SELECT orders", "select * from orders where item = ?")]


def test_a_savepoint_is_named_without_its_running_number(engine, described):
    with engine.begin() as connection:
        with connection.begin_nested():
            pass
        with connection.begin_nested() as savepoint:
            savepoint.rollback()
    assert [words(query) for query in described] == [
        ("SAVEPOINT", "", "SAVEPOINT"),
        ("RELEASE SAVEPOINT", "", "RELEASE SAVEPOINT"),
        ("SAVEPOINT", "", "SAVEPOINT"),
        ("ROLLBACK TO SAVEPOINT", "", "ROLLBACK TO SAVEPOINT"),
    ]


def test_the_orm_s_own_statements(engine, described):
    with Session(engine) as session:
        session.add(Order(item="secret"))
        session.flush()
        session.commit()
        assert session.scalars(select(Order)).one().item == "secret"
    assert [words(query) for query in described] == [
        ("INSERT", "orders", "INSERT orders"),
        ("SELECT", "orders", "SELECT orders"),
    ]
    assert described[0].text == "INSERT INTO orders (item) VALUES (?)"


def test_neither_values_nor_literals_show(engine, described):
    secret = literal_column("'secret'")
    with engine.connect() as connection:
        connection.execute(
            select(Order.id, case((Order.item == "secret", secret)), literal_column("1234"))
            .where(Order.id.in_([1234, 1235, 1236]), Order.item != secret)
            .limit(1234)
        )
    (query,) = described
    assert "secret" not in query.text
    assert "123" not in query.text
    assert "orders.id IN (?)" in query.text


def test_a_schema_that_is_chosen_when_it_is_sent_is_left_away(engine, described):
    with engine.connect() as connection:
        connection.execution_options(schema_translate_map={None: "main"}).execute(select(Order.id))
    (query,) = described
    assert query == Query("SELECT", "orders", "SELECT orders", "SELECT orders.id \nFROM orders")


def test_is_worked_out_once_for_a_compiled_statement(engine, described, monkeypatch):
    calls = []
    whole = queries._query_of
    monkeypatch.setattr(queries, "_query_of", lambda compiled: calls.append(1) or whole(compiled))
    with engine.connect() as connection:
        for n in range(3):
            connection.execute(select(Order).where(Order.id == n))
    assert len(calls) == 1
    assert described[0] is described[1] is described[2]


@pytest.mark.faults
def test_a_fault_leaves_the_statement_alone(engine, described, monkeypatch):
    def broken(compiled):
        raise RuntimeError("broken")

    monkeypatch.setattr(queries, "_query_of", broken)
    with engine.connect() as connection:
        assert connection.scalar(select(func.count(Order.id))) == 0
    assert described == [UNKNOWN]
    assert value("sqlalchemy_session_telemetry_faults_total", component="queries") == 1


SANITISED = [
    ("select 'a', \"b\", 1, 2.5e-3, .5, 0x1F", 'select ?, "b", ?, ?, ?, ?'),
    ("select 'it''s', ''", "select ?, ?"),
    ("select E'it\\'s', x from t", "select ?, x from t"),
    ("select $$it's$$, $tag$a $$ b$tag$, x", "select ?, ?, x"),
    ("select N'a', x'ff', b'01'", "select ?, ?, ?"),
    (
        "select q'[it's]', nq'{it's}', Q'(it's)', q'<it's>', q'!it's!', q from t",
        "select ?, ?, ?, ?, ?, q from t",
    ),
    ("select q'[it's never closed", "select ?"),
    ("select a #> '{b}', a #- b from t", "select a #> ?, a #- b from t"),
    ("select 1 -- the 'secret'\nfrom t", "select ? \nfrom t"),
    ("/* it's */ select /* 1 */ 2", "select  ?"),
    ("select 'never closed from t", "select ?"),
    ("select $$never closed from t", "select ?"),
    ("select 1 /* never closed", "select ?"),
    ("select :a, %(b_1)s, $1::INTEGER, @c, %s, ?", "select :a, %(b_1)s, $1::INTEGER, @c, %s, ?"),
    ("select a1, v$s, t2.c3 from v$session", "select a1, v$s, t2.c3 from v$session"),
    ("select x in (1, 2,3) and y In ('a')", "select x IN (?) and y In (?)"),
    ("insert into t values (1, 2), (3, 4)", "insert into t values (?, ?), (?, ?)"),
]


@pytest.mark.parametrize(("given", "expected"), SANITISED)
def test_sanitised(given, expected):
    assert sanitised(given, '"') == expected


def test_sanitised_where_double_quotes_are_strings():
    text = r"""select "it's \" a", 'b\'s', `c'1` from t"""
    assert sanitised(text, "`") == "select ?, ?, `c'1` from t"
    text = "select 1 # it's one\nfrom t where a = 'secret'"
    assert sanitised(text, "`") == "select ? \nfrom t where a = ?"
    compiled = text_compiled_by(mysql.dialect(), 'select "secret"')
    assert describe(compiled).text == "select ?"


def test_sanitised_where_brackets_are_quotes():
    assert sanitised("select [it's], 'a' from [t 1]", "[") == "select [it's], ? from [t 1]"


def text_compiled_by(dialect, statement):
    class Context:
        compiled = text(statement).compile(dialect=dialect)
        executemany = False

    return Context


def test_a_long_text_is_cut_and_shows_no_literal(engine, described):
    long = f"select '{'secret' * TEXT_LIMIT}'"
    with engine.connect() as connection:
        connection.execute(text(long))
    assert described == [Query("", "", "SELECT", "select ?")]


SUMMARIES = [
    ('select * from a.b x, "c d" y where x.id = y.id', 'SELECT a.b "c d"'),
    ("select * from a left join b using (id) join lateral (select ? from c) x on true, d",
     "SELECT a b SELECT c d"),
    ("with x as (select * from a), y as (select 1) insert into b select * from x",
     "SELECT a SELECT INSERT b SELECT x"),
    ("select trim(both from ?), extract(year from at) from t", "SELECT t"),
    ("select a is distinct from b from t for update", "SELECT t"),
    ("insert into t (a, b) values (?, ?) on conflict (a) do update set b = ?", "INSERT t"),
    ("insert or replace into t values (?)", "INSERT t"),
    ("update only t set a = (select b from u)", "UPDATE t SELECT u"),
    ("delete from t using u where t.id = u.id", "DELETE t u"),
    ("merge into t using u on t.id = u.id when matched then update set a = ?", "MERGE t u"),
    ("(select ? from a) union (select ? from b)", "SELECT a SELECT b"),
    ("create temporary table t as select * from u", "CREATE TABLE t SELECT u"),
    ("create unique index if not exists i on t (a)", "CREATE INDEX i"),
    ("alter table t drop column a", "ALTER TABLE t"),
    ("truncate table t", "TRUNCATE TABLE t"),
    ("create user ann password ?", "CREATE USER ann"),
    ("explain analyze select * from t", "EXPLAIN SELECT t"),
    ("call refresh(?)", "CALL refresh"),
    ("pragma main.table_info(?)", "PRAGMA main.table_info"),
    ("begin", "BEGIN"),
    ("set local statement_timeout = ?", "SET"),
    ("vacuum", "VACUUM"),
    ("select ?; delete from t", "SELECT DELETE t"),
    ("", ""),
    (")))", ""),
]  # fmt: skip


@pytest.mark.parametrize(("given", "expected"), SUMMARIES)
def test_summary_of_a_text(given, expected):
    assert summary_of(given) == expected


def test_a_summary_ends_with_a_whole_word():
    tables = [f"table_{n:03}" for n in range(100)]
    summary = summary_of(f"select * from {', '.join(tables)}")
    assert len(summary) <= SUMMARY_LIMIT
    assert summary.split() == ["SELECT", *tables[: len(summary.split()) - 1]]
