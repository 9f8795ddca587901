"""WSGI: Flask, and whatever else is built on Werkzeug's request."""

from __future__ import annotations

from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from session_metrics_otel.binding import current_binding

from .request import RequestBinding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def route_of(environ: Any) -> str | None:
    """The rule that Flask chose (Werkzeug keeps its request in the environ), or None before."""
    rule = getattr(environ.get("werkzeug.request"), "url_rule", None)
    return getattr(rule, "rule", None)


class BindingMiddleware:
    """Binds request id, user and route for the sessions of each request, streamed answers too.

    The request id is the client's ``X-Request-Id``, or a new one. User and route are looked up
    when a session is born: routing and authentication come later than this middleware.

    Args:
        app: The application inside.
        user_id: Returns the user's id for a request, from its environ; None if there is no user. By
            default no user is bound.
        route: Returns the route's template, from the environ; by default as Flask does.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        user_id: Callable[[Any], object] | None = None,
        route: Callable[[Any], object] = route_of,
    ) -> None:
        self.app = app
        self._bind = partial(RequestBinding.of, find_user=user_id, find_route=route)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve the request that ``environ`` describes."""
        binding = self._bind(environ, environ.get("HTTP_X_REQUEST_ID"))
        # A context of the request's own: its answer may be streamed after this call has returned.
        context = copy_context()
        context.run(current_binding.set, binding)

        def start(*args: Any) -> Callable[[bytes], object]:
            # Flask clears its request from the environ before a streamed answer is made.
            binding.remember_route()
            return start_response(*args)

        body = context.run(self.app, environ, start)
        return body if isinstance(body, (list, tuple)) else _Body(body, context)


class _Body:
    """An answer that is made piece by piece, each in the context of its request."""

    def __init__(self, body: Iterable[bytes], context: Context) -> None:
        self._body = body
        self._context = context

    def __iter__(self) -> Iterator[bytes]:
        pieces = self._context.run(iter, self._body)
        end = object()
        while (piece := self._context.run(next, pieces, end)) is not end:
            yield piece  # type: ignore[misc]

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        if close is not None:
            self._context.run(close)
