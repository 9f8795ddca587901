"""The table of supported versions says what is tested."""

from __future__ import annotations

import re

from make_venv import read_pins
from matrix import PYTHONS, ROOT, SQLALCHEMYS
from pages import DOCS


def test_table():
    page = (DOCS / "versions.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| (\d\S*) \| (\d\S*) \|", page, re.MULTILINE)
    ends = {name: (first, last) for name, first, last in rows}
    oldest, newest = (read_pins(ROOT / f) for f in ("oldest-supported.txt", "constraints.txt"))
    assert ends == {
        "Python": (PYTHONS[0], PYTHONS[-1]),
        "SQLAlchemy": (oldest["sqlalchemy"], SQLALCHEMYS[-1]),
        "prometheus-client": (oldest["prometheus-client"], newest["prometheus-client"]),
        "opentelemetry-api, opentelemetry-sdk": (
            oldest["opentelemetry-api"],
            newest["opentelemetry-api"],
        ),
    }
    assert oldest["opentelemetry-api"] == oldest["opentelemetry-sdk"]
    assert newest["opentelemetry-api"] == newest["opentelemetry-sdk"]
    assert newest["sqlalchemy"] == SQLALCHEMYS[-1]
    assert " and ".join(SQLALCHEMYS) in page
