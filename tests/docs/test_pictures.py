"""The pictures: all shown, none that loads anything, and none of what is no more."""

from __future__ import annotations

import re
from pathlib import Path

from pages import DOCS

import session_metrics_otel

PICTURES = DOCS / "pictures"


def test_each_is_on_a_page():
    pages = [*DOCS.rglob("*.md"), DOCS.parent / "README.md"]
    shown = set()
    for page in pages:
        for name in re.findall(r"!\[[^]]+\]\(([^)]+)\)", page.read_text()):
            shown.add((page.parent / name).resolve())
    there = {path for path in PICTURES.iterdir() if path.suffix in {".svg", ".png"}}
    assert there == shown


def test_none_loads_anything():
    for drawing in PICTURES.glob("*.svg"):
        assert re.findall(r"(?:href=|src=|url\()[\"']?(?!#)[^\"')]+", drawing.read_text()) == []


def test_the_architecture_is_that_of_today():
    text = (PICTURES / "architecture.dot").read_text()
    named = re.findall(r'label="([\w/]+(?:\.py|/))(?:\\n|")', text)
    assert len(named) == 9
    package = Path(session_metrics_otel.__file__).parent
    assert [name for name in named if not (package / name).exists()] == []
    drawn = (PICTURES / "architecture.svg").read_text()
    assert [name for name in named if f">{name}<" not in drawn] == []
