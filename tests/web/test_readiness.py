"""Readiness: what a probe is told, and that it does not flap."""

from __future__ import annotations

import json
from contextlib import contextmanager
from threading import Thread
from time import sleep

import pytest
from reading import value
from sqlalchemy import text
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import QueuePool

from session_metrics_otel import SessionMetrics, instrument, uninstrument
from session_metrics_otel.web.readiness import Answer, Readiness, readiness

PENDING = "db_client_connection_pending_requests"


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def probe(clock):
    return Readiness(clock=clock)


def created(n=1):
    for _ in range(n):
        record = SessionMetrics(factory="orders")
        record.state = "active"
        record.close()


def failed(n=1, error=TimeoutError):
    for _ in range(n):
        record = SessionMetrics(factory="orders")
        record.record_error(error())
        record.close()


def test_ready_where_nothing_happens(probe):
    assert probe() == Answer(ready=True, reason="")


def test_what_failed_before_it_began_says_nothing(clock):
    failed(9)
    assert Readiness(clock=clock)().ready


def test_not_ready_says_why(probe):
    created(2)
    failed(3)
    failed(1, ConnectionRefusedError)
    assert probe() == (
        False,
        (
            "4 of 6 sessions could not be created within the last 30 s: "
            "3 TimeoutError, 1 ConnectionRefusedError"
        ),
    )


def test_a_few_failures_say_nothing(probe):
    failed(2)
    assert probe().ready
    failed(1)
    assert not probe().ready


def test_between_the_two_shares_it_stays_what_it_was(probe, clock):
    created(6)
    failed(4)
    assert probe().ready
    failed(2)
    assert not probe().ready
    created(8)  # 6 of 20
    assert not probe().ready
    created(40)  # 6 of 60
    assert probe().ready
    failed(10)  # 16 of 70
    assert probe().ready


def test_ready_again_when_its_failures_are_old(probe, clock):
    failed(3)
    assert not probe().ready
    clock.now += 29
    assert not probe().ready
    clock.now += 1
    assert probe().ready


def test_sessions_that_did_nothing_do_not_count(probe):
    failed(3)
    for _ in range(100):
        SessionMetrics(factory="orders").close()
    assert not probe().ready


class TestFullPool:
    """A pool at its limit, with a request that waits for one of its connections."""

    @pytest.fixture
    def maker(self, new_engine):
        engine = new_engine(
            poolclass=QueuePool,
            pool_size=1,
            max_overflow=0,
            pool_timeout=30,
            pool_logging_name="main",
            connect_args={"check_same_thread": False},
        )
        maker = sessionmaker(engine)
        instrument(maker, name="orders")
        return maker

    @contextmanager
    def starved(self, maker):
        """Inside, one session holds the connection and another thread waits for it."""

        def wait():
            with maker() as session:
                session.scalar(text("select 1"))

        with maker() as holding:
            holding.scalar(text("select 1"))
            waiter = Thread(target=wait)
            waiter.start()
            while value(PENDING, db_client_connection_pool_name="main") != 1:
                sleep(0.001)
            yield
        waiter.join()

    def test_is_not_ready_once_it_has_been_so_for_long_enough(self, maker, probe, clock):
        with self.starved(maker):
            assert probe().ready
            clock.now += 9
            assert probe().ready
            clock.now += 1
            assert probe() == (
                False,
                "pool 'main' has 1 of 1 connections in use, and 1 requests waiting for one",
            )

    def test_is_ready_again_once_it_has_been_free_for_long_enough(self, maker, probe, clock):
        with self.starved(maker):
            probe()
            clock.now += 10
            assert not probe().ready
        assert not probe().ready
        clock.now += 9
        assert not probe().ready
        clock.now += 1
        assert probe() == (True, "")

    def test_a_look_at_which_nobody_waits_begins_anew(self, maker, probe, clock):
        with self.starved(maker):
            assert probe().ready
        clock.now += 9
        assert probe().ready
        with self.starved(maker):
            clock.now += 9
            assert probe().ready

    def test_a_pool_that_is_full_and_makes_nobody_wait_is_ready(self, maker, probe, clock):
        with maker() as session:
            session.scalar(text("select 1"))
            probe()
            clock.now += 60
            assert probe().ready

    def test_a_pool_that_is_gone_holds_nobody_up(self, maker, probe, clock):
        with self.starved(maker):
            probe()
            clock.now += 10
            assert not probe().ready
        uninstrument(maker)
        assert probe() == (True, "")

    async def test_is_what_a_probe_is_told(self, maker, probe, clock):
        started, sent = [], []

        async def send(message):
            sent.append(message)

        with self.starved(maker):
            probe()
            clock.now += 10
            probe.wsgi({}, lambda *args: started.append(args))
            await probe.asgi({"type": "http"}, None, send)
        assert started[0][0] == "503 Service Unavailable"
        assert sent[0]["status"] == 503


def test_shares_the_wrong_way_round():
    with pytest.raises(ValueError, match=r"ready_at=0.5 has to be below not_ready_at=0.5"):
        Readiness(ready_at=0.5, not_ready_at=0.5)


def test_over_wsgi(probe):
    started = []
    (body,) = probe.wsgi({}, lambda *args: started.append(args))
    assert json.loads(body) == {"ready": True, "reason": ""}
    failed(3)
    (body,) = probe.wsgi({}, lambda *args: started.append(args))
    assert json.loads(body)["reason"].startswith("3 of 3 sessions could not be created")
    assert [status for status, _ in started] == ["200 OK", "503 Service Unavailable"]
    assert dict(started[1][1])["Content-Length"] == str(len(body))


async def test_over_asgi(probe):
    sent = []

    async def send(message):
        sent.append(message)

    await probe.asgi({"type": "http"}, None, send)
    failed(3)
    await probe.asgi({"type": "http"}, None, send)
    assert [message["status"] for message in sent[::2]] == [200, 503]
    assert json.loads(sent[3]["body"])["ready"] is False
    await probe.asgi({"type": "websocket"}, None, send)
    assert len(sent) == 4


def test_the_process_has_one():
    assert isinstance(readiness(), Answer)
