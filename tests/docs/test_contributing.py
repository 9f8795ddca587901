"""CONTRIBUTING names what the tree has: the targets, the modules, the folders."""

from __future__ import annotations

import re
from pathlib import Path

from pages import DOCS

import session_metrics_otel

ROOT = DOCS.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
PACKAGE = Path(session_metrics_otel.__file__).parent


def first_column(heading: str) -> set[str]:
    """The names in backticks that the rows of the table below ``heading`` begin with."""
    table = PAGE.partition(f"| {heading} | ")[2].partition("\n\n")[0]
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_every_target():
    targets = re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert first_column("command") == {f"make {name}" for name in targets if name != "help"}


def test_every_module():
    modules = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    folders = {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    assert first_column("module in `src/session_metrics_otel/`") == modules | folders


def test_every_folder_is_there():
    named = first_column("folder")
    assert len(named) > 0
    assert {name for name in named if not (ROOT / name).is_dir()} == set()
