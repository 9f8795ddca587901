"""Faults of the instrumentation itself: logged once, counted, and kept from the application."""

from __future__ import annotations

import logging
from contextlib import suppress
from traceback import TracebackException
from typing import TYPE_CHECKING, TypeVar

from . import catalog, multiprocess
from .ledger import LEDGER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Read = TypeVar("Read")

logger = logging.getLogger("session_metrics_otel")

MAX_KINDS = 100
"""Different faults that are logged; what more there are is only counted."""

_logged: set[tuple[str, str]] = set()


def caught(component: str, fault: Exception) -> None:
    """Take note of ``fault``, raised in ``component``. Never raises.

    The first of each kind is logged with its traceback; every one is counted in
    ``sqlalchemy.session.telemetry.faults``.
    """
    with suppress(Exception):  # a full disk or a broken log handler is not its trouble either
        LEDGER.tally(catalog.TELEMETRY_FAULTS, component).hit()
        kind = (component, type(fault).__name__)
        if kind not in _logged and len(_logged) < MAX_KINDS:
            _logged.add(kind)
            # Without the exceptions that led to it: the database's may quote what was sent.
            trace = TracebackException.from_exception(fault, compact=True).format(chain=False)
            logger.error(
                "Session telemetry (%s) failed; the application goes on without it. "
                "Further faults of this kind are only counted.\n%s",
                component,
                "".join(trace).rstrip(),
            )


def guarded(component: str, read: Callable[[], Iterable[Read]]) -> Callable[[], Iterator[Read]]:
    """``read``, but what it raises ends what it yields: /metrics is the application's too."""

    def reading() -> Iterator[Read]:
        try:
            yield from read()
        except Exception as fault:  # noqa: BLE001 - the rest of the scrape goes on
            caught(component, fault)

    return reading


multiprocess.complain_to(caught)
