"""The live page: what it says, and to whom."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from time import sleep
from uuid import UUID
from wsgiref.util import setup_testing_defaults

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import QueuePool

from session_metrics_otel import SessionMetrics, bind, instrument, metrics_for, uninstrument
from session_metrics_otel.watchdog import unwatch, watch
from session_metrics_otel.web import live_page
from session_metrics_otel.web.live_page import SHOWN, LivePage, from_this_machine

HOSTILE = "</script><img src=x onerror=alert(1)>\ud800\x00"


def get(page, path="/sessionz.json", *, method="GET", address="127.0.0.1", **headers):
    """Ask by WSGI: status, headers, body."""
    environ = {"PATH_INFO": path, "REQUEST_METHOD": method, "REMOTE_ADDR": address}
    setup_testing_defaults(environ)
    environ["HTTP_HOST"] = "localhost:8464"
    environ |= {f"HTTP_{name.upper()}": value for name, value in headers.items()}
    told = []
    body = b"".join(page.wsgi(environ, lambda *status_and_headers: told.extend(status_and_headers)))
    return told[0], dict(told[1]), body


async def get_asgi(page, path, *, method="GET", client=("127.0.0.1", 5), host=b"localhost"):
    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "client": client,
        "headers": [(b"host", host)],
    }
    await page.asgi(scope, None, send)
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


class TestDocument:
    def test_an_open_session_is_told_with_all_that_is_known(self, new_engine):
        orders = sessionmaker(new_engine())
        instrument(orders, name="orders")
        with bind(request_id="r-1", user_id="ann", route="/orders/{id}"), orders() as session:
            session.execute(text("select 1"))
            document = LivePage().document()
            (told,) = document["sessions"]
            assert told.pop("age_seconds") >= 0
            line = told.pop("made_at")
            assert line.startswith(__file__)
            assert line.endswith(" in test_an_open_session_is_told_with_all_that_is_known")
            assert told == {
                "session_id": metrics_for(session).session_id,
                "factory": "orders",
                "request_id": "r-1",
                "route": "/orders/{id}",
                "state": "active",
                "statements": 1,
                "last_statement": "SELECT",
            }
            (told,) = LivePage(show_users=True).document()["sessions"]
            assert told["user_id"] == "ann"
        assert document["open"] == 1
        assert LivePage().document()["open"] == 0
        uninstrument(orders)

    def test_the_report_of_an_exhausted_pool_and_its_fill(self, new_engine):
        engine = new_engine(poolclass=QueuePool, pool_size=1, max_overflow=1, pool_timeout=0.01)
        orders = sessionmaker(engine)
        instrument(orders, name="orders")
        held = [orders(), orders()]
        for session in held:
            session.execute(text("select 1"))
        with orders() as waiting, pytest.raises(PoolTimeoutError):
            waiting.execute(text("select 1"))
        document = LivePage().document()
        (report,) = document["exhaustions"]
        assert [holder["factory"] for holder in report["holders"]] == ["orders", "orders"]
        (point,) = document["history"]
        assert point["pools"] == {"sqlite/": {"used": 2, "max": 2}}
        assert (point["success"], point["failure"]) == (2, 1)
        for session in held:
            session.close()
        uninstrument(orders)

    def test_the_fill_of_a_pool_is_that_of_now_though_somebody_has_just_looked(self, new_engine):
        orders = sessionmaker(new_engine(poolclass=QueuePool))
        instrument(orders, name="orders")
        page = LivePage()
        page.look()
        with orders() as session:
            session.execute(text("select 1"))
            *_, point = page.document()["history"]
        assert point["pools"] == {"sqlite/": {"used": 1, "max": 15}}
        assert point["success"] == 1
        uninstrument(orders)

    def test_the_plots_go_on_while_the_watchdog_watches(self, monkeypatch):
        monkeypatch.setattr(live_page, "BETWEEN_LOOKS", 0)
        page = LivePage()
        watch(interval=0.001)
        try:
            while len(page._history) < 3:  # to ask for the document is to look as well
                sleep(0.001)
        finally:
            unwatch()
        assert len(page.document()["history"]) > 3

    def test_of_ten_thousand_the_oldest_are_shown_and_the_rest_is_a_number(self):
        records = [SessionMetrics(f"s-{n}", factory="many") for n in range(10_000)]
        document = LivePage().document()
        assert document["open"] == 10_000
        assert len(document["sessions"]) == SHOWN
        ids = {session["session_id"] for session in document["sessions"]}
        assert ids == {f"s-{n}" for n in range(SHOWN)}
        del records

    def test_the_oldest_of_every_factory_are_among_those_shown(self):
        early = datetime.now(timezone.utc) - timedelta(hours=1)
        records = [SessionMetrics(f"young-{n}", factory="many") for n in range(SHOWN + 10)]
        records += [SessionMetrics("old", factory="few", created_at=early)]
        shown = LivePage().document()["sessions"]
        assert len(shown) == SHOWN
        assert shown[0]["session_id"] == "old"
        del records

    def test_no_value_of_a_statement_is_on_it(self, new_engine):
        orders = sessionmaker(new_engine())
        instrument(orders, name="orders")
        with orders() as session:
            session.execute(text("select 'hunter2', :given"), {"given": "hunter2"})
            body = get(LivePage())[2].decode()
        uninstrument(orders)
        assert '"last_statement": "SELECT"' in body
        assert "hunter2" not in body

    def test_no_password_is_on_it(self, new_engine):
        pytest.importorskip("psycopg")
        orders = sessionmaker(new_engine("postgresql+psycopg://ann:hunter2@127.0.0.1:1/shop"))
        instrument(orders, name="orders")
        with orders() as session, pytest.raises(OperationalError):
            session.execute(text("select 1"))
        body = get(LivePage())[2].decode()
        uninstrument(orders)
        assert "127.0.0.1:1/shop" in body
        assert "hunter2" not in body

    def test_any_text_is_json(self):
        record = SessionMetrics(HOSTILE, HOSTILE)
        _, headers, body = get(LivePage())
        (told,) = json.loads(body)["sessions"]
        assert told["session_id"] == told["request_id"] == HOSTILE
        assert headers["Content-Type"] == "application/json"
        assert headers["X-Content-Type-Options"] == "nosniff"
        del record

    def test_an_id_that_is_no_text_is_shown_as_one(self):
        record = SessionMetrics(UUID(int=7), request_id=8)
        (told,) = json.loads(get(LivePage())[2])["sessions"]
        assert told["session_id"] == "00000000-0000-0000-0000-000000000007"
        assert told["request_id"] == 8
        del record


def test_a_program_that_has_one_ends_in_silence(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "from session_metrics_otel.web.live_page import LivePage\n"
        "from sqlalchemy import create_engine\n"
        "from sqlalchemy.orm import sessionmaker\n"
        "from session_metrics_otel import instrument\n"
        "page = LivePage()\n"
        "orders = sessionmaker(create_engine('sqlite://'))\n"
        "instrument(orders)\n"
        "def application(environ, start_response):\n"
        "    return page.wsgi(environ, start_response)\n"
    )
    done = subprocess.run([sys.executable, program], capture_output=True, check=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")


class TestAnswer:
    def test_the_page_may_run_its_own_script_and_nothing_else(self):
        status, headers, body = get(LivePage(), "/sessionz")
        assert status == "200 OK"
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe" not in policy
        page = body.decode()
        assert len(re.findall("<script", page)) == len(re.findall("<style", page)) == 1
        assert not re.search(r"(src|href)=|@import|url\(|https?://(?!www\.w3\.org)", page)
        assert "innerHTML" not in page

    def test_head_has_no_body(self):
        status, headers, body = get(LivePage(), "/sessionz", method="HEAD")
        assert (status, body) == ("200 OK", b"")
        assert int(headers["Content-Length"]) > 1000

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
    def test_nothing_else_is_taken(self, method):
        assert get(LivePage(), method=method)[0] == "405 Method Not Allowed"

    @pytest.mark.parametrize(
        ("address", "headers"),
        [
            ("192.0.2.1", {}),
            ("", {}),
            ("::ffff:192.0.2.1", {}),
            ("127.0.0.1", {"x_forwarded_for": "192.0.2.1"}),
            ("127.0.0.1", {"forwarded": "for=192.0.2.1"}),
            ("127.0.0.1", {"host": "rebound.example"}),
            ("127.0.0.1", {"host": ""}),
        ],
    )
    def test_others_are_refused_and_told_why(self, address, headers):
        status, _, body = get(LivePage(), address=address, **headers)
        assert status == "403 Forbidden"
        assert b"LivePage(authorise=...)" in body

    @pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
    @pytest.mark.parametrize(
        "host", ["localhost", "Localhost:80", "127.0.0.1:8464", "[::1]:80", "[::1]"]
    )
    def test_this_machine_by_any_of_its_names(self, address, host):
        assert from_this_machine(address, {"host": host})

    def test_the_applications_own_authorisation_decides_alone(self):
        page = LivePage(authorise=lambda environ: environ.get("HTTP_TOKEN") == "secret")
        assert get(page, address="192.0.2.1", token="secret")[0] == "200 OK"
        assert get(page, address="127.0.0.1")[0] == "403 Forbidden"


class TestAsgi:
    async def test_page_and_json(self):
        status, headers, body = await get_asgi(LivePage(), "/sessionz")
        assert (status, headers[b"content-type"]) == (200, b"text/html; charset=utf-8")
        assert b"<title>Sessions</title>" in body
        for path in ("/sessionz.json", "/sessionz.json/"):  # the latter is Starlette's, of a mount
            status, _, body = await get_asgi(LivePage(), path)
            assert json.loads(body)["open"] == 0

    async def test_others_are_refused(self):
        assert (await get_asgi(LivePage(), "/sessionz", client=("192.0.2.1", 5)))[0] == 403
        assert (await get_asgi(LivePage(), "/sessionz", client=None))[0] == 403
        assert (await get_asgi(LivePage(), "/sessionz", host=b"rebound.example"))[0] == 403
