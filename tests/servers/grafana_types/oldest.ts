// The oldest Grafana. Of heatmaps and tables its package has no options, of a variable only a part.
import type * as grafana from "grafana-oldest";
import type { BoardOf, PanelOf, Saved } from "./saved";

type Of<Type extends string, Options, Custom> =
  PanelOf<grafana.Panel, Type, Options, grafana.FieldConfigSource<Custom>>;

type Variable = grafana.VariableModel & {
  allValue: string;
  current: { selected: boolean; text: string; value: string };
  includeAll: boolean;
  multi: boolean;
  refresh: 0 | 1 | 2;
  sort: 0 | 1 | 2 | 3 | 4 | 5 | 6;
  // of intervals, but the generator writes them with all
  auto: boolean;
  auto_count: number;
  auto_min: string;
  // newer than this Grafana
  allowCustomValue: boolean;
};

type StatOptions = grafana.SingleStatBaseOptions & {
  colorMode: grafana.BigValueColorMode;
  graphMode: grafana.BigValueGraphMode;
  justifyMode: grafana.BigValueJustifyMode;
  textMode: grafana.BigValueTextMode;
  // newer than this Grafana
  percentChangeColorMode: string;
  showPercentChange: boolean;
  wideLayout: boolean;
};

type TimeseriesOptions =
  grafana.OptionsWithLegend & grafana.OptionsWithTooltip & grafana.OptionsWithTimezones;

export type Board = BoardOf<grafana.Dashboard, Variable>;
export type Row = Saved<grafana.RowPanel>;
export type Timeseries = Of<"timeseries", TimeseriesOptions, grafana.GraphFieldConfig>;
export type Stat = Of<"stat", StatOptions, Record<string, never>>;
export type Heatmap = Of<"heatmap", Record<string, unknown>, grafana.HideableFieldConfig>;
export type Table = Of<"table", Record<string, unknown>, grafana.TableFieldOptions>;
