"""The three lines, in a program that shows what they do: python examples/three_lines/main.py."""

from __future__ import annotations

from prometheus_client import generate_latest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker

from session_metrics_otel import bind, instrument, metrics_for

engine = create_engine("sqlite://")
Session = sessionmaker(engine)
instrument(Session, name="orders")

with bind(request_id="r-1"), Session() as session:
    session.execute(text("select 1"))
    session.commit()
    print(metrics_for(session))

for line in generate_latest().decode().splitlines():
    if line.startswith("sqlalchemy_session_creations_total"):
        print(line)
