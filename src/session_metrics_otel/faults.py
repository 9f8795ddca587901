"""Faults of the instrumentation itself: logged once, counted, and kept from the application."""

from __future__ import annotations

import logging
from contextlib import suppress

from . import catalog, multiprocess
from .ledger import LEDGER

logger = logging.getLogger("session_metrics_otel")

_logged: set[tuple[str, type[BaseException]]] = set()


def caught(component: str, fault: Exception) -> None:
    """Take note of ``fault``, raised in ``component``. Never raises.

    The first of each kind is logged with its traceback; every one is counted in
    ``sqlalchemy.session.telemetry.faults``.
    """
    LEDGER.tally(catalog.TELEMETRY_FAULTS, component).hit()
    kind = (component, type(fault))
    if kind not in _logged:
        _logged.add(kind)
        with suppress(Exception):  # a broken log handler is not the session's trouble either
            logger.error(
                "Session telemetry (%s) failed; the application goes on without it. "
                "Further faults of this kind are only counted.",
                component,
                exc_info=fault,
            )


multiprocess.complain_to(caught)
