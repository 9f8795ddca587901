"""PostgreSQL refuses, resets, is slow, or is killed in the middle: results are as without us."""

from __future__ import annotations

import re
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from faults.outcomes import FACTORY, Outcome, outcome_of
from reading import counted
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from servers.processes import HOST, free_port
from session_metrics_otel import instrument, uninstrument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from opentelemetry.sdk.trace import TracerProvider

    from servers.postgres_server import Postgres

Fault = "Callable[[Postgres, sessionmaker[Session]], list[Outcome]]"
ADDRESS = re.compile(r"port \d+|0x[0-9a-f]+")


def plain(outcome: Outcome) -> Outcome:
    """``outcome`` without what differs from one run to the next: ports and addresses."""
    return tuple(ADDRESS.sub("*", part) if isinstance(part, str) else part for part in outcome)


def backend(session: Session) -> int:
    pid: int = session.scalar(text("select pg_backend_pid()"))
    return pid


def terminated(postgres: Postgres, maker: sessionmaker[Session]) -> list[Outcome]:
    """Killed in mid-transaction by an administrator; then all is well again."""
    found = []
    with maker() as session:
        session.execute(text("insert into accounts values (1)"))
        postgres.execute(f"select pg_terminate_backend({backend(session)}, 5000)")
        found.append(outcome_of(lambda: session.execute(text("select 1"))))
        found.append(outcome_of(lambda: session.execute(text("select 1"))))
        found.append(outcome_of(session.rollback))
        found.append(outcome_of(lambda: session.scalar(text("select count(*) from accounts"))))
    return found


def killed_in_commit(postgres: Postgres, maker: sessionmaker[Session]) -> list[Outcome]:
    """The backend is killed while COMMIT is at work: a deferred constraint's trigger sleeps."""
    postgres.execute(
        "create function dawdle() returns trigger language plpgsql as"
        " $$ begin perform pg_sleep(30); return null; end $$"
    )
    postgres.execute(
        "create constraint trigger slow_commit after insert on accounts"
        " deferrable initially deferred for each row execute function dawdle()"
    )
    found = []
    with maker() as session:
        session.execute(text("insert into accounts values (1)"))
        process = backend(session)

        def kill() -> None:
            waiting = f"select wait_event from pg_stat_activity where pid = {process}"
            while postgres.execute(waiting) != [("PgSleep",)]:
                time.sleep(0.01)
            postgres.execute(f"select pg_terminate_backend({process}, 5000)")

        killer = threading.Thread(target=kill)
        killer.start()
        found.append(outcome_of(session.commit))
        killer.join()
        found.append(outcome_of(session.rollback))
        found.append(outcome_of(lambda: session.scalar(text("select count(*) from accounts"))))
    return found


def crashed(postgres: Postgres, maker: sessionmaker[Session]) -> list[Outcome]:
    """The whole server crashes in mid-transaction, refuses, and comes back."""
    found = []
    with maker() as session:
        session.execute(text("insert into accounts values (1)"))
        postgres.stop("immediate")
        found.append(outcome_of(session.commit))
        found.append(outcome_of(session.rollback))
    with maker() as session:
        found.append(outcome_of(lambda: session.execute(text("select 1"))))
    postgres.start()
    with maker() as session:
        found.append(outcome_of(lambda: session.scalar(text("select count(*) from accounts"))))
    return found


def slow(postgres: Postgres, maker: sessionmaker[Session]) -> list[Outcome]:
    """A statement that takes longer than the client allows."""
    found = []
    with maker() as session:
        session.execute(text("set statement_timeout = 1000"))
        found.append(outcome_of(lambda: session.execute(text("select pg_sleep(30)"))))
        found.append(outcome_of(lambda: session.execute(text("select 1"))))
        found.append(outcome_of(session.rollback))
    return found


SESSIONS: dict[Any, dict[str, float]] = {
    terminated: {"creations success": 1, "queries": 4, "errors AdminShutdown": 1},
    killed_in_commit: {"creations success": 1, "queries": 3},
    crashed: {"creations success": 2, "creations failure OperationalError": 1},
    slow: {"creations success": 1, "errors QueryCanceled": 1},
}


@pytest.fixture
def run(postgres: Postgres, provider: TracerProvider) -> Iterator[Callable[..., Any]]:
    def run(fault: Any, *, instrumented: bool) -> list[Outcome]:
        postgres.start()
        postgres.empty()
        postgres.execute("create table accounts (id integer)")
        engine = create_engine(postgres.url())
        maker = sessionmaker(engine)
        if instrumented:
            instrument(maker, name=FACTORY, tracer_provider=provider, transaction_spans=True)
        try:
            return [plain(outcome) for outcome in fault(postgres, maker)]
        finally:
            engine.dispose()
            uninstrument(maker)

    return run


@pytest.mark.parametrize("fault", SESSIONS, ids=lambda fault: fault.__name__)
def test_the_results_are_what_they_would_be(run: Callable[..., Any], fault: Any) -> None:
    bare = run(fault, instrumented=False)
    assert any(outcome[0] == "raised" and issubclass(outcome[1], DBAPIError) for outcome in bare)
    assert run(fault, instrumented=True) == bare
    found = counted(FACTORY)
    assert {key: found.get(key) for key in SESSIONS[fault]} == SESSIONS[fault]
    assert not [key for key in found if key.startswith("sqlalchemy_sessions ")]
    ended = sum(n for key, n in found.items() if key.startswith("creations "))
    assert found["duration_seconds_count"] == ended


@contextmanager
def resetting() -> Iterator[int]:
    """A server that resets every connection as soon as the client has said a word."""
    with socket.create_server((HOST, 0)) as server:
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1)
                    linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            stop.set()
            with socket.socket() as last:
                last.connect((HOST, server.getsockname()[1]))
                last.send(b"x")
            thread.join()


def connect_once(port: int, provider: TracerProvider | None) -> Outcome:
    engine = create_engine(f"postgresql+psycopg://ann:s3cret@{HOST}:{port}/test")
    maker = sessionmaker(engine)
    if provider is not None:
        instrument(maker, name=FACTORY, tracer_provider=provider)
    try:
        with maker() as session:
            return plain(outcome_of(lambda: session.execute(text("select 1"))))
    finally:
        engine.dispose()
        uninstrument(maker)


def test_a_refused_connection_is_refused_as_it_would_be(
    postgres: Postgres, provider: TracerProvider, spans: Any
) -> None:
    port = free_port()
    assert connect_once(port, provider) == connect_once(port, None)
    assert counted(FACTORY)["creations failure OperationalError"] == 1
    assert "s3cret" not in "".join(span.to_json() for span in spans.get_finished_spans())


def test_a_reset_connection_fails_as_it_would(
    postgres: Postgres, provider: TracerProvider, spans: Any
) -> None:
    with resetting() as port:
        assert connect_once(port, provider) == connect_once(port, None)
    assert counted(FACTORY)["creations failure OperationalError"] == 1
    assert "s3cret" not in "".join(span.to_json() for span in spans.get_finished_spans())


def test_a_listener_that_is_cut_off_gets_the_same_error(
    postgres: Postgres, provider: TracerProvider
) -> None:
    """The application's own ``handle_error`` listeners still have the last word."""

    def once(*, instrumented: bool) -> Outcome:
        engine = create_engine(postgres.url())

        @event.listens_for(engine, "handle_error")
        def translate(context: Any) -> None:
            raise LookupError(type(context.original_exception).__name__)

        maker = sessionmaker(engine)
        if instrumented:
            instrument(maker, name=FACTORY, tracer_provider=provider)
        try:
            with maker() as session:
                return outcome_of(lambda: session.execute(text("select * from nowhere")))
        finally:
            engine.dispose()
            uninstrument(maker)

    assert once(instrumented=True) == once(instrumented=False)
    assert once(instrumented=False) == ("raised", LookupError, "UndefinedTable")


SECRET = "ann@example.org"


def test_no_value_that_postgresql_quotes_is_on_a_span_or_a_record(
    postgres: Postgres, provider: TracerProvider, spans: Any
) -> None:
    from session_metrics_otel import metrics_for

    postgres.execute("create table users (email text unique, age integer)")
    engine = create_engine(postgres.url())
    maker = sessionmaker(engine)
    instrument(maker, name=FACTORY, tracer_provider=provider)
    texts = []
    try:
        for sql, values in (
            ("insert into users values (:email, 1)", {"email": SECRET}),
            ("insert into users values (:email, 1)", {"email": SECRET}),  # DETAIL: Key (...)
            ("select cast(cast(:email as text) as integer)", {"email": SECRET}),
            (f"select cast('{SECRET}' as integer)", {}),
        ):
            with maker() as session:
                outcome_of(lambda: session.execute(text(sql), values))  # noqa: B023
                texts.append(metrics_for(session).last_error)
                outcome_of(session.commit)
    finally:
        engine.dispose()
        uninstrument(maker)
    shown = "".join(span.to_json() for span in spans.get_finished_spans()) + repr(texts)
    assert SECRET not in shown
    assert texts == [
        None,
        'duplicate key value violates unique constraint "users_email_key"',
        'invalid input syntax for type integer: "?"',
        'invalid input syntax for type integer: "?"',
    ]
