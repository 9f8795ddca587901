"""An answer, by WSGI and by ASGI."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from session_metrics_otel.web.response import Response

RESPONSE = Response(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", b"no", {"Cache-Control": "none"})


@pytest.mark.parametrize(("method", "body"), [("GET", [b"no"]), ("HEAD", [])])
def test_by_wsgi(method, body):
    started = []
    assert RESPONSE.by_wsgi(method, lambda *args: started.append(args)) == body
    headers = [("Content-Type", "text/plain"), ("Content-Length", "2"), ("Cache-Control", "none")]
    assert started == [("503 Service Unavailable", headers)]


@pytest.mark.parametrize(("method", "body"), [("GET", b"no"), ("HEAD", b"")])
async def test_by_asgi(method, body):
    sent = []

    async def send(message):
        sent.append(message)

    await RESPONSE.by_asgi(method, send)
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"2")]
    assert sent == [
        {
            "type": "http.response.start",
            "status": 503,
            "headers": [*headers, (b"cache-control", b"none")],
        },
        {"type": "http.response.body", "body": body},
    ]
