"""The live page: who holds what in this process, now. ``/sessionz``, and ``/sessionz.json``."""

from __future__ import annotations

import base64
import json
import os
import re
import time
from collections import deque
from dataclasses import asdict
from datetime import datetime, timezone
from hashlib import sha256
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from session_metrics_otel import catalog
from session_metrics_otel.base import plain
from session_metrics_otel.hooks.holders import exhaustion_reports
from session_metrics_otel.hooks.places import line_of
from session_metrics_otel.hooks.queries import summary_of_sent
from session_metrics_otel.ledger import LEDGER
from session_metrics_otel.watchdog import leak_reports, look_along
from session_metrics_otel.weak import alive

from .response import Response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from session_metrics_otel.session_metrics import DatabaseSessionMetrics

    from .asgi import Receive, Scope, Send

    Authorise = Callable[[Mapping[str, Any]], object]

SHOWN = 500
"""Sessions that are shown, the oldest first; the rest is a number."""

POINTS = 150
"""Looks that the plots go back."""

BETWEEN_LOOKS = 1.5
"""Seconds that at least lie between two points of a plot, however many people look."""

_PAGE = Path(__file__).with_name("sessionz.html").read_text(encoding="utf-8")


def _hash_of(tag: str) -> str:
    """The hash by which the page's one element ``tag`` may run, and nothing else on it."""
    found = re.search(rf"<{tag}>(.*?)</{tag}>", _PAGE, re.DOTALL)
    digest = sha256(found[1].encode() if found else b"").digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_hash_of('script')}; style-src {_hash_of('style')}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_TEXT = "text/plain; charset=utf-8"
_REFUSED = (
    "This page answers only to this machine itself, by the name localhost and with no proxy in "
    "between. Give LivePage(authorise=...) to let others see it.\n"
)


def from_this_machine(address: str, headers: Mapping[str, str]) -> bool:
    """Whether a request comes from this machine itself, as far as that can be known.

    Args:
        address: The peer's address.
        headers: The request's headers, by their names in lower case.

    A proxy on this machine makes everybody's requests come from it: so a request that was passed on
    is nobody's. A name that somebody else's DNS leads here (DNS rebinding) is refused by ``Host``.
    """
    passed_on = {"forwarded", "x-forwarded-for", "x-real-ip", "via"} & set(headers)
    host = re.sub(r":\d+$", "", headers.get("host", "")).strip("[]").lower()
    try:
        peer = ip_address(address)
        peer = getattr(peer, "ipv4_mapped", None) or peer  # of a socket for both IPv6 and IPv4
        return (
            not passed_on
            and peer.is_loopback
            and (host == "localhost" or ip_address(host).is_loopback)
        )
    except ValueError:
        return False


class LivePage:
    """The page, and the same as JSON where the path ends in ``.json``.

    Mount ``page.wsgi`` or ``page.asgi`` at ``/sessionz`` and ``/sessionz.json``. Nothing on it
    changes anything: it takes GET and HEAD.

    Args:
        authorise: Says who may see it, from the WSGI environ or the ASGI scope. By default only
            this machine itself may.
        show_users: Whether users' ids are on it.
    """

    def __init__(self, *, authorise: Authorise | None = None, show_users: bool = False) -> None:
        self._authorise = authorise
        self._show_users = show_users
        self._history: deque[dict[str, Any]] = deque(maxlen=POINTS)
        self._looked = -BETWEEN_LOOKS
        look_along(self)

    def document(self) -> dict[str, Any]:
        """All that is on the page: times in seconds, dates in ISO 8601 form.

        ``open`` is how many sessions are open, ``sessions`` the oldest of them, ``history`` what
        the plots show: counts of creations so far, and of each pool the connections used, and its
        limit where it has one.
        """
        factories = LEDGER.factories()
        oldest = sorted(_oldest_of_each(factories), key=lambda record: -record.get_age_seconds())
        return {
            "at": datetime.now(timezone.utc).isoformat(),
            "process": os.getpid(),
            "open": sum(len(factory.live) for factory in factories),
            "sessions": [self._describe(record) for record in oldest[:SHOWN]],
            "exhaustions": exhaustion_reports()[::-1],
            "leaks": [asdict(report) for report in leak_reports()[::-1]],
            "history": self._points(),
        }

    def _describe(self, record: DatabaseSessionMetrics) -> dict[str, Any]:
        described = {
            "session_id": plain(record.session_id),
            "factory": record.factory,
            "request_id": plain(record.request_id),
            "route": record.route,
            "state": record.state.value,
            "age_seconds": round(record.get_age_seconds(), 3),
            "statements": record.query_count,
            "last_statement": summary_of_sent(getattr(record, "last_statement", None)),
            "made_at": line_of(getattr(record, "born_at", None)),
        }
        return described | {"user_id": plain(record.user_id)} if self._show_users else described

    def look(self) -> None:
        """Add a point to the plots, where the last one is old enough."""
        now = time.monotonic()
        if now - self._looked >= BETWEEN_LOOKS:
            self._looked = now
            self._history.append(_point())

    def _points(self) -> list[dict[str, Any]]:
        """The points of the plots. The last one is of now, even where others looked just before."""
        self.look()
        return [*list(self._history)[:-1], _point()]

    def answer(
        self, method: str, path: str, address: str, headers: Mapping[str, str], request: Any
    ) -> Response:
        """What one request is answered with."""
        if self._authorise is None:
            allowed = from_this_machine(address, headers)
        else:
            allowed = bool(self._authorise(request))
        status, kind, body = HTTPStatus.OK, "text/html; charset=utf-8", _PAGE
        if not allowed:
            status, kind, body = HTTPStatus.FORBIDDEN, _TEXT, _REFUSED
        elif method not in {"GET", "HEAD"}:
            status, kind, body = HTTPStatus.METHOD_NOT_ALLOWED, _TEXT, "GET and HEAD are taken.\n"
        elif path.rstrip("/").endswith(".json"):  # Starlette adds a slash to what is mounted
            kind, body = "application/json", json.dumps(self.document())
        return Response(status, kind, body.encode(), HEADERS)

    def wsgi(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """The page as a WSGI application."""
        headers = {
            key[5:].replace("_", "-").lower(): value
            for key, value in environ.items()
            if key.startswith("HTTP_")
        }
        method = environ["REQUEST_METHOD"]
        path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        response = self.answer(method, path, environ.get("REMOTE_ADDR", ""), headers, environ)
        return response.by_wsgi(method, start_response)

    async def asgi(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """The page as an ASGI application."""
        if scope["type"] != "http":
            return
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        address = (scope.get("client") or ("",))[0]
        response = self.answer(scope["method"], scope["path"], address, headers, scope)
        await response.by_asgi(scope["method"], send)


def _point() -> dict[str, Any]:
    """What is counted now: creations so far, and each pool's connections in use and limit."""
    snapshot: Any = LEDGER.snapshot()
    created = {"success": 0, "failure": 0}
    for (_, outcome, _), total in snapshot[catalog.SESSION_CREATIONS].items():
        if outcome in created:
            created[outcome] += int(total)
    limits = snapshot[catalog.CONNECTION_MAX]
    pools = {
        name: {"used": int(count), "max": limits.get((name,))}
        for (name, state), count in snapshot[catalog.CONNECTION_COUNT].items()
        if state == "used"
    }
    return {"at": time.time(), **created, "pools": pools}


def _oldest_of_each(factories: Iterable[Any]) -> Iterator[DatabaseSessionMetrics]:
    for factory in factories:
        factory.wake()
        # Copied in one step, as others open and close sessions meanwhile.
        yield from alive(list(factory.live.values())[:SHOWN])
