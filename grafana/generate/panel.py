"""A panel, in the few words that ours need, and what Grafana makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
GREEN, AMBER, RED = "green", "orange", "red"
Steps = Sequence[tuple[str, float | None]]
FELT: Steps = [(GREEN, None), (AMBER, 0.1), (RED, 1)]
"""Seconds that a user waits: those that are felt, and those that are complained of."""
SUCCESS: Steps = [(RED, None), (AMBER, 0.99), (GREEN, 0.999)]
SUCCESS_DECIMALS = 3
"""Grafana's own choice rounds 99.95 % to 100 %, and the objective is 99.9 %."""
NONE_IS_WELL: Steps = [(GREEN, None), (RED, 1)]


@dataclass(frozen=True)
class Query:
    """One PromQL expression.

    Attributes:
        expr: The expression, with Grafana's variables in it.
        legend: What its series are called.
    """

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: Its title.
        says: What it shows, what a bad value looks like, and what to do then.
        queries: What it asks.
        kind: ``time``, ``stat``, ``heatmap`` or ``table``.
        unit: Grafana's name of the unit; a heatmap's is that of its buckets.
        decimals: How many are shown; Grafana's choice where None.
        width: Of 24.
        steps: Thresholds: colour by the value it begins at, the first at None.
        low: The axis begins here.
        high: The axis ends here, as a rule.
        stacked: Whether series lie on one another.
        empty: What is said where there is no data; the dashboard's own words where "".
        columns: What a table's columns are called, by label; by "Value" for the value.
    """

    title: str
    says: str
    queries: Sequence[Query]
    kind: str = "time"
    unit: str = "short"
    decimals: int | None = None
    width: int = 8
    steps: Steps = ()
    low: float | None = 0
    high: float | None = None
    stacked: bool = False
    empty: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)

    def build(self, empty: str) -> Any:
        """The panel for Grafana, on a dashboard that says ``empty`` where there is no data."""
        made = _KINDS[self.kind](self)
        made = (
            made.title(self.title)
            .description(self.says)
            .datasource(DATASOURCE)
            .span(self.width)
            .height(8)
            .unit(self.unit)
            .no_value(self.empty or empty)
        )
        if self.low is not None and self.kind != "table":
            made = made.min(self.low)
        if self.decimals is not None:
            made = made.decimals(self.decimals)
        if self.high is not None:
            made = made.max(self.high)
        if self.steps:
            steps = [dashboard.Threshold(value=value, color=color) for color, value in self.steps]
            made = made.thresholds(
                builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps)
            )
        for letter, query in zip("ABCDEF", self.queries, strict=False):
            made = made.with_target(self._target(letter, query))
        return made

    def _target(self, letter: str, query: Query) -> Any:
        made = (
            prometheus.Dataquery()
            .datasource(DATASOURCE)
            .expr(query.expr)
            .legend_format(query.legend)
            .ref_id(letter)
        )
        if self.kind in ("stat", "table"):
            made = made.instant()
        else:
            made = made.range().exemplar("_bucket" in query.expr)
        formats = {"heatmap": PromQueryFormat.HEATMAP, "table": PromQueryFormat.TABLE}
        return made.format(formats.get(self.kind, PromQueryFormat.TIME_SERIES))


def _time(panel: Panel) -> Any:
    # Grafana shows a value that stands alone, such as a single time-out, with points or not at all.
    made = timeseries.Panel().fill_opacity(10).show_points(common.VisibilityMode.AUTO)
    if panel.stacked:
        stacking = common_builders.StackingConfig().mode(common.StackingMode.NORMAL)
        made = made.stacking(stacking).fill_opacity(40)
    if panel.steps:
        style = common_builders.GraphThresholdsStyleConfig().mode(
            common.GraphThresholdsStyleMode.DASHED
        )
        made = made.thresholds_style(style)
    return made.legend(
        common_builders.VizLegendOptions()
        .display_mode(common.LegendDisplayMode.LIST)
        .placement(common.LegendPlacement.BOTTOM)
        .show_legend(True)  # noqa: FBT003 - the builder's own
    )


def _stat(_: Panel) -> Any:
    return (
        stat.Panel()
        .color_mode(common.BigValueColorMode.BACKGROUND)
        .graph_mode(common.BigValueGraphMode.NONE)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
    )


def _heatmap(panel: Panel) -> Any:
    # The unit of a panel is that of its values, which are rates here: its buckets have their own.
    return (
        heatmap.Panel()
        .calculate(False)  # noqa: FBT003 - the buckets are Prometheus's
        .color(heatmap.HeatmapColorOptions().scheme("Oranges").steps(64))
        .y_axis(heatmap.YAxisConfig().unit(panel.unit))
        .cell_values(heatmap.CellValues().unit("cps"))
    )


def _table(panel: Panel) -> Any:
    # The time of an instant query is now: it says nothing beside a sum over the time shown.
    columns = {"excludeByName": {"Time": True}, "indexByName": {}, "renameByName": panel.columns}
    return table.Panel().with_transformation(
        dashboard.DataTransformerConfig(id_val="organize", options=columns)
    )


_KINDS = {"time": _time, "stat": _stat, "heatmap": _heatmap, "table": _table}
