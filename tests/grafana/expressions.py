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
_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)?\{([^}]*)\}")
_RANGE = re.compile(r"\[[^\]]*\]|\boffset \w+")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
_NAME = re.compile(r"(?<![\w:])[a-zA-Z_:][\w:]*(?![\w:]|\s*\()")
_LABEL = re.compile(r"([a-z_]\w*)\s*(?:=~|!~|!=|=)")
_WORDS = {"and", "or", "unless", "bool", "group_left", "group_right"}
OF_PROMETHEUS = {"up"}
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


def of_recorded() -> dict[str, set[str]]:
    """Every name that the rules record, with the labels that its series have."""
    return {
        rule["record"]: {
            label.strip() for found in _GROUPING.findall(rule["expr"]) for label in found.split(",")
        }
        for rule in rules()
        if "record" in rule
    }


def unknown_names(expression: str) -> set[str]:
    """The metrics in ``expression`` that nobody has, and the labels that its metrics have not."""
    known = of_catalog() | of_recorded() | {name: set() for name in OF_PROMETHEUS}
    text = _RANGE.sub("", _STRING.sub('""', expression))
    names = set(_NAME.findall(_GROUPING.sub("", _SELECTOR.sub(r"\1", text)))) - _WORDS
    labels = FROM_PROMETHEUS.union(*(known.get(name, set()) for name in names))
    unknown = names - known.keys()
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
