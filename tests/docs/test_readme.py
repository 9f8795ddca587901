"""The README's three lines, as printed."""

from __future__ import annotations

from pages import DOCS, fenced
from reading import counted
from sqlalchemy import text
from sqlalchemy.orm import sessionmaker

from session_metrics_otel import uninstrument


def test_three_lines(engine):
    first = fenced((DOCS.parent / "README.md").read_text())[0]
    names = {"sessionmaker": sessionmaker, "engine": engine}
    exec(first.text, names)
    with names["Session"]() as session:
        session.execute(text("select 1"))
    uninstrument(names["Session"])
    said = counted("orders")
    assert (said["creations success"], said["queries"]) == (1, 1)


def test_the_site_opens_with_the_same():
    readme = fenced((DOCS.parent / "README.md").read_text())
    assert fenced((DOCS / "index.md").read_text())[0] == readme[0]
