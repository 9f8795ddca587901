"""Who the current work is for: read by a session when it is born."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator


class Binding(NamedTuple):
    """The request that sessions born now belong to; empty strings where it is not known.

    Attributes:
        request_id: The request's id.
        user_id: The user's id.
        route: The route's template, such as ``/orders/{id}`` (OpenTelemetry's ``http.route``).
    """

    request_id: str = ""
    user_id: str = ""
    route: str = ""


NOTHING_BOUND = Binding()

current_binding: ContextVar[Binding] = ContextVar("session_metrics_binding", default=NOTHING_BOUND)


@contextmanager
def bind(
    *, request_id: str | None = None, user_id: str | None = None, route: str | None = None
) -> Iterator[Binding]:
    """Tag every session born inside the block. Blocks nest: what is not given stays as it was.

    The tags are kept in a context variable, so they follow asyncio tasks started inside the block
    and stay out of other threads.

    Args:
        request_id: The request's id.
        user_id: The user's id.
        route: The route's template, never the address itself.

    Yields:
        What is bound now.
    """
    outer = current_binding.get()
    given = {"request_id": request_id, "user_id": user_id, "route": route}
    bound = outer._replace(**{key: str(value) for key, value in given.items() if value is not None})
    token = current_binding.set(bound)
    try:
        yield bound
    finally:
        # A generator may be finished in another context than it was begun in, where there is
        # nothing to put back.
        with suppress(ValueError):
            current_binding.reset(token)
