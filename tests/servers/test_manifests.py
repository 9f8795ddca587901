"""The files under deploy/ for clusters and containers, by the schemas of those that read them."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from grafana.expressions import DASHBOARDS
from pages import blocks

from servers.schemas import check_compose, check_kubernetes, jsonschema, kustomize_build, yaml
from servers.test_deployments import DEPLOY, loaded

KUBERNETES = ("1.25", "1.37")  # the oldest and the newest that there are schemas of
LAST_APPLIED = 262_144  # bytes that the annotations of an object may have


@pytest.fixture(scope="module")
def applied() -> dict[str, dict[str, Any]]:
    """What is applied of deploy/kubernetes, by kind."""
    return {found["kind"]: found for found in kustomize_build(DEPLOY / "kubernetes")}


@pytest.mark.parametrize("version", KUBERNETES)
def test_what_kustomize_makes_is_valid(applied: dict[str, Any], version: str) -> None:
    assert sorted(applied) == ["ConfigMap", "PodMonitor", "PrometheusRule"]
    for manifest in applied.values():
        check_kubernetes(manifest, version)


def test_the_config_map_has_every_dashboard_as_it_is(applied: dict[str, Any]) -> None:
    dashboards = applied["ConfigMap"]
    assert dashboards["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert dashboards["data"] == {file.name: file.read_text() for file in DASHBOARDS}


def test_kubectl_can_apply_each_object(applied: dict[str, Any]) -> None:
    # kubectl apply keeps the whole of what it sent in an annotation.
    for kind, manifest in applied.items():
        assert len(json.dumps(manifest).encode()) < LAST_APPLIED, kind


@pytest.mark.parametrize("version", KUBERNETES)
def test_the_deployment_in_the_documentation_is_valid(version: str) -> None:
    (deployment,) = [
        yaml.safe_load(block.text)
        for block in blocks("how-to/kubernetes")
        if block.language == "yaml"
    ]
    check_kubernetes(deployment, version)


def test_the_compose_file_is_valid() -> None:
    check_compose(loaded("compose", "compose.yaml"))


@pytest.mark.parametrize(
    ("kind", "path", "wrong", "said"),
    [
        ("PodMonitor", ["spec", "podMetricsEndpoints", 0, "intervall"], "30s", "intervall"),
        ("PodMonitor", ["spec", "podMetricsEndpoints", 0, "interval"], "30 s", "does not match"),
        ("PodMonitor", ["spec", "podMetricsEndpoints", 0, "scheme"], "ftp", "is not one of"),
        ("PodMonitor", ["spec", "selector"], None, "is not of type"),
        ("PrometheusRule", ["spec", "groups", 0, "rules", 0, "expr"], None, "is not valid"),
        ("PrometheusRule", ["metadata", "labels", "severity"], 1, "is not of type"),
        ("ConfigMap", ["data", "sessions.json"], {}, "is not of type"),
        ("ConfigMap", ["dat"], {}, "dat"),
    ],
)
def test_a_wrong_manifest_is_refused(
    applied: dict[str, Any], kind: str, path: list[str | int], wrong: object, said: str
) -> None:
    manifest = copy.deepcopy(applied[kind])
    place: Any = manifest
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = wrong
    with pytest.raises(jsonschema.ValidationError, match=said):
        check_kubernetes(manifest, KUBERNETES[-1])


def test_a_wrong_compose_file_is_refused() -> None:
    project = loaded("compose", "compose.yaml")
    project["services"]["grafana"]["port"] = project["services"]["grafana"].pop("ports")
    with pytest.raises(jsonschema.ValidationError, match="'port' was unexpected"):
        check_compose(project)
