// What one of Grafana's types is in a file of JSON. Enums are their values there; a number may be
// null, as JSON writes -Infinity; and what is left out, Grafana fills in with its default.
export type Saved<T> = unknown extends T ? T
  : T extends string ? `${T}`
  : T extends number ? T | null
  : T extends boolean | null | undefined ? T
  : T extends Array<infer Item> ? Array<Saved<Item>>
  : { [Key in keyof T]?: Saved<T[Key]> };

// A dashboard without its panels, which are checked one by one, each by the type of its kind.
export type BoardOf<Dashboard, Variable> = Saved<
  Omit<Dashboard, "panels" | "templating"> & { templating: { list: Variable[] } }
>;

export type PanelOf<Panel, Type extends string, Options, FieldConfigSource> = Saved<
  Omit<Panel, "type" | "options" | "fieldConfig"> & {
    type: Type;
    options: Options;
    fieldConfig: FieldConfigSource;
  }
>;
