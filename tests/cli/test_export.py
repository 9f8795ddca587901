"""``dashboards export`` and ``rules export``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from session_metrics_otel.cli import main

GRAFANA = Path(__file__).parents[2] / "grafana"


def test_dashboards_as_they_are(tmp_path, capsys):
    main(["dashboards", "export", str(tmp_path / "new")])
    written = {file.name: json.loads(file.read_text()) for file in (tmp_path / "new").iterdir()}
    kept = (GRAFANA / "dashboards").glob("*.json")
    assert written == {file.name: json.loads(file.read_text()) for file in kept}
    assert capsys.readouterr().out.splitlines() == [
        str(tmp_path / "new" / f"session-metrics-{name}.json")
        for name in ("fleet", "pools", "routes", "sessions")
    ]


def test_dashboards_with_a_data_source_and_a_job_chosen(tmp_path):
    main(["dashboards", "export", str(tmp_path), "--datasource", "Main", "--job", "shop"])
    for file in tmp_path.iterdir():
        variables = json.loads(file.read_text())["templating"]["list"]
        chosen = {variable["name"]: variable["current"]["value"] for variable in variables[:2]}
        assert chosen == {"datasource": "Main", "job": "shop"}


def test_rules_as_they_are_and_for_one_job(tmp_path):
    main(["rules", "export", str(tmp_path)])
    (kept,) = (GRAFANA / "rules").glob("*.yaml")
    assert (tmp_path / kept.name).read_text() == kept.read_text()
    main(["rules", "export", str(tmp_path), "--job", "shop"])
    text = (tmp_path / kept.name).read_text()
    assert 'sum by (job) (sqlalchemy_sessions{job="shop"})' in text
    assert 'db_client_connection_count{job="shop",db_client_connection_state="used"}' in text
    assert "sum by (job, instance, db_client_connection_pool_name)" in text
    assert "job:sqlalchemy_session_errors:rate5m / job:sqlalchemy_session_closed:rate5m" in text


def test_rules_of_a_job_that_yaml_and_promql_have_other_ideas_of(tmp_path):
    yaml = pytest.importorskip("yaml")
    main(["rules", "export", str(tmp_path), "--job", "a: \"b\" #'c' \\ é"])
    (file,) = tmp_path.iterdir()
    loaded = [
        rule for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]
    ]
    (expression,) = (r["expr"] for r in loaded if r.get("record") == "job:sqlalchemy_sessions:sum")
    quoted = re.search(r'job="([^"]*)"', expression)[1]
    # PromQL's escapes are Go's, and these are Python's as well.
    said = re.sub(r"\\U([0-9a-f]{8})", lambda found: chr(int(found[1], 16)), quoted)
    assert said == "a: \"b\" #'c' \\ é"


def test_rules_with_the_address_of_each_alerts_page(tmp_path):
    yaml = pytest.importorskip("yaml")
    address = "https://docs.example.org/é \"runbooks\"/{alert}.html#do: 'it'"
    main(["rules", "export", str(tmp_path), "--runbooks", address])
    (file,) = tmp_path.iterdir()
    (kept,) = (GRAFANA / "rules").glob("*.yaml")
    expected = yaml.safe_load(kept.read_text())
    alerts = [rule for group in expected["groups"] for rule in group["rules"] if "alert" in rule]
    assert alerts
    for alert in alerts:
        alert["annotations"]["runbook_url"] = address.replace("{alert}", alert["alert"])
    assert yaml.safe_load(file.read_bytes()) == expected


def test_an_address_that_is_the_same_for_every_alert_is_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["rules", "export", str(tmp_path), "--runbooks", "https://docs.example.org/runbooks"])
    assert ended.value.code == 2
    said = "'https://docs.example.org/runbooks' has no {alert} for the alert's name"
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["dashboards", "rules"])
def test_a_folder_that_cannot_be_written_to_is_an_error_that_says_so(tmp_path, what):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=f"Cannot write to {tmp_path / 'file'}"):
        main([what, "export", str(tmp_path / "file")])
