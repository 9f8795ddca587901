"""``?plugin=session_metrics`` in a database URL: SQLAlchemy's own way to instrument an engine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from sqlalchemy import CreateEnginePlugin

from .instrument import instrument
from .settings import options_from_environment

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine

_NAME = "session_metrics_name"


class SessionMetricsPlugin(CreateEnginePlugin):
    """Instruments the engine that is made from the URL, with the options of the environment.

    ``session_metrics_name`` in the URL's query is the ``name`` of its series.
    """

    def __init__(self, url: URL, kwargs: dict[str, Any]) -> None:  # noqa: ARG002
        self.options = options_from_environment(os.environ)
        name = url.query.get(_NAME)
        if isinstance(name, str):
            self.options["name"] = name

    def update_url(self, url: URL) -> URL:
        """The URL without what is ours."""
        return url.difference_update_query([_NAME])

    def engine_created(self, engine: Engine) -> None:
        """Instrument it."""
        instrument(engine, **self.options)
