// The newest Grafana.
import type * as grafana from "grafana-newest";
import type * as heatmap from "grafana-newest/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen";
import type * as stat from "grafana-newest/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type * as table from "grafana-newest/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen";
import type * as timeseries from "grafana-newest/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";
import type { BoardOf, PanelOf, Saved } from "./saved";

type Of<Type extends string, Options, Custom> =
  PanelOf<grafana.Panel, Type, Options, grafana.FieldConfigSource<Custom>>;

type Variable = grafana.VariableModel & {
  // of intervals, but the generator writes them with all
  auto: boolean;
  auto_count: number;
  auto_min: string;
};

export type Board = BoardOf<grafana.Dashboard, Variable>;
export type Row = Saved<grafana.RowPanel>;
export type Timeseries = Of<"timeseries", timeseries.Options, timeseries.FieldConfig>;
export type Stat = Of<"stat", stat.Options, Record<string, never>>;
export type Heatmap = Of<"heatmap", heatmap.Options, heatmap.FieldConfig>;
export type Table = Of<"table", table.Options, table.FieldConfig>;
