"""Sessions and their statements as a real Jaeger shows them, on SQLite and on PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from sqlalchemy import create_engine, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from session_metrics_otel import instrument, uninstrument
from session_metrics_otel.hooks.comments import SqlComments

if TYPE_CHECKING:
    from pathlib import Path

    from servers.jaeger_server import Jaeger, Span
    from servers.postgres_server import Postgres


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]


def spans_of_one_session(jaeger: Jaeger, url: str) -> dict[str, Span]:
    """What Jaeger holds after one session that writes, reads and fails, by name."""
    service = f"orders-{uuid4().hex[:8]}"
    provider = TracerProvider(resource=Resource({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{jaeger.otlp}/v1/traces")))
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    maker = sessionmaker(engine)
    instrument(
        maker,
        name="orders",
        tracer_provider=provider,
        transaction_spans=True,
        sql_comments=SqlComments(),
    )
    tracer = provider.get_tracer("application")
    with tracer.start_as_current_span("request"), maker() as session:
        session.execute(insert(Order), [{"id": 1, "item": "tea"}, {"id": 2, "item": "milk"}])
        session.commit()
        with tracer.start_as_current_span("look"):
            session.scalars(select(Order).where(Order.item == "secret")).all()
        with pytest.raises(IntegrityError):
            session.execute(insert(Order).values(id=1, item="secret"))
    uninstrument(maker)
    engine.dispose()
    provider.shutdown()
    spans = jaeger.wait_for_spans(service, lambda found: len(found) >= 8)
    assert len({span.trace_id for span in spans}) == 1
    assert "secret" not in repr(spans)
    return {span.name: span for span in spans}


def parents(spans: dict[str, Span]) -> dict[str, str | None]:
    names = {span.span_id: span.name for span in spans.values()}
    return {name: span.parent_id and names[span.parent_id] for name, span in spans.items()}


TREE = {
    "request": None,
    "session orders": "request",
    "BATCH INSERT orders": "session orders",
    "COMMIT": "session orders",
    "look": "request",
    "SELECT orders": "look",
    "INSERT orders": "session orders",
    "ROLLBACK": "session orders",
}


def said(span: Span, *names: str) -> dict[str, Any]:
    return {name: span.attributes.get(name) for name in names}


def test_sqlite(jaeger: Jaeger, tmp_path: Path) -> None:
    spans = spans_of_one_session(jaeger, f"sqlite:///{tmp_path}/db")
    assert parents(spans) == TREE
    assert said(spans["BATCH INSERT orders"], "db.system.name", "db.operation.batch.size") == {
        "db.system.name": "sqlite",
        "db.operation.batch.size": 2,
    }
    assert spans["INSERT orders"].status == "ERROR"
    assert spans["INSERT orders"].attributes["error.type"] == "IntegrityError"


@pytest.mark.parametrize("driver", ["psycopg"])
def test_postgresql(jaeger: Jaeger, postgres: Postgres, driver: str) -> None:
    spans = spans_of_one_session(jaeger, postgres.url(driver))
    assert parents(spans) == TREE
    server = ("db.system.name", "db.namespace", "server.address", "server.port", "span.kind")
    for name in ("BATCH INSERT orders", "SELECT orders", "INSERT orders", "COMMIT"):
        assert said(spans[name], *server) == {
            "db.system.name": "postgresql",
            "db.namespace": "test",
            "server.address": "127.0.0.1",
            "server.port": postgres.port,
            "span.kind": "client",
        }
    failed = spans["INSERT orders"]
    assert said(failed, "db.response.status_code", "error.type") == {
        "db.response.status_code": "23505",
        "error.type": "23505",
    }
    assert failed.status == "ERROR"
