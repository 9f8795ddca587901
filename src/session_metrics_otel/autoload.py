"""Instrumenting without a line of code: what ``opentelemetry-instrument`` finds.

It needs the extra ``autoload``, and is configured by environment variables: see ``settings``.
"""

from __future__ import annotations

import gc
import logging
import os
from typing import TYPE_CHECKING, Any

from opentelemetry.instrumentation.instrumentor import (  # type: ignore[attr-defined]
    BaseInstrumentor,
)
from sqlalchemy import Dialect, Engine
from sqlalchemy.orm import Session

from .faults import caught
from .instrument import instrument, uninstrument
from .otel_metrics import export_metrics
from .settings import options_from_environment, switch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

logger = logging.getLogger("session_metrics_otel")


class SessionMetricsInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Instruments every session and every engine of the process, made before or afterwards.

    ``opentelemetry-instrument`` finds it by its entry point. By hand it is
    ``SessionMetricsInstrumentor().instrument(tracer_provider=..., meter_provider=...)``.
    """

    _restore: Callable[[], None] | None = None

    def instrumentation_dependencies(self) -> Collection[str]:
        """What has to be installed for it to do anything."""
        return ("sqlalchemy >= 2.0.0",)

    def _instrument(self, **given: Any) -> None:
        options = options_from_environment(os.environ)
        options["tracer_provider"] = given.get("tracer_provider")
        instrument(Session, **options)
        undo: list[Callable[[], object]] = [
            _instrument_engines(options),
            lambda: uninstrument(Session),
        ]
        if switch(os.environ, "SESSION_METRICS_EXPORT", default=True):
            try:
                undo.append(export_metrics(given.get("meter_provider")))
            except ValueError as refused:
                logger.info("Metrics are not exported by OpenTelemetry as well: %s", refused)

        def restore() -> None:
            for call in undo:
                call()

        self._restore = restore

    def _uninstrument(self, **_: Any) -> None:
        if self._restore is not None:
            self._restore()
            self._restore = None


def _instrument_engines(options: dict[str, Any]) -> Callable[[], None]:
    def engine_created(_: type[Dialect], engine: Engine) -> None:
        _quietly(instrument, engine, **options)

    for engine in _engines():
        _quietly(instrument, engine, **options)
    # SQLAlchemy calls it with every engine that it makes, under whatever name it is imported.
    original = Dialect.__dict__["engine_created"]
    Dialect.engine_created = classmethod(engine_created)  # type: ignore[assignment,method-assign]

    def restore() -> None:
        Dialect.engine_created = original  # type: ignore[method-assign]
        for engine in _engines():
            _quietly(uninstrument, engine)

    return restore


def _engines() -> list[Engine]:
    # Nobody keeps a list of engines, and this is done once.
    return [found for found in gc.get_objects() if type(found) is Engine]


def _quietly(call: Callable[..., None], engine: Engine, **options: Any) -> None:
    try:
        call(engine, **options)
    except Exception as fault:  # noqa: BLE001 - the application makes an engine: let it
        caught("autoload", fault)
