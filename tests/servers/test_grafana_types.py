"""The dashboards by Grafana's own types: of the oldest release that they are for, and the newest.

A field or a value that a release doesn't have is an error, but for the few fields that
``grafana_types`` lists.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from grafana.expressions import DASHBOARDS

from servers.processes import needs

RELEASES = {"oldest": "9.4.17", "newest": "12.4.11"}
TYPES = Path(__file__).with_name("grafana_types")
_FAULT = re.compile(r"^(.+)\.ts\(\d+,\d+\): error TS\d+: (.*)$", re.MULTILINE)


def installed() -> Path:
    """The folder with Grafana's packages and the compiler."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    releases = "-".join(RELEASES.values())
    return cache / "session-metrics-otel" / f"grafana-types-{releases}" / "node_modules"


def as_typescript(dashboard: dict[str, Any], release: str) -> str:
    """A program that says of the dashboard, and of each of its panels, which type it has."""
    board = {name: value for name, value in dashboard.items() if name != "panels"}
    panels = []
    for panel in dashboard["panels"]:
        panels += panel.get("panels", [])
        panels.append({**panel, "panels": []} if panel["type"] == "row" else panel)
    lines = [f'import type * as saved from "./{release}";']
    lines.append(f"export const board: saved.Board = {json.dumps(board)};")
    lines += [
        f"export const panel{number}: saved.{panel['type'].title()} = {json.dumps(panel)};"
        for number, panel in enumerate(panels)
    ]
    return "\n".join(lines) + "\n"


def faults(programs: dict[str, str], folder: Path) -> list[tuple[str, str]]:
    """What TypeScript has to say of the programs: the name of each, and the fault."""
    node = needs("Node", shutil.which("node"))
    packages = needs("Grafana's types", installed())
    for source in TYPES.glob("*.ts"):
        shutil.copy(source, folder)
    shutil.copy(TYPES / "tsconfig.json", folder)
    (folder / "node_modules").symlink_to(packages)
    for name, text in programs.items():
        (folder / f"{name}.ts").write_text(text)
    command = [node, f"{packages}/typescript/bin/tsc", "--project", "."]
    compiled = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    found: list[tuple[str, str]] = _FAULT.findall(compiled.stdout)
    assert bool(found) == bool(compiled.returncode), compiled.stdout + compiled.stderr
    return found


@pytest.mark.parametrize("release", RELEASES)
def test_a_dashboard_has_the_types_of_grafana(release: str, tmp_path: Path) -> None:
    programs = {
        file.stem: as_typescript(json.loads(file.read_text()), release) for file in DASHBOARDS
    }
    assert faults(programs, tmp_path) == []


def changed(name: str, panel: str, path: list[str | int], value: object) -> dict[str, Any]:
    """A dashboard of ours with one thing changed: in its first panel of that type, or above."""
    (file,) = [file for file in DASHBOARDS if file.stem == f"session-metrics-{name}"]
    dashboard: dict[str, Any] = json.loads(file.read_text())
    place: Any = dashboard
    if panel:
        place = next(found for found in dashboard["panels"] if found["type"] == panel)
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return dashboard


@pytest.mark.parametrize("release", RELEASES)
def test_a_wrong_dashboard_is_refused(release: str, tmp_path: Path) -> None:
    wrong = {
        "field": changed("sessions", "timeseries", ["fieldConfig", "defaults", "units"], "s"),
        "value": changed("sessions", "stat", ["options", "colorMode"], "loud"),
        "custom": changed(
            "sessions", "timeseries", ["fieldConfig", "defaults", "custom", "drawStyle"], "dots"
        ),
        "kind": changed("sessions", "", ["templating", "list", 1, "type"], "list"),
        "number": changed("sessions", "heatmap", ["gridPos", "w"], "12"),
        "cursor": changed("sessions", "", ["graphTooltip"], 7),
    }
    programs = {name: as_typescript(dashboard, release) for name, dashboard in wrong.items()}
    refused = dict(faults(programs, tmp_path))
    assert sorted(refused) == sorted(wrong)
    assert "'\"units\"' does not exist" in refused["field"]
    assert refused["value"].startswith("Type '\"loud\"' is not assignable")


def test_a_feature_newer_than_the_oldest_grafana_is_refused(tmp_path: Path) -> None:
    # The tooltip's hideZeros came after 9.4.
    newer = changed(
        "sessions", "timeseries", ["options"], {"tooltip": {"mode": "multi", "hideZeros": True}}
    )
    programs = {f"by-{release}": as_typescript(newer, release) for release in RELEASES}
    ((name, said),) = faults(programs, tmp_path)
    assert name == "by-oldest"
    assert "'\"hideZeros\"' does not exist" in said
