from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from grafana.expressions import (
    DASHBOARDS,
    GRAFANA,
    Expression,
    of_dashboard,
    of_rules,
    of_runbook,
    panels,
    rules,
    unknown_names,
)

RUNBOOKS = sorted((GRAFANA.parent / "docs" / "runbooks").glob("*.md"))
ALL = [
    *(found for file in DASHBOARDS for found in of_dashboard(file)),
    *of_rules(),
    *(found for page in RUNBOOKS for found in of_runbook(page)),
]
OLDEST_PANELS = {"timeseries", "stat", "heatmap", "table"}
"""Panels that Grafana 9.4 has as they are used here."""
OLDEST_SCHEMA = 36
"""Of @grafana/schema 9.4.17: what a newer one means, Grafana 9.4 was never told."""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="grafana-foundation-sdk takes Python 3.11")
def test_what_is_committed_is_what_the_code_makes():
    pytest.importorskip("grafana_foundation_sdk")
    import importlib.util

    # By its path: `grafana` is the name of this folder of tests as well.
    home = GRAFANA / "generate"
    spec = importlib.util.spec_from_file_location(
        "generate", home / "__init__.py", submodule_search_locations=[str(home)]
    )
    sys.modules["generate"] = importlib.util.module_from_spec(spec)
    files = importlib.import_module("generate.__main__").files()
    committed = {path: (GRAFANA / path).read_text() for path in files}
    assert committed == files
    assert {path for path in files if path.startswith("dashboards/")} == {
        f"dashboards/{file.name}" for file in DASHBOARDS
    }


@pytest.mark.parametrize("expression", ALL, ids=lambda found: found.where)
def test_every_name_is_in_the_catalogue(expression: Expression):
    assert unknown_names(expression.text) == set()


@pytest.mark.parametrize(
    ("expression", "unknown"),
    [
        ("sum(rate(sqlalchemy_session_creation_total[5m]))", {"sqlalchemy_session_creation_total"}),
        ('sqlalchemy_sessions{status="active"}', {"status"}),
        ('sqlalchemy_sessions{outcome="success"}', {"outcome"}),
        ("sum by (route) (sqlalchemy_sessions)", {"route"}),
        ("sum by (factory) (db_client_connection_count)", {"factory"}),
        ("topk(5, sqlalchmy_sessions) > 2", {"sqlalchmy_sessions"}),
        ("job:sqlalchemy_sessions:max", {"job:sqlalchemy_sessions:max"}),
        ('job:sqlalchemy_sessions:sum{factory="x"}', {"factory"}),
        ("up and sqlalchemy_sessions offset 5m unless rate(up[5m]) > bool 1e3", set()),
        ('sqlalchemy_sessions{factory="sqlalchemy_x"}', set()),
    ],
)
def test_a_name_that_is_not_there_is_found(expression, unknown):
    assert unknown_names(expression) == unknown


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
class TestDashboard:
    def test_each_panel_says_what_a_bad_value_is_and_what_to_do(self, file: Path):
        for panel in panels(file):
            sentences = re.findall(r"[^.:]+[.:](?=\s|$)", panel["description"])
            assert len(sentences) > 1, panel["title"]
            assert len(panel["description"]) > 100, panel["title"]
            assert panel["description"].endswith("."), panel["title"]

    def test_each_panel_has_a_unit_and_says_why_it_is_empty(self, file: Path):
        for panel in panels(file):
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            assert len(panel["fieldConfig"]["defaults"]["noValue"]) > len("no data"), panel["title"]

    def test_a_value_that_stands_alone_is_shown(self, file: Path):
        for panel in panels(file):
            if panel["type"] == "timeseries":
                custom = panel["fieldConfig"]["defaults"]["custom"]
                assert custom["showPoints"] == "auto", panel["title"]

    def test_a_table_has_names_for_its_columns_and_none_for_the_time(self, file: Path):
        for panel in panels(file):
            if panel["type"] == "table":
                (organized,) = panel["transformations"]
                assert organized["options"]["excludeByName"] == {"Time": True}, panel["title"]
                assert "Value" in organized["options"]["renameByName"], panel["title"]

    def test_a_success_rate_short_of_its_objective_is_not_rounded_to_it(self, file: Path):
        for panel in panels(file):
            if "success rate" in panel["title"].lower():
                assert panel["fieldConfig"]["defaults"]["decimals"] == 3, panel["title"]

    def test_a_heatmap_has_the_unit_of_its_buckets_and_that_of_their_rates(self, file: Path):
        for panel in panels(file):
            if panel["type"] == "heatmap":
                assert panel["options"]["yAxis"]["unit"] == "s", panel["title"]
                assert panel["options"]["cellValues"]["unit"] == "cps", panel["title"]

    def test_what_has_a_bad_value_is_red_there(self, file: Path):
        for panel in panels(file):
            defaults = panel["fieldConfig"]["defaults"]
            if panel["type"] in {"stat", "timeseries"} and defaults["unit"] in {"percentunit", "s"}:
                colors = {step["color"] for step in defaults["thresholds"]["steps"]}
                assert {"green", "red"} <= colors, panel["title"]

    def test_its_lines_of_panels_are_full(self, file: Path):
        widths: dict[int, int] = {}
        for panel in panels(file):
            place = panel["gridPos"]
            widths[place["y"]] = widths.get(place["y"], 0) + place["w"]
        assert set(widths.values()) == {24}

    def test_what_can_be_chosen_chooses_something(self, file: Path):
        _, *choices = json.loads(file.read_text())["templating"]["list"]
        asked = " ".join(expression.text for expression in of_dashboard(file))
        used = {name for name in re.findall(r"\$(\w+)", asked) if not name.startswith("__")}
        assert used == {choice["name"] for choice in choices}

    def test_what_series_are_called_by_is_a_label_of_theirs(self, file: Path):
        for panel in panels(file):
            for target in panel["targets"]:
                labels = ",".join(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
                grouped = f"count by ({labels or 'job'}) ({target['expr']})"
                assert unknown_names(grouped) == set(), panel["title"]

    def test_histograms_are_asked_for_their_exemplars(self, file: Path):
        for panel in panels(file):
            for target in panel["targets"]:
                over_time = panel["type"] in {"timeseries", "heatmap"}
                wanted = over_time and "_bucket" in target["expr"]
                assert target.get("exemplar", False) == wanted, panel["title"]

    def test_it_loads_in_the_oldest_grafana(self, file: Path):
        assert {panel["type"] for panel in panels(file)} <= OLDEST_PANELS
        assert json.loads(file.read_text())["schemaVersion"] == OLDEST_SCHEMA

    def test_its_choices_have_all_and_its_data_source_is_chosen(self, file: Path):
        source, *choices = json.loads(file.read_text())["templating"]["list"]
        assert (source["type"], source["query"]) == ("datasource", "prometheus")
        for choice in choices:
            assert choice["includeAll"]
            assert choice["allValue"] == ".*"
            asked, label = choice["query"].removeprefix("label_values(")[:-1].rsplit(", ", 1)
            assert unknown_names(f"count by ({label}) ({asked})") == set()
        for panel in panels(file):
            assert panel["datasource"]["uid"] == "${datasource}"

    def test_it_leads_to_the_others(self, file: Path):
        (link,) = json.loads(file.read_text())["links"]
        assert link["tags"] == ["session-metrics"]
        assert json.loads(file.read_text())["tags"] == ["session-metrics"]


def test_the_first_thing_seen_is_the_success_rate_of_creation():
    (file,) = (file for file in DASHBOARDS if file.stem.endswith("-sessions"))
    row, *rest = json.loads(file.read_text())["panels"]
    assert row["type"] == "row"
    first = rest[: [panel["type"] for panel in rest].index("row")]
    assert [(panel["type"], panel["title"]) for panel in first[:4]] == [
        ("stat", "Session creation success rate"),
        ("timeseries", "Success rate over time, by factory"),
        ("timeseries", "Success rate by instance"),
        ("timeseries", "Failed creations by error type"),
    ]


def test_each_alert_has_a_runbook_with_a_query_and_what_to_do():
    alerts = {rule["alert"]: rule for rule in rules() if "alert" in rule}
    assert sorted(alerts) == [page.stem for page in RUNBOOKS]
    for name, rule in alerts.items():
        page = GRAFANA.parent / rule["annotations"]["runbook_url"]
        assert page.read_text().startswith(f"# {name}\n")
        assert of_runbook(page)
        assert "\n## Do\n" in page.read_text()
