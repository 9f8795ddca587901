"""Faults of the instrumentation itself: logged once, counted, and kept from the application."""

from __future__ import annotations

import logging
from contextlib import suppress
from traceback import TracebackException

from . import catalog, multiprocess
from .ledger import LEDGER

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


multiprocess.complain_to(caught)
