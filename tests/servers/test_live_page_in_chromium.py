"""The live page in a real browser."""

from __future__ import annotations

import re
import subprocess
import threading
from contextlib import contextmanager
from html import unescape
from typing import TYPE_CHECKING
from wsgiref.simple_server import make_server

from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker
from werkzeug.exceptions import NotFound
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from servers.processes import PATIENCE
from session_metrics_otel import SessionMetrics, bind, instrument, uninstrument
from session_metrics_otel.cli.order_service import QuietHandler, ThreadingServer
from session_metrics_otel.web.live_page import LivePage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed.wsgi import WSGIApplication

    from servers.chromium_browser import Chromium

HOSTILE = "<img src=x onerror=\"document.title='taken'\">"
TIME = 6000  # milliseconds of the page's own clock: it asks every two seconds


@contextmanager
def served(application: WSGIApplication) -> Iterator[str]:
    # A browser opens connections that it may have a use for: one may not keep the others waiting.
    server = make_server("127.0.0.1", 0, application, ThreadingServer, QuietHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/sessionz"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def shown_by(chromium: Chromium, address: str) -> str:
    done = subprocess.run(
        chromium.command(f"--virtual-time-budget={TIME}", "--dump-dom", address),
        capture_output=True,
        text=True,
        check=True,
        timeout=2 * PATIENCE,
    )
    return done.stdout


def cells(page: str) -> list[list[str]]:
    body = re.search(r'<tbody id="rows">(.*?)</tbody>', page, re.DOTALL)
    assert body is not None
    return [
        [unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)]
        for row in re.findall(r"<tr>(.*?)</tr>", body[1], re.DOTALL)
    ]


def test_it_shows_what_is_open_and_hostile_text_does_nothing(chromium: Chromium) -> None:
    engine = create_engine("sqlite://", connect_args={"check_same_thread": False})
    orders = sessionmaker(engine)
    instrument(orders, name="orders")
    with (
        bind(request_id=HOSTILE, user_id="ann", route=HOSTILE),
        orders() as session,
        served(LivePage().wsgi) as address,
    ):
        session.execute(text("select 1 as \"<script>document.title='taken'</script>\""))
        page = shown_by(chromium, address)
    uninstrument(orders)
    engine.dispose()
    (row,) = cells(page)
    _, factory, request, route, state, _, statements, last, made, *rest = row
    assert (factory, request, route) == ("orders", HOSTILE, HOSTILE)
    assert (state, statements, last) == ("active", "1", "SELECT")
    assert made.endswith("in test_it_shows_what_is_open_and_hostile_text_does_nothing")
    assert rest == []
    assert "<title>Sessions</title>" in page
    assert "<img" not in page
    assert "ann" not in "".join(row)


def test_ten_thousand_are_cut_with_a_count(chromium: Chromium) -> None:
    records = [SessionMetrics(f"s-{number}", factory="many") for number in range(10_000)]
    with served(LivePage().wsgi) as address:
        page = shown_by(chromium, address)
    assert len(cells(page)) == 500
    assert '<strong id="open">10000</strong>' in page
    assert "The oldest 500; 9500 more are open." in page
    del records


def test_it_says_so_where_the_application_does_not_answer(chromium: Chromium) -> None:
    refused = LivePage(authorise=lambda environ: not environ["PATH_INFO"].endswith(".json"))
    with served(refused.wsgi) as address:
        page = shown_by(chromium, address)
    assert "The application does not answer: answered 403" in page


def test_mounted_as_a_whole_it_finds_its_numbers_below(chromium: Chromium) -> None:
    record = SessionMetrics("s-1", factory="mounted")
    mounted = DispatcherMiddleware(NotFound(), {"/sessionz": LivePage().wsgi})
    with served(mounted) as address:
        pages = [shown_by(chromium, f"{address}{end}") for end in ("", "/")]
    assert [[row[1] for row in cells(page)] for page in pages] == [["mounted"]] * 2
    del record
