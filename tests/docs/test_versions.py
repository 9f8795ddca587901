"""The table of supported versions says what is tested."""

from __future__ import annotations

import re
import sys

import pytest
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


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_extras():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    section = (DOCS / "versions.md").read_text().partition("## Extras")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| .* \| ([^|]+) \|$", section, re.MULTILINE)
    said = {name: re.findall(r"`([\w-]+)`", installs) for name, installs in rows}
    assert said == project["optional-dependencies"]
