"""ASGI: FastAPI, Starlette, and whatever else keeps the matched route in the scope."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from session_metrics_otel.binding import current_binding

from .request import RequestBinding

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
    ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


def route_of(scope: Any) -> str | None:
    """The template of the route that Starlette or FastAPI chose, or None before it has."""
    return getattr(scope.get("route"), "path", None)


class BindingMiddleware:
    """Binds request id, user and route for the sessions of each request and websocket.

    The request id is the client's ``X-Request-Id``, or a new one. User and route are looked up
    when a session is born: routing and authentication may come later than this middleware.

    Args:
        app: The application inside.
        user_id: Returns the user's id for a request, from its scope; None if there is no user. By
            default no user is bound.
        route: Returns the route's template, from the scope; by default as Starlette and FastAPI do.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        user_id: Callable[[Any], object] | None = None,
        route: Callable[[Any], object] = route_of,
    ) -> None:
        self.app = app
        self._bind = partial(RequestBinding.of, find_user=user_id, find_route=route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve what ``scope`` describes."""
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        header = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        token = current_binding.set(self._bind(scope, header.decode("latin-1")))
        try:
            await self.app(scope, receive, send)
        finally:
            # One that is dropped unfinished is closed in whatever context that happens.
            with suppress(ValueError):
                current_binding.reset(token)
