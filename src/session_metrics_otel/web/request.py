"""The request that sessions are born in, for ASGI and WSGI alike."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from session_metrics_otel.binding import Binding
from session_metrics_otel.faults import caught

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Find = Callable[[Mapping[str, Any]], object]

_USABLE = re.compile(r"[!-~]{1,128}")


def request_id_from(header: str | None) -> str:
    """The client's request id, or a new one where it gives none that is safe to write down.

    Args:
        header: The value of ``X-Request-Id``: at most 128 printable ASCII characters are taken.
    """
    given = (header or "").strip()
    return given if _USABLE.fullmatch(given) else uuid4().hex


class RequestBinding(Binding):
    """A binding whose user and route are looked up when a session is born.

    A middleware comes before the framework's routing and often before authentication: what it
    could say at once would be nothing. Both write what they find into the request's own mapping,
    an ASGI scope or a WSGI environ, and there it is looked up.

    A route that an inner ``bind()`` gives comes first; likewise a user.
    """

    _request: Mapping[str, Any]
    _find_user: Find | None
    _find_route: Find
    _remembered_route = ""

    @classmethod
    def of(
        cls,
        request: Mapping[str, Any],
        header: str | None,
        *,
        find_user: Find | None,
        find_route: Find,
    ) -> RequestBinding:
        """The binding of ``request``, whose ``X-Request-Id`` is ``header``."""
        made = cls(request_id_from(header))
        made._request = request
        made._find_user = find_user
        made._find_route = find_route
        return made

    @property
    def user_id(self) -> str:
        """The user's id, or ""."""
        return self[1] or _found(self._find_user, self._request)

    @property
    def route(self) -> str:
        """The route's template, or "" before the framework has chosen one."""
        return self[2] or self._remembered_route or _found(self._find_route, self._request)

    def remember_route(self) -> None:
        """Keep the route that is known now, for sessions born when the framework has let it go."""
        self._remembered_route = self.route

    def _replace(self, **changes: Any) -> RequestBinding:
        replaced = super()._replace(**changes)
        vars(replaced).update(vars(self))
        return replaced


def _found(find: Find | None, request: Mapping[str, Any]) -> str:
    if find is None:
        return ""
    try:
        found = find(request)
    except Exception as fault:  # noqa: BLE001 - the session is born without it
        caught("web", fault)
        return ""
    return "" if found is None else str(found)
