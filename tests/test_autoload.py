"""Programs that know nothing of us, run as their users would run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import create_engine, text
from sqlalchemy.exc import NoSuchModuleError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import StaticPool

from session_metrics_otel import metrics_for, uninstrument
from session_metrics_otel.hooks.comments import SqlComments
from session_metrics_otel.plugin import SessionMetricsPlugin
from session_metrics_otel.settings import options_from_environment, switch

PROGRAMS = Path(__file__).parent / "programs"
INSTRUMENT = Path(sys.executable).with_name("opentelemetry-instrument")

# By name, the spans of a request that the programs serve, and their parents.
SESSION = {
    "INSERT orders": "session default",
    "COMMIT": "session default",
    "SELECT orders": "session default",
    "ROLLBACK": "session default",
}


def run(program, url, **settings):
    """The spans and the /metrics that a program leaves."""
    command = [str(INSTRUMENT), sys.executable, str(PROGRAMS / program), url]
    environment = {
        **os.environ,
        "OTEL_TRACES_EXPORTER": "console",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        **settings,
    }
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    samples = {}
    shown = "\n".join(
        line for line in done.stderr.splitlines() if line.startswith(("sqlalchemy_", "db_", "# "))
    )
    for family in text_string_to_metric_families(shown + "\n"):
        for sample in family.samples:
            samples[sample.name, frozenset(sample.labels.items())] = sample.value
    return _spans(done.stdout), samples


def _spans(text):
    decoder, found, at = json.JSONDecoder(), [], text.find("{")
    while at >= 0:
        span, at = decoder.raw_decode(text, at)
        found.append(span)
        at = text.find("{", at)
    return found


def trees(spans):
    """By trace: each span's name and its parent's."""
    names = {span["context"]["span_id"]: span["name"] for span in spans}
    found = {}
    for span in spans:
        tree = found.setdefault(span["context"]["trace_id"], {})
        tree[span["name"]] = names.get(span["parent_id"])
    return list(found.values())


@pytest.fixture
def needs_autoload():
    pytest.importorskip("opentelemetry.instrumentation.distro")
    if not INSTRUMENT.exists():
        pytest.skip("opentelemetry-instrument is not installed")


@pytest.mark.usefixtures("needs_autoload")
class TestOpentelemetryInstrument:
    @pytest.mark.parametrize(
        ("program", "module", "url"),
        [
            ("fastapi_orders.py", "fastapi", "sqlite+aiosqlite:///{}/db"),
            ("flask_orders.py", "flask_sqlalchemy", "sqlite:///{}/db"),
        ],
    )
    def test_a_program_is_seen_whole(self, program, module, url, tmp_path):
        pytest.importorskip(module)
        spans, samples = run(
            program, url.format(tmp_path), SESSION_METRICS_TRANSACTION_SPANS="true"
        )
        requests = [tree for tree in trees(spans) if "session default" in tree]
        for tree in requests:  # a framework has spans of its own above
            below = {name: up for name, up in tree.items() if up == "session default"}
            assert below == SESSION
        assert len(requests) == 3
        # Tables are made by the engine, with no session.
        assert {"CREATE TABLE orders": None} in trees(spans)
        factory = frozenset({("factory", "default")})
        assert samples["sqlalchemy_session_queries_total", factory] == 6
        success = factory | {("outcome", "success")}
        assert samples["sqlalchemy_session_creations_total", success] == 3

    def test_settings_reach_the_program(self, tmp_path):
        pytest.importorskip("flask_sqlalchemy")
        spans, samples = run(
            "flask_orders.py",
            f"sqlite:///{tmp_path}/db",
            SESSION_METRICS_NAME="shop",
            SESSION_METRICS_STATEMENT_SPANS="false",
        )
        assert {span["name"] for span in spans} == {"session shop"}
        shop = frozenset({("factory", "shop")})
        assert samples["sqlalchemy_session_queries_total", shop] == 6


class TestPlugin:
    def test_a_word_in_the_url_is_enough(self, tmp_path, monkeypatch):
        monkeypatch.setenv("SESSION_METRICS_NAME", "from the environment")
        engine = create_engine(
            f"sqlite:///{tmp_path}/db?plugin=session_metrics&session_metrics_name=orders"
        )
        assert engine.url.query == {}
        with Session(engine) as session:
            session.execute(text("select 1"))
            assert metrics_for(session).factory == "orders"
            assert metrics_for(session).query_count == 1
        uninstrument(engine)
        engine.dispose()

    def test_the_name_may_come_from_the_environment(self, monkeypatch):
        monkeypatch.setenv("SESSION_METRICS_NAME", "orders")
        engine = create_engine("sqlite://?plugin=session_metrics", poolclass=StaticPool)
        with sessionmaker(engine)() as session:
            session.execute(text("select 1"))
            assert metrics_for(session).factory == "orders"
        uninstrument(engine)
        engine.dispose()

    def test_is_the_one_that_the_entry_point_names(self):
        from importlib.metadata import entry_points

        (found,) = entry_points(group="sqlalchemy.plugins", name="session_metrics")
        assert found.load() is SessionMetricsPlugin
        with pytest.raises(NoSuchModuleError):
            create_engine("sqlite://?plugin=no_such_plugin")


class TestSettings:
    def test_none_set(self):
        assert options_from_environment({}) == {}

    def test_all_set(self):
        assert options_from_environment(
            {
                "SESSION_METRICS_NAME": "orders",
                "SESSION_METRICS_SPANS": "attributes",
                "SESSION_METRICS_USER_ID": "hashed",
                "SESSION_METRICS_STATEMENT_SPANS": "no",
                "SESSION_METRICS_TRANSACTION_SPANS": "TRUE",
                "SESSION_METRICS_SQL_COMMENTS": "traceparent, db_driver",
            }
        ) == {
            "name": "orders",
            "spans": "attributes",
            "user_id": "hashed",
            "statement_spans": False,
            "transaction_spans": True,
            "sql_comments": SqlComments(traceparent=True, db_driver=True, framework=False),
        }

    def test_what_is_not_taken_is_said(self):
        with pytest.raises(ValueError, match="SESSION_METRICS_EXPORT='maybe' is not taken"):
            switch({"SESSION_METRICS_EXPORT": "maybe"}, "SESSION_METRICS_EXPORT", default=True)
        with pytest.raises(ValueError, match="'sql' is none of traceparent, db_driver"):
            options_from_environment({"SESSION_METRICS_SQL_COMMENTS": "traceparent,sql"})
