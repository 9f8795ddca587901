"""``top``: into a pipe, and at a terminal."""

from __future__ import annotations

import json
import os
import re
import select
import socketserver
import subprocess
import sys
import threading
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest

from session_metrics_otel import SessionMetrics
from session_metrics_otel.cli import main, top
from session_metrics_otel.web.live_page import LivePage

HEAD = "process\tage\tstate\troute\trequest\tsession\tfactory\tstatements\tlast\tmade at"


def session(session_id, age=1.0, state="active", route="/orders", **others):
    return {
        "session_id": session_id, "factory": "orders", "request_id": f"r-{session_id}",
        "route": route, "state": state, "age_seconds": age, "statements": 2,
        "last_statement": "SELECT orders", "made_at": "app.py:7 in orders",
    } | others  # fmt: skip


class Process:
    """Answers what it is told to, as a process's live page does."""

    def __init__(self):
        self.sessions = []
        self.made = 0
        self.asked = []
        self.body = None
        self.pools = {"main": {"used": 1, "max": 15}, "cache": {"used": 2, "max": None}}

    def __call__(self, environ, start_response):
        self.asked.append((environ["PATH_INFO"], environ.get("HTTP_AUTHORIZATION")))
        body = self.body or json.dumps({
            "process": 77,
            "open": len(self.sessions),
            "sessions": self.sessions,
            "history": [{"at": 0, "success": self.made, "failure": 0, "pools": self.pools}],
        })  # fmt: skip
        start_response("200 OK", [("Content-Type", "application/json")])
        return [body.encode()]


class Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class Quiet(WSGIRequestHandler):
    def log_message(self, *_):
        pass


class SpeaksNoHttp(socketserver.StreamRequestHandler):
    def handle(self):
        self.request.recv(65536)
        self.wfile.write(b"nonsense\n")


@pytest.fixture
def serve():
    """Serves a WSGI application; its address."""
    served = []

    def serve(application):
        server = make_server("127.0.0.1", 0, application, Server, Quiet)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        served.append((server, thread))
        return f"127.0.0.1:{server.server_port}"

    yield serve
    for server, thread in served:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def process():
    return Process()


@pytest.fixture
def at(serve, process):
    return serve(process)


@pytest.fixture
def lines(capsys):
    """Runs the command into a pipe; the lines that it wrote."""

    def run(*arguments):
        main(["top", *arguments])
        return capsys.readouterr().out.splitlines()

    return run


class TestIntoAPipe:
    def test_is_one_session_a_line(self, lines, at, process):
        process.sessions = [
            session("s-1", 1.25, route="/a"),
            session("s-2", 65.0, "idle", "", request_id=""),
        ]
        assert lines(f"http://{at}/sessionz") == [
            f"# {at}/77: 2 open; connections: main 1/15, cache 2",
            HEAD,
            f"{at}/77\t65.0\tidle\t-\t-\ts-2\torders\t2\tSELECT orders\tapp.py:7 in orders",
            f"{at}/77\t1.2\tactive\t/a\tr-s-1\ts-1\torders\t2\tSELECT orders\tapp.py:7 in orders",
        ]

    @pytest.mark.parametrize(
        ("sort", "first"),
        [("age", ["c", "a", "b"]), ("state", ["c", "b", "a"]), ("route", ["a", "b", "c"])],
    )
    def test_in_the_order_that_is_asked_for(self, lines, at, process, sort, first):
        process.sessions = [
            session("a", 5, "idle", "/a"),
            session("b", 1, "active", "/b"),
            session("c", 9, "active", "/c"),
        ]
        shown = lines(f"http://{at}/sessionz", "--sort", sort)[2:]
        assert [line.split("\t")[5] for line in shown] == first
        assert len(lines(f"http://{at}/sessionz", "--limit", "1")) == 3

    def test_of_many_processes_at_once(self, lines, serve):
        several = [Process() for _ in range(3)]
        for number, one in enumerate(several):
            one.sessions = [session(f"s-{number}", number)]
        hosts = [serve(one) for one in several]
        shown = lines(*(f"http://{host}/sessionz" for host in hosts))
        assert [line.split("/")[0] for line in shown[:3]] == [f"# {host}" for host in hosts]
        assert [line.split("\t")[5] for line in shown[4:]] == ["s-2", "s-1", "s-0"]

    def test_one_that_does_not_answer_is_named_and_the_rest_is_shown(self, at, lines, capsys):
        main(["top", "http://127.0.0.1:1/sessionz", f"http://{at}/sessionz"])
        found = capsys.readouterr()
        assert found.err.startswith("127.0.0.1:1: ConnectionRefusedError: ")
        assert found.out.splitlines()[0].startswith(f"# {at}/77: 0 open")

    def test_where_nobody_answers_ends_with_1(self, serve, capsys):
        refusing = serve(LivePage(authorise=lambda _: False).wsgi)
        with pytest.raises(SystemExit) as ended:
            main(["top", f"http://{refusing}/sessionz"])
        assert ended.value.code == 1
        assert "403 Forbidden: This page answers only to" in capsys.readouterr().err

    def test_one_that_hangs_is_not_waited_for(self, serve, monkeypatch, capsys):
        let_go = threading.Event()

        def hang(environ, start_response):
            let_go.wait()
            start_response("200 OK", [])
            return []

        monkeypatch.setattr(top, "TIMEOUT", 0.05)
        with pytest.raises(SystemExit):
            main(["top", f"http://{serve(hang)}/sessionz"])
        let_go.set()
        assert "TimeoutError: timed out" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "body",
        [
            "<html>",
            "[]",
            "{}",
            "[" * 100_000,
            '{"sessions": [], "history": []}',
            '{"process": 7, "open": null, "sessions": [], "history": []}',
            '{"process": 7, "open": 1, "sessions": [{}], "history": []}',
            '{"process": 7, "open": 1, "sessions": [], "history": [{"made": 1}]}',
            '{"process": 7, "open": 1e999, "sessions": [], "history": []}',
            '{"process": 7, "open": 1, "sessions": [], "history": [{"pools": ["main"]}]}',
        ],
    )
    def test_one_of_another_version_or_kind_is_said_to_be_so(self, at, process, body, capsys):
        process.body = body
        with pytest.raises(SystemExit) as ended:
            main(["top", f"http://{at}/sessionz"])
        assert ended.value.code == 1
        assert capsys.readouterr().err == (
            f"{at}: what it answered is no live page's, or that of another version\n"
        )

    def test_one_that_does_not_speak_http_is_named(self, capsys):
        with socketserver.TCPServer(("127.0.0.1", 0), SpeaksNoHttp) as server:
            thread = threading.Thread(target=server.handle_request)
            thread.start()
            host = f"127.0.0.1:{server.server_address[1]}"
            with pytest.raises(SystemExit) as ended:
                main(["top", f"http://{host}/sessionz"])
            thread.join()
        assert ended.value.code == 1
        assert capsys.readouterr().err == f"{host}: BadStatusLine: nonsense\\n\n"

    def test_asks_where_the_page_itself_does_and_says_who_asks(self, at, process, lines):
        for path in ("", "/sessionz", "/sessionz/", "/in/sessionz", "/other.json"):
            lines(f"http://{at}{path}", "--header", "Authorization: Bearer x")
        assert process.asked == [
            ("/sessionz.json", "Bearer x"),
            ("/sessionz.json", "Bearer x"),
            ("/sessionz/sessionz.json", "Bearer x"),
            ("/in/sessionz.json", "Bearer x"),
            ("/other.json", "Bearer x"),
        ]

    def test_asks_below_a_page_that_has_nothing_beside_it(self, serve, lines, capsys):
        page = LivePage()

        def mount(environ, start_response):
            if environ["PATH_INFO"].startswith("/in/sessionz/"):
                return page.wsgi(environ, start_response)
            start_response("404 Not Found", [])
            return [b"nothing here"]

        mounted = serve(mount)
        for path in ("/in/sessionz", "/in/sessionz/", "/in/sessionz/sessionz.json"):
            assert lines(f"http://{mounted}{path}")[0].endswith(": 0 open")
        with pytest.raises(SystemExit):
            main(["top", f"http://{mounted}/else"])
        assert capsys.readouterr().err == f"{mounted}: 404 Not Found: nothing here\n"

    def test_of_a_real_page_with_a_hostile_id(self, serve, lines):
        record = SessionMetrics("a\tb\n\x1b[31m[red]", factory="orders")
        record.state = "active"
        (shown,) = lines(f"http://{serve(LivePage().wsgi)}/sessionz")[2:]
        assert shown.split("\t")[5] == "a\\tb\\n\\x1b[31m[red]"
        record.close()

    def test_again_and_again_says_what_was_made_since(self, at, process, monkeypatch, capsys):
        process.made = 3
        waited = []

        def sleep(seconds):
            waited.append(seconds)
            process.made = {1: 10, 2: 4}.get(len(waited), 4)  # then another process answers
            if len(waited) == 3:
                raise KeyboardInterrupt

        monkeypatch.setattr(top.time, "sleep", sleep)
        main(["top", f"http://{at}/sessionz", "--interval", "7"])
        heads = [line for line in capsys.readouterr().out.splitlines() if line[0] == "#"]
        assert [line.partition("77: ")[2].partition(";")[0] for line in heads] == [
            "0 open", "0 open, +7 made", "0 open, +4 made",
        ]  # fmt: skip
        assert waited == [7, 7, 7]

    def test_who_reads_no_further_ends_it_quietly(self, at, process):
        process.sessions = [session(f"s-{n}") for n in range(2000)]
        done = subprocess.run(
            f"{sys.executable} -m session_metrics_otel top http://{at}/sessionz | head -n 1",
            shell=True, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.stdout.startswith(f"# {at}/77: 2000 open")
        assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["localhost:8000"], "'localhost:8000' is not the address of a live page: try http://"),
        (["file:///etc/passwd"], "is not the address of a live page"),
        (["http://[::1/sessionz"], "'http://[::1/sessionz' is not the address of a live page"),
        (["http://a/sessionz", "--interval", "0"], "'0' is not a number of seconds above 0"),
        (["http://a/sessionz", "--limit", "x"], "'x' is not a whole number above 0"),
        (["http://a/sessionz", "--header", "x"], "'x' is not NAME: VALUE"),
        (["http://a/sessionz", "--sort", "size"], "invalid choice: 'size'"),
    ],
)
def test_what_is_not_taken(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["top", *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="a pseudo-terminal is POSIX's")
class TestAtATerminal:
    @pytest.fixture
    def terminal(self, at):
        """Runs the command at a terminal of its own: types, and reads until something is shown."""
        import fcntl
        import pty
        import struct
        import termios

        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 160, 0, 0))
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "160", "LINES": "24"}
        running = []

        def run(*arguments):
            running.append(subprocess.Popen(
                [sys.executable, "-m", "session_metrics_otel", "top", f"http://{at}/sessionz",
                 *arguments],
                stdin=theirs, stdout=theirs, stderr=theirs, env=environment,
            ))  # fmt: skip

        def until(pattern):
            shown = ""
            while not re.search(pattern, shown, re.DOTALL):
                ready, _, _ = select.select([ours], [], [], 30)
                assert ready, shown
                shown += os.read(ours, 65536).decode("utf-8", "replace")

        yield run, until, lambda text: os.write(ours, text), running
        for one in running:
            one.kill()
            one.wait()
        os.close(ours)
        os.close(theirs)

    def test_is_sorted_by_a_key_and_ended_by_q(self, terminal, process):
        process.sessions = [
            session("s-[red]old", 9, "idle", "/b"),
            session("s-young", 1, "active", "/c"),
        ]
        run, until, write, running = terminal
        run("--interval", "60")
        until(r"s-\[red\]old.*s-young.*q ends it")
        write(b"s")
        until(r"state ▾.*s-young.*s-\[red\]old")
        write(b"r")
        until(r"route ▾.*s-\[red\]old.*s-young")
        write(b"q")
        assert running[0].wait(30) == 0

    def test_looks_again(self, terminal, process):
        run, until, write, _ = terminal
        run("--interval", "0.05")
        until("main 1/15")
        process.made = 5
        process.sessions = [session("s-new")]
        until(r"\+5.*s-new")
        write(b"q")

    def test_shows_as_many_as_there_is_room_for(self, terminal, process):
        process.sessions = [session(f"s-{n}", 100 - n) for n in range(100)]
        run, until, _, _ = terminal
        run()
        until("and 85 more; ")

    def test_looks_once_where_asked_to(self, terminal, process):
        process.sessions = [session("s-1")]
        run, until, _, running = terminal
        run("--once")
        until("s-1")
        assert running[0].wait(30) == 0

    def test_without_rich_says_what_to_install(self, at, monkeypatch, capsys):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setitem(sys.modules, "rich.console", None)
        with pytest.raises(SystemExit) as ended:
            main(["top", f"http://{at}/sessionz"])
        assert ended.value.code == 2
        assert "pip install 'session-metrics-otel[top]'" in capsys.readouterr().err
