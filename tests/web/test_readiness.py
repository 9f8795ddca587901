"""Readiness: what a probe is told, and that it does not flap."""

from __future__ import annotations

import json

import pytest

from session_metrics_otel import SessionMetrics
from session_metrics_otel.web.readiness import Answer, Readiness, readiness


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
