"""The programs of the explanation and of the migration pages: each prints what the page says."""

from __future__ import annotations

import pytest
from pages import DOCS, blocks, run, write_files

PAGES = sorted(
    f"{folder}/{page.stem}"
    for folder in ("explanation", "migration")
    for page in (DOCS / folder).glob("*.md")
)


@pytest.mark.parametrize("page", PAGES)
def test_programs_print_what_the_page_says(page, tmp_path):
    write_files(page, tmp_path)
    printed = None
    for block in blocks(page):
        if block.language == "text" and printed is not None:
            assert printed == block.text.splitlines()
            printed = None
        elif block.language == "python":
            assert not printed, "what the program before prints is not on the page"
            printed = run(tmp_path, f"import {block.file.removesuffix('.py')}")
    assert not printed


def test_the_shim_of_an_old_module_gives_this_packages_own(tmp_path):
    write_files("migration/session-classes", tmp_path)
    program = """
import old_module, session_metrics_otel
for name in old_module.__all__:
    print(getattr(old_module, name) is getattr(session_metrics_otel, name))
"""
    assert run(tmp_path, program) == ["True"] * 4


def test_statements_are_traced_and_commented_after_the_migration(tmp_path):
    write_files("migration/opentelemetry-instrumentation-sqlalchemy", tmp_path)
    program = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import Engine, event

spans, sent = InMemorySpanExporter(), []
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)
event.listen(Engine, "after_cursor_execute", lambda *given: sent.append(given[2]))
import app
print(sorted(span.name for span in spans.get_finished_spans()))
print("traceparent=" in sent[-1])
"""
    assert run(tmp_path, program) == ["['SELECT', 'connect', 'session orders']", "True"]
