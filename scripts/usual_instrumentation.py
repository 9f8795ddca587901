"""An environment with the usual instrumentation, opentelemetry-instrumentation-sqlalchemy."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from make_venv import ROOT, make, read_pins

if TYPE_CHECKING:
    from pathlib import Path

SQLALCHEMY = "2.0.58"
"""The newest that it takes: it refuses SQLAlchemy 2.1."""

# The newest there is of it wants its siblings of the same day.
PINS = {
    "opentelemetry-api": "1.45.1",
    "opentelemetry-instrumentation": "0.66b1",
    "opentelemetry-instrumentation-sqlalchemy": "0.66b1",
    "opentelemetry-sdk": "1.45.1",
    "opentelemetry-semantic-conventions": "0.66b1",
}


def environment(group: str, version: str = SQLALCHEMY) -> Path:
    """The interpreter of an environment with that group and SQLAlchemy, made where none is."""
    folder = ROOT / f".venv-{group}-{version}"
    python = folder / "bin" / "python"
    pins = read_pins(ROOT / "constraints.txt") | PINS | {"sqlalchemy": version}
    text = "".join(f"{name}=={pinned}\n" for name, pinned in pins.items())
    made_of = folder / "made-of.txt"
    if not made_of.exists() or made_of.read_text() != text:
        print(f"Setting up {folder.name} ...", file=sys.stderr, flush=True)
        constraints = ROOT / f".venv-{group}-{version}.txt"
        constraints.write_text(text)
        make(folder, groups=[group], extras=[], constraints=constraints)
        constraints.unlink()
        made_of.write_text(text)
    return python
