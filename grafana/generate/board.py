"""A dashboard: its variables, its links to the others, its rows of panels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import dashboard

from .panel import DATASOURCE, Query

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .panel import Panel

TAG = "session-metrics"

JOB = 'job=~"$job"'
INSTANCE = f'{JOB},instance=~"$instance"'
FACTORY = f'{INSTANCE},factory=~"$factory"'
FACTORY_OF_JOB = f'{JOB},factory=~"$factory"'
POOL = f'{INSTANCE},db_client_connection_pool_name=~"$pool"'
RATE = "$__rate_interval"

VARIABLES = {
    "job": "label_values(sqlalchemy_session_peak, job)",
    "instance": f"label_values(sqlalchemy_session_peak{{{JOB}}}, instance)",
    "factory": f"label_values(sqlalchemy_session_peak{{{INSTANCE}}}, factory)",
    "pool": f"label_values(sqlalchemy_pools{{{INSTANCE}}}, db_client_connection_pool_name)",
}
"""What can be chosen, by name: Grafana's query for the choices."""


def chosen(*names: str) -> dict[str, str]:
    """Those of ``VARIABLES`` with these names."""
    return {name: VARIABLES[name] for name in names}


def rate(by: str, metric: str, where: str) -> Query:
    """How fast ``metric`` rises, for each value of the label ``by``, or of several."""
    legend = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    return Query(_rate(by, metric, where), legend)


def quantile(q: float, metric: str, where: str, by: str) -> Query:
    """The ``q`` quantile of the histogram ``metric``, for each value of the label ``by``."""
    return Query(_quantile(q, metric, where, f"le, {by}"), f"{{{{{by}}}}}")


def quantiles(metric: str, where: str, *named: tuple[float, str]) -> list[Query]:
    """Some quantiles of the histogram ``metric``, by their names."""
    return [Query(_quantile(q, metric, where, "le"), name) for q, name in named]


def _rate(by: str, metric: str, where: str) -> str:
    return f"sum by ({by}) (rate({metric}{{{where}}}[{RATE}]))"


def _quantile(q: float, metric: str, where: str, by: str) -> str:
    return f"histogram_quantile({q}, {_rate(by, f'{metric}_bucket', where)})"


MEDIAN, MOST, NEARLY_ALL = (0.5, "median"), (0.95, "95 %"), (0.99, "99 %")


OLDEST_SCHEMA = 36
"""Of @grafana/schema 9.4; the builder writes its own. Grafana brings old ones up to date, not down."""


@dataclass(frozen=True)
class Board:
    """One dashboard.

    Attributes:
        uid: Its id, and the name of its file.
        title: Its title.
        says: What it is for.
        variables: What can be chosen, as ``VARIABLES`` says it.
        empty: What is said where there is no data.
        rows: Panels by the title of their row.
    """

    uid: str
    title: str
    says: str
    variables: Mapping[str, str]
    empty: str
    rows: Mapping[str, Sequence[Panel]]

    def panels(self) -> list[Panel]:
        """All its panels."""
        return [panel for row in self.rows.values() for panel in row]

    def build(self) -> dashboard.Dashboard:
        """The dashboard for Grafana."""
        made = (
            builders.Dashboard(self.title)
            .uid(self.uid)
            .description(self.says)
            .tags([TAG])
            .time("now-1h", "now")
            .refresh("30s")
            .timezone("browser")
            .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
            .link(
                builders.DashboardLink("Session metrics")
                .type(dashboard.DashboardLinkType.DASHBOARDS)
                .tags([TAG])
                .as_dropdown(True)  # noqa: FBT003 - the builder's own
                .include_vars(True)  # noqa: FBT003
                .keep_time(True)  # noqa: FBT003
            )
            .with_variable(
                builders.DatasourceVariable("datasource").label("Data source").type("prometheus")
            )
        )
        for name, choices in self.variables.items():
            made = made.with_variable(_variable(name, choices))
        for title, panels in self.rows.items():
            made = made.with_row(builders.Row(title))
            for panel in panels:
                made = made.with_panel(panel.build(self.empty))
        board = made.build()
        board.schema_version = OLDEST_SCHEMA
        return board


def _variable(name: str, choices: str) -> Any:
    return (
        builders.QueryVariable(name)
        .label(name.capitalize())
        .query(choices)
        .datasource(DATASOURCE)
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        .multi(True)  # noqa: FBT003 - the builder's own
        .include_all(True)  # noqa: FBT003
        .all_value(".*")
        .current(dashboard.VariableOption(selected=True, text="All", value="$__all"))
    )
