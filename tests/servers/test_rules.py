"""The rules by Prometheus's own tool: cases that fire, and cases that must not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from grafana.expressions import RULES, rules

from session_metrics_otel.cli import main

if TYPE_CHECKING:
    from servers.prometheus_server import Promtool

CASES = Path(__file__).parent / "rules" / "session-metrics_test.yaml"


def test_promtool_takes_the_rules(promtool: Promtool):
    checked = promtool("check", "rules", str(RULES))
    assert checked.returncode == 0, checked.stderr
    assert f"{len(rules())} rules found" in checked.stdout


def test_promtool_takes_the_rules_of_any_job(promtool: Promtool, tmp_path: Path):
    main(["rules", "export", str(tmp_path), "--job", "a: \"b\" #'c' \\ é"])
    checked = promtool("check", "rules", str(tmp_path / RULES.name))
    assert checked.returncode == 0, checked.stderr
    assert f"{len(rules())} rules found" in checked.stdout


def test_each_alert_fires_when_it_should_and_only_then(promtool: Promtool, tmp_path: Path):
    cases = CASES.read_text().replace("RULES", str(RULES))
    (tmp_path / "cases.yaml").write_text(cases)
    checked = promtool("test", "rules", str(tmp_path / "cases.yaml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    for rule in rules():
        if "alert" in rule:
            told = [line for line in cases.splitlines() if f"alertname: {rule['alert']}" in line]
            assert any("exp_alerts: []" in line for line in told), rule["alert"]
            assert any("exp_alerts: []" not in line for line in told), rule["alert"]
