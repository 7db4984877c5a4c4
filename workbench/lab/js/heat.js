// Measures as two heat maps, layer by t at the chosen w and layer by w at the chosen t; a cell sets all three.
PANES.heat = function heat(root, pane, arrays, store, ui) {
  const table = createHeatTable(pane, arrays, store);
  const bar = make("div", { class: "wb-bar" });
  for (const [option, label] of [["measure", "measure"], ["version", "features"]]) {
    const values = pane[`${option}s`];
    const texts = values.map((name) => table.named(name));
    const get = (state) => table.chosen(option, state);
    if (values.length > 1) bar.append(ui.select({ option, label, values, texts, get }));
  }
  const read = make("p", { class: "wb-ht-read" });
  const say = (text) => { read.textContent = text; };
  const across = ["t", ...(table.stops.length > 1 ? ["w"] : [])];
  const grids = across.map((name) => createHeatGrid(name, table, store, say));
  const both = make("div", { class: "wb-ht-both" }, ...grids.map(({ element }) => element));
  const scale = createHeatScale(table);
  root.append(make("style", {}, HEAT_STYLE), bar, both, scale.element, read);
  return {
    update(state, changed) {
      if (changed.has("size")) layOutHeat(both, grids, table);
      grids.forEach((grid) => grid.update(state));
      scale.update(state);
      if (!both.matches(":hover") && !both.contains(document.activeElement)) say(table.sentence(state, table.here(state)));
    },
    picture: () => ({ svg: heatPicture(grids, scale, table, store.get()) }),
  };
};

const HEAT_STYLE = `
.wb-ht-both { display: flex; flex-wrap: wrap; gap: 4px 20px; }
.wb-ht-map, .wb-ht-scale { display: block; max-width: 100%; outline: none; }
.wb-ht-ink { fill: var(--wb-fg); }
.wb-ht-chance { stroke: var(--wb-fg); }
.wb-ht-map [role="gridcell"] { cursor: pointer; outline: none; }
.wb-ht-map [role="gridcell"] text { pointer-events: none; font-variant-numeric: tabular-nums; }
.wb-ht-none { fill: var(--wb-line); }
.wb-ht-here { stroke: var(--wb-here, #d62728); pointer-events: none; }
.wb-ht-over { stroke: var(--wb-fg); pointer-events: none; }
.wb-ht-read { min-height: 1.4em; margin: 4px 0 0; font-variant-numeric: tabular-nums; }
`;
