"""Readiness: whether this process should be sent requests, for a Kubernetes probe."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from session_metrics_otel import catalog
from session_metrics_otel.ledger import LEDGER

from .response import Response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from .asgi import Receive, Scope, Send


class Answer(NamedTuple):
    """What a probe is told.

    Attributes:
        ready: Whether to send requests.
        reason: Why not, or "".
    """

    ready: bool
    reason: str = ""


class Readiness:
    """Not ready while sessions cannot be created, or while requests queue for a full pool.

    It does not flap: it takes a high rate of failures to be not ready, and a low one to be ready
    again; and a pool has to be full, and then free again, for as long as ``waiting``. A process
    that is sent no requests, and so creates no session, is ready again when its failures are older
    than the window.

    Args:
        window: The seconds that are looked back on.
        failures: Fewer failed sessions than this in the window say nothing.
        not_ready_at: The share of sessions, from 0 to 1, whose creation failed in the window, from
            which on it is not ready.
        ready_at: The share at which it is ready again.
        waiting: The seconds for which each look has to find a pool at its limit, with requests
            waiting for a connection, until it is not ready; and to find it otherwise, until it is
            ready again.
        clock: Seconds that only rise.

    Raises:
        ValueError: ``ready_at`` is not below ``not_ready_at``.
    """

    def __init__(
        self,
        *,
        window: float = 30.0,
        failures: int = 3,
        not_ready_at: float = 0.5,
        ready_at: float = 0.1,
        waiting: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not ready_at < not_ready_at:
            message = f"ready_at={ready_at!r} has to be below not_ready_at={not_ready_at!r}."
            raise ValueError(message)
        self._window = window
        self._failures = failures
        self._not_ready_at = not_ready_at
        self._ready_at = ready_at
        self._clock = clock
        self._lock = threading.Lock()
        self._creating = True
        self._looks = deque([(clock(), _creations(LEDGER.snapshot()))])
        self._queues = _Queues(waiting)

    def __call__(self) -> Answer:
        """Look at the ledger, and say whether to send requests."""
        with self._lock:
            now, snapshot = self._clock(), LEDGER.snapshot()
            reasons = [*self._look_at_creations(now, snapshot), *self._queues.look(now, snapshot)]
        return Answer(ready=not reasons, reason="; ".join(reasons))

    def _look_at_creations(self, now: float, snapshot: Any) -> Iterator[str]:
        totals = _creations(snapshot)
        self._looks.append((now, totals))
        # One look from before the window stays, to count from.
        while len(self._looks) > 1 and self._looks[1][0] <= now - self._window:
            self._looks.popleft()
        created = totals - self._looks[0][1]  # only what has risen
        tried = created.total()
        failed = tried - created.pop("", 0)
        rate = failed / tried if tried else 0.0
        if self._creating:
            self._creating = failed < self._failures or rate < self._not_ready_at
        else:
            self._creating = rate <= self._ready_at
        if not self._creating:
            why = ", ".join(f"{n} {error_type}" for error_type, n in created.most_common())
            yield (
                f"{failed} of {tried} sessions could not be created within the last "
                f"{self._window:g} s: {why}"
            )

    def wsgi(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        """The answer as a WSGI application: 200 or 503, and JSON."""
        return self._response().by_wsgi(environ.get("REQUEST_METHOD", "GET"), start_response)

    async def asgi(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """The answer as an ASGI application: 200 or 503, and JSON."""
        if scope["type"] == "http":
            await self._response().by_asgi(scope.get("method", "GET"), send)

    def _response(self) -> Response:
        answer = self()
        return Response(
            HTTPStatus.OK if answer.ready else HTTPStatus.SERVICE_UNAVAILABLE,
            "application/json",
            json.dumps(answer._asdict()).encode(),
            {"Cache-Control": "no-store"},
        )


class _Queues:
    """The pools for which requests queue, by what look after look finds."""

    def __init__(self, waiting: float) -> None:
        self._waiting = waiting
        self._full: set[str] = set()
        self._otherwise_since: dict[str, float] = {}
        """When a look first found a pool other than ``_full`` has it; absent where it is so."""

    def look(self, now: float, snapshot: Any) -> Iterator[str]:
        """What there is to say of each pool for which requests queue."""
        limits = {name: limit for (name,), limit in snapshot[catalog.CONNECTION_MAX].items()}
        self._full &= limits.keys()  # a pool that is gone holds nobody up
        for name, limit in limits.items():
            used = snapshot[catalog.CONNECTION_COUNT].get((name, "used"), 0)
            pending = snapshot[catalog.CONNECTION_PENDING_REQUESTS].get((name,), 0)
            if (used >= limit and pending > 0) == (name in self._full):
                self._otherwise_since.pop(name, None)
            elif now - self._otherwise_since.setdefault(name, now) >= self._waiting:
                del self._otherwise_since[name]
                self._full ^= {name}
            if name in self._full:
                yield (
                    f"pool {name!r} has {used:g} of {limit:g} connections in use, and {pending:g} "
                    "requests waiting for one"
                )


def _creations(snapshot: Any) -> Counter[str]:
    """Sessions created so far: those that failed by ``error.type``, those that did not under ""."""
    found: Counter[str] = Counter()
    for (_, outcome, error_type), total in snapshot[catalog.SESSION_CREATIONS].items():
        if outcome != "unused":
            found[error_type if outcome == "failure" else ""] += int(total)
    return found


readiness = Readiness()
"""The process's own: call it, or mount ``readiness.wsgi`` or ``readiness.asgi``."""
