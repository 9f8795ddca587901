"""The schemas of those that read the files in deploy/: Kubernetes, its operators, Compose."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from servers.processes import needs

jsonschema = pytest.importorskip("jsonschema")
kubernetes_validate = pytest.importorskip("kubernetes_validate")
yaml = pytest.importorskip("yaml")

KUSTOMIZE = "5.7.1"
OPERATOR = "0.85.0"
COMPOSE = "2.16.2"

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "session-metrics-otel"
SCHEMAS = CACHE / f"schemas-{OPERATOR}-{COMPOSE}"


def kustomize_build(folder: Path) -> list[dict[str, Any]]:
    """The objects that ``kubectl kustomize`` makes of ``folder``."""
    kustomize = needs(f"kustomize {KUSTOMIZE}", CACHE / f"kustomize-{KUSTOMIZE}")
    command = [kustomize, "build", "--load-restrictor", "LoadRestrictionsNone", folder]
    built = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert built.returncode == 0, built.stderr
    return list(yaml.safe_load_all(built.stdout))


def check_compose(project: dict[str, Any]) -> None:
    """Raise jsonschema's ValidationError where the Compose specification has no such file."""
    needs(f"compose-go {COMPOSE}", SCHEMAS)
    schema = json.loads((SCHEMAS / "compose-spec.json").read_text())
    jsonschema.validate(project, schema, jsonschema.Draft202012Validator)


def check_kubernetes(manifest: dict[str, Any], version: str) -> None:
    """Raise jsonschema's ValidationError where Kubernetes ``version`` has no such object.

    A field that is unknown there is an error.
    """
    group, _, _ = manifest["apiVersion"].partition("/")
    if group != "monitoring.coreos.com":
        kubernetes_validate.validate(manifest, version, strict=True)
        return
    # The metadata of every kind are the same.
    namesake = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": manifest["metadata"]}
    kubernetes_validate.validate(namesake, version, strict=True)
    jsonschema.validate(manifest, _custom_resource(manifest), jsonschema.Draft202012Validator)


def _custom_resource(manifest: dict[str, Any]) -> Any:
    """The Prometheus operator's own schema of that kind."""
    needs(f"The Prometheus operator's definitions {OPERATOR}", SCHEMAS)
    path = SCHEMAS / f"monitoring.coreos.com_{manifest['kind'].lower()}s.yaml"
    versions = yaml.safe_load(path.read_text())["spec"]["versions"]
    (schema,) = [
        version["schema"]["openAPIV3Schema"]
        for version in versions
        if version["served"] and manifest["apiVersion"].endswith(f"/{version['name']}")
    ]
    return _closed(schema)


def _closed(schema: Any) -> Any:
    """The schema, with unknown fields refused. A cluster drops them, most often with no word."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(part) for key, part in schema.items()}
    if isinstance(closed.get("properties"), dict) and closed.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    pattern = closed.get("pattern")
    if isinstance(pattern, str) and "(?i)" in pattern:  # Go takes it anywhere, Python in front
        closed["pattern"] = "(?i)" + pattern.replace("(?i)", "")
    return closed
