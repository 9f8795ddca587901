"""An answer of a page, sent by WSGI or by ASGI."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from http import HTTPStatus

    from _typeshed.wsgi import StartResponse

    from .asgi import Send


class Response(NamedTuple):
    """What is answered. A request by HEAD gets all of it but the body.

    Attributes:
        status: The HTTP status.
        content_type: What the body is.
        body: The body.
        others: Headers beside the body's own.
    """

    status: HTTPStatus
    content_type: str
    body: bytes
    others: Mapping[str, str]

    def by_wsgi(self, method: str, start_response: StartResponse) -> list[bytes]:
        """Send it as a WSGI application does."""
        start_response(f"{self.status.value} {self.status.phrase}", list(self._headers().items()))
        return [] if method == "HEAD" else [self.body]

    async def by_asgi(self, method: str, send: Send) -> None:
        """Send it as an ASGI application does."""
        sent = self._headers().items()
        headers = [(name.lower().encode(), value.encode()) for name, value in sent]
        await send({"type": "http.response.start", "status": self.status.value, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if method == "HEAD" else self.body})

    def _headers(self) -> dict[str, str]:
        length = str(len(self.body))
        return {"Content-Type": self.content_type, "Content-Length": length, **self.others}
