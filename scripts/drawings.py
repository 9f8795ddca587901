"""``make pictures``: the drawings in the documentation.

The architecture is drawn by Graphviz; a trace and a terminal are shown as real runs left them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from rich.console import Console
from rich.text import Text
from rich.tree import Tree
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from session_metrics_otel import bind, instrument

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan
    from rich.console import RenderableType

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
COLUMNS = 100
SHOWN = ("sqlalchemy.session.query_count", "sqlalchemy.session.request_id", "db.query.text")


class Base(DeclarativeBase):
    """The tables."""


class Order(Base):
    """An order."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]


def save(name: str, title: str, shown: RenderableType) -> None:
    """Save ``shown`` as a terminal would show it."""
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True)
        console.print(shown)
        # The id is in every class of the drawing, and random unless it is said.
        svg = console.export_svg(title=title, unique_id=name)
    # Rich would have the font from elsewhere; the reader's own does.
    svg = re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)
    (PICTURES / f"{name}.svg").write_text(re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE))


def architecture() -> None:
    """Have Graphviz draw the way of the data."""
    drawing = PICTURES / "architecture.dot"
    command: list[str | Path] = ["dot", "-Tsvg", drawing, "-o", drawing.with_suffix(".svg")]
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError:
        sys.exit("This needs Graphviz: apt-get install graphviz.")


def spans_of_a_request() -> Sequence[ReadableSpan]:
    """What a request leaves whose session writes, and then asks for what is not there."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    Session = sessionmaker(engine)  # noqa: N806
    instrument(Session, name="orders", transaction_spans=True)
    request = provider.get_tracer("shop").start_as_current_span("POST /orders")
    with request, bind(request_id="r-1", route="/orders"), Session() as session:
        session.add(Order(item="tea"))
        session.commit()
        try:
            session.execute(text("select price from prices where item = 'tea'"))
        except OperationalError:
            session.rollback()
    engine.dispose()
    return sorted(exporter.get_finished_spans(), key=lambda span: span.start_time or 0)


def trace_tree() -> Tree:
    """The trace as a tree: spans, some of their attributes, and the changes of state."""
    spans = spans_of_a_request()
    (root,) = (span for span in spans if span.parent is None)
    trees = {root.context.span_id: Tree(label_of(root), guide_style="dim")}
    for span in spans:
        if span.parent is not None:
            tree = trees[span.parent.span_id]
            trees[span.context.span_id] = tree.add(label_of(span))
    return trees[root.context.span_id]


def label_of(span: ReadableSpan) -> Text:
    """A span in a few lines."""
    microseconds = ((span.end_time or 0) - (span.start_time or 0)) / 1000
    said = Text.assemble((span.name, "bold"), (f"  {microseconds:,.0f} µs", "dim"))
    if not span.status.is_ok:
        said.append(f"  {span.status.description}", "red")
    attributes = span.attributes or {}
    for name in SHOWN:
        if name in attributes:
            said.append(f"\n{name} = {attributes[name]!s}", "cyan")
    states = [event for event in span.events if event.name == "sqlalchemy.session.state"]
    if states:
        visited = ["created", *(str((event.attributes or {})["to"]) for event in states)]
        said.append(f"\n{' → '.join(visited)}", "green")
    return said


def terminal() -> Text:
    """What the demo prints when it starves a pool; paths as they are for whoever installed it."""
    command = [sys.executable, "-m", "session_metrics_otel", "demo", "--starve"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    said = done.stdout.replace(f"{ROOT / 'src'}/", "")
    return Text.assemble(("$ python -m session_metrics_otel demo --starve\n", "bold"), said.strip())


def main() -> None:
    """Draw them all."""
    architecture()
    save("trace", "The trace of one request", trace_tree())
    save("starve", "Who holds the pool?", terminal())
    print(*sorted(PICTURES.glob("*.svg")), sep="\n")


if __name__ == "__main__":
    main()
