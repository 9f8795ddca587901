from __future__ import annotations

import pytest
from sqlalchemy.orm import sessionmaker

from session_metrics_otel import instrument, uninstrument


@pytest.fixture
def maker(engine):
    maker = sessionmaker(engine)
    instrument(maker, name="orders")
    yield maker
    uninstrument(maker)
