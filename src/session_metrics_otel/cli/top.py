"""``top``: the open sessions of many processes, by their live pages, in a terminal."""

from __future__ import annotations

import argparse
import json
import os
import select
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urljoin, urlsplit

from session_metrics_otel.legible import one_line

from .arguments import above_0

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rich.console import Group

TIMEOUT = 5.0
"""Seconds that a process has to answer in."""

AT_ONCE = 32
"""Processes that are asked at the same time."""

INTERVAL = 2.0
"""Seconds between two looks at a terminal."""

COLUMNS = (
    "process", "age", "state", "route", "request", "session", "factory", "statements", "last",
    "made at",
)  # fmt: skip

NARROW = ("process", "age", "state", "route", "session", "last")
"""The columns at a terminal that has no room for all."""

WIDE = 120
"""Characters in a line that are room for all."""

SORTS: dict[str, Callable[[Row], Any]] = {
    "age": lambda row: -row.age,
    "state": lambda row: (row.state, -row.age),
    "route": lambda row: (row.route, -row.age),
}
KEYS = {name[0]: name for name in SORTS}


class Row(NamedTuple):
    """One open session: its columns, of which ``age`` is in seconds."""

    process: str
    age: float
    state: str
    route: str
    request: str
    session: str
    factory: str
    statements: int
    last: str
    made_at: str

    def cells(self) -> list[str]:
        """What is shown, each in one printable line."""
        return [
            f"{value:.1f}" if isinstance(value, float) else one_line(value) or "-" for value in self
        ]


class Look(NamedTuple):
    """What one process answered.

    Attributes:
        url: Where it was asked.
        process: Its host and port, and its process id where it answered.
        trouble: Why nothing more is known of it, or "".
        open_now: Sessions open.
        created: Sessions whose creation succeeded or failed so far.
        pools: Each pool, with the connections in use and its limit where it has one.
        rows: The open sessions, as many as it shows.
    """

    url: str
    process: str
    trouble: str = ""
    open_now: int = 0
    created: int = 0
    pools: str = ""
    rows: tuple[Row, ...] = ()


def add_to(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "top",
        help="show the open sessions of running processes",
        description="Show the open sessions of many processes, read from their live pages. In a "
        "terminal it refreshes (a, s, r sort by age, state or route; q quits), for which it needs "
        "Rich: pip install 'session-metrics-otel[top]'. Into a pipe it writes one session per "
        "line, with columns separated by tabs, and looks only once unless --interval is given.",
        epilog="Example: top http://10.0.0.1:8000/sessionz http://10.0.0.2:8000/sessionz. "
        "Exit code: 0, or 1 if no process answered.",
    )
    parser.add_argument(
        "urls",
        metavar="URL",
        nargs="+",
        type=_address,
        help="a process's live page, such as http://127.0.0.1:8000/sessionz",
    )
    parser.add_argument(
        "--sort", choices=SORTS, default="age", help="what comes first (%(default)s: the oldest)"
    )
    parser.add_argument("--limit", type=_count, metavar="N", help="show at most N sessions")
    parser.add_argument(
        "--interval",
        type=partial(above_0, what="a number of seconds"),
        metavar="SECONDS",
        help=f"seconds between two looks ({INTERVAL:g})",
    )
    parser.add_argument("--once", action="store_true", help="look only once, in a terminal too")
    parser.add_argument(
        "--header",
        action="append",
        default=[],
        type=_header,
        metavar="'NAME: VALUE'",
        help="send this header with each request, if the pages need it; may be repeated",
    )
    parser.set_defaults(run=run)


def _address(given: str) -> str:
    try:
        parts = urlsplit(given)
    except ValueError:  # brackets that are no address of IPv6
        parts = urlsplit("")
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        message = f"{given!r} is not the address of a live page: try http://127.0.0.1:8000/sessionz"
        raise argparse.ArgumentTypeError(message)
    return given


def _count(given: str) -> int:
    if not given.isdecimal() or int(given) < 1:
        message = f"{given!r} is not a whole number above 0"
        raise argparse.ArgumentTypeError(message)
    return int(given)


def _header(given: str) -> tuple[str, str]:
    name, colon, value = given.partition(":")
    if not name.strip() or not colon:
        message = f"{given!r} is not NAME: VALUE; try 'Authorization: Bearer ...'"
        raise argparse.ArgumentTypeError(message)
    return name.strip(), value.strip()


def run(options: argparse.Namespace) -> None:
    """Look, once or again and again, and show what was found."""
    try:
        answered = _show(options) if sys.stdout.isatty() else _write_lines(options)
    except KeyboardInterrupt:
        return
    except BrokenPipeError:  # whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if not answered:
        sys.exit(1)


def _numbers_of(page: str) -> list[str]:
    """Where a live page may have its numbers, as it finds them itself: beside it, or below."""
    parts = urlsplit(page)
    if parts.path.endswith(".json"):
        return [page]
    below = parts._replace(path=f"{parts.path.rstrip('/')}/sessionz.json", query="", fragment="")
    return list(dict.fromkeys([urljoin(page, "sessionz.json"), below.geturl()]))


def _ask(page: str, headers: Sequence[tuple[str, str]]) -> Look:
    looks = (_ask_at(url, headers)._replace(url=page) for url in _numbers_of(page))
    first = next(looks)
    return next(looks, first) if first.trouble.startswith("404 ") else first


def _ask_at(url: str, headers: Sequence[tuple[str, str]]) -> Look:
    host = one_line(urlsplit(url).netloc.rpartition("@")[2])
    request = urllib.request.Request(url, headers=dict(headers))  # noqa: S310 - see _address
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
            body = answer.read()
    except urllib.error.HTTPError as refusal:
        said = refusal.read(200).decode("utf-8", "replace").partition("\n")[0]
        return Look(url, host, one_line(f"{refusal.code} {refusal.reason}: {said}"))
    except (OSError, HTTPException, ValueError) as refusal:
        reason = getattr(refusal, "reason", refusal)
        return Look(url, host, one_line(f"{type(reason).__name__}: {reason}"))
    try:
        return _read(url, host, json.loads(body))
    except Exception:  # noqa: BLE001 - anything at all may answer there
        return Look(url, host, "what it answered is no live page's, or that of another version")


def _read(url: str, host: str, document: Any) -> Look:
    """What a live page's ``document`` says, read to the end: what is not as expected raises."""
    process = f"{host}/{int(document['process'])}"
    history = document["history"]
    newest: Any = history[-1] if history else {"success": 0, "failure": 0, "pools": {}}
    pools = ", ".join(
        f"{one_line(name)} {pool['used']}" + ("" if pool["max"] is None else f"/{pool['max']:g}")
        for name, pool in newest["pools"].items()
    )
    rows = tuple(
        Row(
            process, float(one["age_seconds"]), str(one["state"]), str(one["route"]),
            one["request_id"], one["session_id"], one["factory"], int(one["statements"]),
            one["last_statement"], one["made_at"],
        )
        for one in document["sessions"]
    )  # fmt: skip
    created = int(newest["success"] + newest["failure"])
    return Look(url, process, "", int(document["open"]), created, pools, rows)


def look_at(urls: Sequence[str], headers: Sequence[tuple[str, str]] = ()) -> list[Look]:
    """Ask each process for its open sessions, all at once."""
    with ThreadPoolExecutor(min(len(urls), AT_ONCE)) as pool:
        return list(pool.map(lambda url: _ask(url, headers), urls))


def _sorted_rows(looks: Iterable[Look], sort: str) -> list[Row]:
    return sorted((row for look in looks for row in look.rows), key=SORTS[sort])


def _since(looks: Sequence[Look], before: dict[str, int]) -> list[str]:
    """How many sessions each process made since the look before; "" at the first."""
    return [
        "" if look.trouble or look.url not in before
        # Fewer than before: another process answers there now, and has made all of its own.
        else f"+{look.created - before[look.url] * (look.created >= before[look.url])}"
        for look in looks
    ]  # fmt: skip


def _made(looks: Iterable[Look]) -> dict[str, int]:
    return {look.url: look.created for look in looks if not look.trouble}


def _write_lines(options: argparse.Namespace) -> bool:
    """One line for each process, beginning with ``#``, and one for each session."""
    before: dict[str, int] = {}
    while True:
        looks = look_at(options.urls, options.header)
        for look, made in zip(looks, _since(looks, before), strict=True):
            if look.trouble:
                print(f"{look.process}: {look.trouble}", file=sys.stderr)
            else:
                new = f", {made} made" if made else ""
                pools = f"; connections: {look.pools}" if look.pools else ""
                print(f"# {look.process}: {look.open_now} open{new}{pools}")
        print("\t".join(COLUMNS))
        for row in _sorted_rows(looks, options.sort)[: options.limit]:
            print("\t".join(row.cells()))
        sys.stdout.flush()
        if options.once or options.interval is None:
            return not all(look.trouble for look in looks)
        before = _made(looks)
        time.sleep(options.interval)


def _show(options: argparse.Namespace) -> bool:
    """Fill the terminal, until q."""
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        print(
            "top needs Rich at a terminal: pip install 'session-metrics-otel[top]'. "
            "Into a pipe it does without: top URL | cat",
            file=sys.stderr,
        )
        sys.exit(2)
    console = Console()
    looks = look_at(options.urls, options.header)
    if options.once:
        console.print(_frame(looks, {}, options.sort, options.limit, console.width))
        return not all(look.trouble for look in looks)
    sort = options.sort
    before: dict[str, int] = {}
    with Live(console=console, screen=True, auto_refresh=False) as live, _keyboard() as pressed:
        while True:
            room = max(console.height - len(looks) - 8, 1)
            frame = _frame(looks, before, sort, min(options.limit or room, room), console.width)
            live.update(frame, refresh=True)
            key = pressed(options.interval or INTERVAL)
            if key == "q":
                return True
            sort = KEYS.get(key, sort)
            if not key:
                before = _made(looks)
                looks = look_at(options.urls, options.header)


def _frame(
    looks: Sequence[Look], before: dict[str, int], sort: str, limit: int | None, width: int
) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    processes = Table(box=None, header_style="bold")
    processes.add_column("process", no_wrap=True)
    processes.add_column("open", justify="right", min_width=4)
    processes.add_column("made", justify="right", min_width=5)
    processes.add_column("connections", no_wrap=True, overflow="ellipsis")
    for look, made in zip(looks, _since(looks, before), strict=True):
        # As Text: what is between brackets would be Rich's markup.
        process = Text(look.process)
        if look.trouble:
            processes.add_row(process, "-", "", Text(look.trouble, style="red"))
        else:
            processes.add_row(process, str(look.open_now), made, Text(look.pools))
    sessions = Table(box=None, header_style="bold", expand=True)
    columns = COLUMNS if width >= WIDE else NARROW
    for column in columns:
        number = column in {"age", "statements"}
        sessions.add_column(
            f"{column} ▾" if column == sort else column, justify="right" if number else "left",
            no_wrap=True, overflow="ellipsis", min_width=7 if number else 4,
            ratio=None if number or column in {"process", "state"} else 1,
        )  # fmt: skip
    shown = [COLUMNS.index(column) for column in columns]
    rows = _sorted_rows(looks, sort)
    for row in rows[:limit]:
        cells = row.cells()
        sessions.add_row(*(Text(cells[column]) for column in shown))
    hidden = len(rows) - len(rows[:limit])
    note = f"and {hidden} more; " if hidden else ""
    return Group(processes, "", sessions, Text(f"{note}sort: a age, s state, r route; q ends it"))


@contextmanager
def _keyboard() -> Iterator[Callable[[float], str]]:
    """Gives a function that waits for a key: the key, or "" when the seconds are over."""
    try:
        import termios
        import tty
    except ImportError:  # Windows
        termios = None  # type: ignore[assignment]
    if termios is None or not sys.stdin.isatty():
        yield _sleep  # Ctrl-C ends it
        return
    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([stdin], [], [], seconds)
        if not ready:
            return ""
        return os.read(stdin, 1).decode("ascii", "replace") or "q"  # the terminal is gone

    tty.setcbreak(stdin)
    try:
        yield pressed
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)


def _sleep(seconds: float) -> str:
    time.sleep(seconds)
    return ""
