from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from reading import forget_everything
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import StaticPool

from session_metrics_otel import faults, instrument, uninstrument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine


# The same examples each time, on machines of any speed: new ones are looked for by `make fuzz`.
settings.register_profile(
    "same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("fuzz", settings.get_profile("default"), max_examples=1000, deadline=None)
settings.load_profile("same")


@pytest.fixture(autouse=True)
def _fresh_ledger(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test begins with nothing counted, and ends without a fault that it did not announce."""
    yield
    gc.collect()
    caught, expected = set(faults._logged), request.node.get_closest_marker("faults") is not None
    forget_everything()
    faults._logged.clear()
    assert expected or not caught, "telemetry failed, as the log says"


@pytest.fixture
def eager_switching() -> Iterator[None]:
    """Let threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def new_engine() -> Iterator[Callable[..., Engine]]:
    """``create_engine``, whose engines are disposed of when the test is over."""
    made = []

    def make(url: str = "sqlite://", **options: Any) -> Engine:
        if url == "sqlite://" and not {"poolclass", "creator"} & options.keys():
            options |= {"poolclass": StaticPool, "connect_args": {"check_same_thread": False}}
        engine = create_engine(url, **options)
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.dispose()


@pytest.fixture
def engine(new_engine: Callable[..., Engine]) -> Engine:
    return new_engine()


@pytest.fixture
def instrumented(engine: Engine) -> Iterator[Callable[..., sessionmaker[Any]]]:
    """Makes sessionmakers that are instrumented, with the options given, until the test is over."""
    made = []

    def make(**options: Any) -> sessionmaker[Any]:
        maker = sessionmaker(engine)
        instrument(maker, **options)
        made.append(maker)
        return maker

    yield make
    for maker in made:
        uninstrument(maker)


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(spans: InMemorySpanExporter) -> Iterator[TracerProvider]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    yield provider
    provider.shutdown()
