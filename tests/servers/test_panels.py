"""What panels show of series that are written down here, by Prometheus's own engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import yaml

from servers.test_dashboards import PANELS, asked

if TYPE_CHECKING:
    from pathlib import Path

    from servers.prometheus_server import Promtool

CREATIONS = (
    'sqlalchemy_session_creations_total{job="shop",instance="%s",factory="orders",outcome="%s"}'
)

CONNECTIONS = (
    'db_client_connection_%s{job="shop",instance="%s",db_client_connection_pool_name="db"%s}'
)
STATEMENTS = 'db_client_operation_duration_seconds_count{job="shop"%s}'
USED = ',db_client_connection_state="used"'


@pytest.mark.parametrize(
    ("where", "series", "shown"),
    [
        (
            "session-metrics-sessions: Session creation success rate",
            {CREATIONS % ("a", "success"): "0+3x20", CREATIONS % ("a", "failure"): "0+1x20"},
            {"{}": 0.75},
        ),
        # Nobody asks for a session at night: no rate, and not NaN, which is shown in red.
        (
            "session-metrics-sessions: Session creation success rate",
            {CREATIONS % ("a", "success"): "9x20", CREATIONS % ("a", "failure"): "1x20"},
            {},
        ),
        # Two services have factories of one name: the one that is well does not hide the other.
        (
            "session-metrics-sessions: Success rate over time, by factory",
            {
                CREATIONS % ("a", "success"): "0+3x20",
                (CREATIONS % ("b", "success")).replace("shop", "bank"): "0x20",
                (CREATIONS % ("b", "failure")).replace("shop", "bank"): "0+1x20",
            },
            {'{job="shop",factory="orders"}': 1, '{job="bank",factory="orders"}': 0},
        ),
        # One instance is full, and nine others idle: its requests wait.
        (
            "session-metrics-pools: Fill against the limit, in the fullest instance",
            {CONNECTIONS % ("max", f"i{n}", ""): "10x20" for n in range(10)}
            | {CONNECTIONS % ("count", f"i{n}", USED): "0x20" for n in range(9)}
            | {CONNECTIONS % ("count", "i9", USED): "10x20"},
            {'{db_client_connection_pool_name="db"}': 1},
        ),
        # Nothing is known of the operation of text(), and a line with no name is called "Value".
        (
            "session-metrics-pools: Statements by operation",
            {
                STATEMENTS % "": "0+30x20",
                STATEMENTS % ',db_operation_name="SELECT"': "0+60x20",
            },
            {'{db_operation_name="text()"}': 1, '{db_operation_name="SELECT"}': 2},
        ),
    ],
)
def test_a_panel_shows(
    promtool: Promtool, tmp_path: Path, where: str, series: dict[str, str], shown: dict[str, float]
):
    (panel,) = (panel for panel in PANELS if panel.where == where)
    test = {
        "interval": "30s",
        "input_series": [{"series": name, "values": of} for name, of in series.items()],
        "promql_expr_test": [
            {
                "expr": asked(panel.text),
                "eval_time": "10m",
                "exp_samples": [
                    {"labels": labels, "value": value} for labels, value in shown.items()
                ],
            }
        ],
    }
    (tmp_path / "cases.yaml").write_text(yaml.safe_dump({"tests": [test]}))
    checked = promtool("test", "rules", str(tmp_path / "cases.yaml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
