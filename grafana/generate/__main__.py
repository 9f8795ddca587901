"""Write the dashboards and rules: ``python -m grafana.generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from .fleet import FLEET
from .pools import POOLS
from .routes import ROUTES
from .rules import rules
from .sessions import SESSIONS

HOME = Path(__file__).resolve().parent.parent
BOARDS = (SESSIONS, POOLS, ROUTES, FLEET)
RULES = "rules/session-metrics.yaml"
OPERATOR = "../deploy/kubernetes/prometheusrule.yaml"


def files() -> dict[str, str]:
    """What is to be in each file, by its path under grafana/."""
    encoder = JSONEncoder(sort_keys=True, indent=2)
    made = {f"dashboards/{board.uid}.json": encoder.encode(board.build()) for board in BOARDS}
    return {
        **{path: text + "\n" for path, text in made.items()},
        RULES: yaml.safe_dump(rules(), sort_keys=False, width=100),
        OPERATOR: yaml.safe_dump(_for_operator(), sort_keys=False, width=100),
    }


def _for_operator() -> dict[str, Any]:
    """The rules as the Prometheus operator takes them."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {
            "name": "session-metrics",
            "labels": {"app.kubernetes.io/name": "session-metrics"},
        },
        "spec": rules(),
    }


def main() -> None:
    """Write them."""
    for path, text in files().items():
        (HOME / path).write_text(text)


if __name__ == "__main__":
    main()
