"""Programs on all pages, also those that no test runs: they compile, and import what there is."""

from __future__ import annotations

import ast
import importlib

import pytest
from pages import DOCS, fenced

ROOT = DOCS.parent
PROGRAMS = [
    pytest.param(block.text, id=f"{page.relative_to(ROOT)}-{number}")
    for page in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
    if "_build" not in page.parts
    for number, block in enumerate(fenced(page.read_text()))
    if block.language == "python"
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_is_imported_from_this_package_is_there(program):
    tree = compile(program, "page", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("session_metrics"):
            module = importlib.import_module(node.module)
            assert [name.name for name in node.names if not hasattr(module, name.name)] == []
