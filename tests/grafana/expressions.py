"""The PromQL in what users load: where it is, and which names it uses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from session_metrics_otel.catalog import CATALOG, label_name

yaml = pytest.importorskip("yaml")

GRAFANA = Path(__file__).parents[2] / "grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
RULES = GRAFANA / "rules" / "session-metrics.yaml"

_STRING = re.compile(r'"[^"]*"')
_NAME = re.compile(r"\b(?:sqlalchemy|db_client|application|job)[a-z_0-9:]*\b")
_SELECTOR = re.compile(r"([a-z_][a-z_0-9:]*)?\{([^}]*)\}")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
_LABEL = re.compile(r"([a-z_]\w*)\s*(?:=~|!~|!=|=)")
FROM_PROMETHEUS = {"job", "instance", "le"}


class Expression(NamedTuple):
    """One expression, and where it stands."""

    where: str
    text: str


def panels(file: Path) -> list[dict[str, Any]]:
    """The panels of a dashboard, those inside rows too."""
    found = []
    for panel in json.loads(file.read_text())["panels"]:
        found += panel.get("panels", []) if panel["type"] == "row" else [panel]
    return found


def of_dashboard(file: Path) -> list[Expression]:
    """Every expression of its panels."""
    return [
        Expression(f"{file.stem}: {panel['title']}", target["expr"])
        for panel in panels(file)
        for target in panel["targets"]
    ]


def rules() -> list[dict[str, Any]]:
    """Every rule of the file."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def of_rules() -> list[Expression]:
    """Every expression of the rules."""
    return [Expression(rule.get("record") or rule["alert"], rule["expr"]) for rule in rules()]


def of_catalog() -> dict[str, set[str]]:
    """Every name that a scrape has, with the labels that its series may have."""
    return {
        name: {label_name(attribute) for attribute in metric.attributes}
        for metric in CATALOG
        for name in metric.sample_names
    }


def unknown_names(expression: str) -> set[str]:
    """The metrics and labels in ``expression`` that neither a scrape nor a rule has."""
    known = of_catalog()
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    labels = FROM_PROMETHEUS.union(*known.values())
    text = _STRING.sub('""', expression)
    used = {name for name in _NAME.findall(text) if name not in labels}
    unknown = used - set(known) - recorded
    for name, inside in _SELECTOR.findall(text):
        allowed = known.get(name, labels) | FROM_PROMETHEUS
        unknown |= {label for label in _LABEL.findall(inside) if label not in allowed}
    for inside in _GROUPING.findall(text):
        unknown |= {label for label in map(str.strip, inside.split(",")) if label not in labels}
    return unknown


def of_runbook(file: Path) -> list[Expression]:
    """The queries of a page to look at next."""
    found = re.findall(r"```promql\n(.*?)\n```", file.read_text(), re.DOTALL)
    return [Expression(file.stem, text) for text in found]
