// Measures as two heat maps, layer by t at the chosen w and layer by w at the chosen t; a cell sets all three.
const DIVERGING = [[11, 79, 138], [111, 168, 214], [245, 245, 242], [240, 163, 94], [168, 72, 10]];
const UNMEASURED = "#d9dce0";

PANES.heat = function heat(root, pane, arrays, store, ui) {
  const table = createHeatTable(pane, arrays, store);
  const bar = make("div", { class: "wb-bar" });
  for (const [option, label] of [["measure", "Measure"], ["version", "Features"]]) {
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

// The arrays of the pane as cells {layer, t, k}: indices of layer, time and scale.
function createHeatTable(pane, arrays, store) {
  const [values, low, high] = ["values", "low", "high"].map((name) => arrays(name));
  const [, , layers, times, scales] = values.shape;
  const stops = pane.scales;
  const named = (name) => pane.labels?.[name] ?? name;
  const chosen = (option, state) => (pane[`${option}s`].includes(state[option]) ? state[option] : pane[`${option}s`][0]);
  const index = (option, state) => pane[`${option}s`].indexOf(chosen(option, state));
  const at = (state, { layer, t, k }) => blockStart(values, [index("measure", state), index("version", state), layer, t, k]);
  const limits = pane.measures.map((name, measure) => heatLimits(pane, name, values, measure));

  // Scales at which the measure was taken at all: one without guidance has one only.
  function measured(state) {
    const from = at(state, { layer: 0, t: 0, k: 0 });
    const found = stops.slice(0, scales).map(() => false);
    for (let i = 0; i < layers * times * scales; i += 1) found[i % scales] ||= Number.isFinite(values.data[from + i]);
    const kept = found.flatMap((one, k) => (one ? [k] : []));
    return kept.length ? kept : [...found.keys()];
  }

  // The measured scale nearest to w.
  function scaleOf(state) {
    const w = store.value("w", state) ?? stops[0];
    return measured(state).reduce((best, k) => (Math.abs(stops[k] - w) < Math.abs(stops[best] - w) ? k : best));
  }

  const table = {
    layers, times, scales, stops, named, chosen, measured, scaleOf,
    centre: (state) => pane.centre?.[chosen("measure", state)],
    chance: (state) => pane.chance?.[chosen("measure", state)],
    limits: (state) => limits[index("measure", state)],
    value: (state, cell) => values.data[at(state, cell)],
    here: (state) => ({ layer: store.index("layer", state), t: store.index("t", state), k: scaleOf(state) }),
    caption: (across, state) => heatCaption(table, store, across, state),
    sentence: (state, cell) => heatSentence(table, store, state, cell),
    interval: (state, cell) => [low.data[at(state, cell)], high.data[at(state, cell)]],
    colour(state, value) {
      const [least, most] = table.limits(state);
      return heatColour((value - least) / (most - least), table.centre(state) !== undefined);
    },
  };
  return table;
}

// Limits of the colours: of all versions of a measure, so that these can be compared; chance lies within.
function heatLimits(pane, name, { data, shape }, measure) {
  const size = shape.slice(1).reduce((product, count) => product * count);
  const own = [...data.subarray(measure * size, (measure + 1) * size).filter(Number.isFinite)];
  if (own.length && pane.chance?.[name] !== undefined) own.push(pane.chance[name]);
  const [least, most] = own.length ? [Math.min, Math.max].map((best) => own.reduce((a, b) => best(a, b))) : [0, 1];
  const centre = pane.centre?.[name];
  if (centre === undefined) return [least, most > least ? most : least + 1];
  const reach = Math.max(most - centre, centre - least) || 1;
  return [centre - reach, centre + reach];
}

// "at w = 2.5 (nearest to 2.4)", or of the other map "at t = 0.3 (w = 0 only)".
function heatCaption(table, store, across, state) {
  const { stops } = table;
  const [kept, w] = [table.measured(state), store.value("w", state)];
  if (across === "w") {
    const only = kept.length === 1 ? ` (w = ${plain(stops[kept[0]])} only)` : "";
    return `at t = ${plain(store.value("t", state) ?? 0)}${only}`;
  }
  const stop = stops[table.scaleOf(state)];
  if (w === undefined) return "";
  return `at w = ${plain(stop)}${Math.abs(stop - w) < 1e-6 ? "" : ` (nearest to ${plain(w)})`}`;
}

// "layer 8, t = 0.3, w = 2.5: kNN .834 (95 % interval .801 to .862), chance .10"
function heatSentence(table, store, state, cell) {
  const { layer, t, w } = store.axes;
  const where = [
    layer && `layer ${plain(layer.values[cell.layer])}`, t && `t = ${plain(t.values[cell.t])}`,
    w && `w = ${plain(table.stops[cell.k])}`,
  ].filter(Boolean).join(", ");
  const [value, name, limits] = [table.value(state, cell), table.named(table.chosen("measure", state)), table.limits(state)];
  if (!Number.isFinite(value)) return `${where}: ${name} not measured`;
  const ends = table.interval(state, cell);
  const said = ends.map((end) => heatNumber(end, limits, 3)).join(" to ");
  const interval = ends.every(Number.isFinite) ? ` (95 % interval ${said})` : "";
  const chance = table.chance(state) === undefined ? "" : `, chance ${heatNumber(table.chance(state), limits)}`;
  return `${where}: ${name} ${heatNumber(value, limits, 3)}${interval}${chance}`;
}

// Red, green and blue of a value in 0..1: viridis, or blue to brown about a pale middle.
function heatColour(value, diverging) {
  const part = Math.min(1, Math.max(0, value));
  if (!diverging) {
    const place = viridisPlace(part);
    return [...VIRIDIS.subarray(place, place + 3)];
  }
  const place = part * (DIVERGING.length - 1);
  const from = Math.min(DIVERGING.length - 2, Math.floor(place));
  return DIVERGING[from].map((x, i) => Math.floor(x + (DIVERGING[from + 1][i] - x) * (place - from) + 0.5));
}

// Digits by the size of the largest value: ".83", "3.2", "412". `digits` where it is at most 1.
function heatNumber(value, [least, most], digits = 2) {
  const size = Math.max(Math.abs(least), Math.abs(most));
  const kept = size <= 1 ? digits : size < 10 ? digits - 1 : size < 100 ? digits - 2 : 0;
  return value.toFixed(kept).replace(/^(-?)0\./, "$1.").replace(/^-(\.?0+)$/, "$1");
}

const inkOn = ([r, g, b]) => (0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#111" : "#fff");

// One map. Its cells form a grid for the keyboard: arrows move, Enter shows that layer, t and w.
function createHeatGrid(across, table, store, say) {
  // An SVG that hears of the focus would be a stop of the Tab key itself; the cells are.
  const element = svgElement("svg", { class: "wb-ht-map", role: "grid", tabindex: -1 });
  const grid = { across, element, cells: [], focus: null };
  const columns = () => (across === "t" ? table.times : table.scales);
  const cellAt = (state, row, column) => ({
    layer: table.layers - 1 - row,
    t: across === "t" ? column : store.index("t", state),
    k: across === "t" ? table.scaleOf(state) : column,
  });
  const chosen = (state) => {
    const { layer, t, k } = table.here(state);
    return [table.layers - 1 - layer, across === "t" ? t : k];
  };
  const show = (row, column) => {
    moveFrame(grid, "over", row, column);
    say(table.sentence(store.get(), cellAt(store.get(), row, column)));
  };
  const leave = () => {
    grid.over.setAttribute("visibility", "hidden");
    say(table.sentence(store.get(), table.here(store.get())));
  };
  const set = (row, column) => {
    const { layer, t, k } = cellAt(store.get(), row, column);
    const next = { layer, t, w: table.stops[k] };
    store.set(Object.fromEntries(Object.entries(next).filter(([name]) => store.axes[name])));
  };
  listenToGrid(grid, { show, leave, set, columns, rows: table.layers });
  grid.build = (width, cellHeight) => {
    buildHeatGrid(grid, { table, store, columns: columns(), width, cellHeight });
    grid.tab = null;
  };
  grid.caption = (state) => table.caption(across, state);
  grid.update = (state) => {
    const name = `${table.named(table.chosen("measure", state))}, layer by ${across}, ${grid.caption(state)}`;
    element.setAttribute("aria-label", `${name}. Arrows move, Enter chooses.`);
    grid.title.textContent = grid.caption(state);
    const [row, column] = chosen(state);
    grid.cells.forEach((line, r) => line.forEach((cell, c) => {
      paintCell(cell, cellAt(state, r, c), table, state);
      cell.group.setAttribute("aria-selected", r === row && c === column);
    }));
    moveFrame(grid, "here", row, column);
    if (!element.contains(document.activeElement)) setTab(grid, row, column);
  };
  return grid;
}

function setTab(grid, row, column) {
  grid.tab?.setAttribute("tabindex", -1);
  grid.tab = grid.cells[row][column].group;
  grid.tab.setAttribute("tabindex", 0);
}

// Updates one cell where it differs; numbers only where they fit.
function paintCell(cell, at, table, state) {
  const value = table.value(state, at);
  const known = Number.isFinite(value);
  const colour = known ? table.colour(state, value) : null;
  const fill = known ? `rgb(${colour})` : UNMEASURED;
  const text = known && cell.roomy ? heatNumber(value, table.limits(state)) : "";
  if (cell.fill !== fill) {
    cell.rect.setAttribute("fill", fill);
    cell.rect.classList.toggle("wb-ht-none", !known);
    cell.label.setAttribute("fill", known ? inkOn(colour) : "#111");
    cell.fill = fill;
  }
  if (cell.label.textContent !== text) cell.label.textContent = text;
  cell.group.setAttribute("aria-label", table.sentence(state, at));
}

const HEAT = { left: 44, top: 26, bottom: 40, right: 6 };

function buildHeatGrid(grid, { table, store, columns, width, cellHeight }) {
  const { element, across } = grid;
  const cellWidth = (width - HEAT.left - HEAT.right) / columns;
  const whole = Math.max(width, HEAT.left + 170); // the caption needs that
  const height = HEAT.top + table.layers * cellHeight + HEAT.bottom;
  Object.assign(grid, { cellWidth, cellHeight, width: whole, height, cells: [] });
  for (const [name, value] of Object.entries({ width: whole, height, viewBox: `0 0 ${whole} ${height}` })) {
    element.setAttribute(name, value);
  }
  const text = (said, x, y, more = {}) => {
    const usual = { x, y, fill: "#1c1e21", "font-size": 11, "text-anchor": "middle", class: "wb-ht-ink" };
    const made = svgElement("text", { ...usual, ...more });
    made.textContent = said;
    return made;
  };
  grid.title = text("", HEAT.left, 15, { "text-anchor": "start", "font-size": 12, "font-weight": 600 });
  const middle = HEAT.top + (table.layers * cellHeight) / 2;
  element.replaceChildren(
    grid.title,
    text("layer", 0, 0, { transform: `translate(11,${middle}) rotate(-90)` }),
    text(across, HEAT.left + (columns * cellWidth) / 2, height - 8, { "font-style": "italic" }),
  );
  const values = across === "t" ? store.axes.t?.values ?? [] : table.stops;
  const every = Math.ceil((Math.max(...values.map((value) => plain(value).length)) * 6.5 + 8) / cellWidth);
  values.slice(0, columns).forEach((value, c) => {
    if (c % every) return;
    element.append(text(plain(value), HEAT.left + (c + 0.5) * cellWidth, height - HEAT.bottom + 15));
  });
  for (let r = 0; r < table.layers; r += 1) {
    const layer = table.layers - 1 - r;
    const row = svgElement("g", { role: "row" });
    grid.cells.push(Array.from({ length: columns }, (_, c) => heatCell(grid, row, r, c)));
    const said = plain(store.axes.layer?.values[layer] ?? layer);
    if (cellHeight >= 12 || layer % 2 === 0) {
      element.append(text(said, HEAT.left - 6, HEAT.top + (r + 0.5) * cellHeight + 4, { "text-anchor": "end" }));
    }
    element.append(row);
  }
  const frame = { fill: "none", "stroke-width": 2.5, rx: 2, visibility: "hidden" };
  grid.here = svgElement("rect", { ...frame, class: "wb-ht-here", stroke: "#d62728" });
  grid.over = svgElement("rect", { ...frame, class: "wb-ht-over", stroke: "#000" });
  element.append(grid.here, grid.over);
}

function heatCell(grid, row, r, c) {
  const { cellWidth, cellHeight } = grid;
  const [x, y] = [HEAT.left + c * cellWidth, HEAT.top + r * cellHeight];
  const group = svgElement("g", { role: "gridcell", tabindex: -1 });
  Object.assign(group.dataset, { r, c });
  const gap = cellWidth > 8 ? 1 : 0;
  const rect = svgElement("rect", { x, y, width: cellWidth - gap, height: cellHeight - gap });
  const label = svgElement("text", {
    x: x + (cellWidth - gap) / 2, y: y + cellHeight / 2 + 3.5, "text-anchor": "middle", "font-size": 11,
  });
  group.append(rect, label);
  row.append(group);
  return { group, rect, label, roomy: cellWidth >= 28 && cellHeight >= 14 };
}

function moveFrame(grid, frame, row, column) {
  const { cellWidth, cellHeight } = grid;
  const [x, y] = [HEAT.left + column * cellWidth, HEAT.top + row * cellHeight];
  const place = { x, y, width: cellWidth - 1, height: cellHeight - 1, visibility: "visible" };
  for (const [name, value] of Object.entries(place)) grid[frame].setAttribute(name, value);
}

function listenToGrid(grid, { show, leave, set, columns, rows }) {
  const { element } = grid;
  const place = (event) => {
    const { r, c } = event.target.closest?.("[role=gridcell]")?.dataset ?? {};
    return r === undefined ? null : [Number(r), Number(c)];
  };
  const at = (action) => (event) => { if (place(event)) action(...place(event)); };
  element.addEventListener("pointerover", at(show));
  element.addEventListener("pointerleave", leave);
  element.addEventListener("focusin", at((row, column) => { setTab(grid, row, column); show(row, column); }));
  element.addEventListener("focusout", leave);
  element.addEventListener("click", at(set));
  element.addEventListener("keydown", (event) => {
    const now = place(event);
    if (!now || event.ctrlKey || event.metaKey || event.altKey) return;
    const [row, column] = now;
    const moves = {
      ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], PageUp: [0, column], PageDown: [rows - 1, column],
      ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1], Home: [row, 0], End: [row, columns() - 1],
    };
    if (event.key === "Enter" || event.key === " ") set(row, column);
    else if (moves[event.key]) grid.cells[moves[event.key][0]]?.[moves[event.key][1]]?.group.focus();
    else return;
    event.preventDefault();
    event.stopPropagation(); // a notebook has uses of its own for these keys
  });
}

// Side by side with cells of equal width where there is room, else below each other.
function layOutHeat(both, grids, table) {
  const width = both.clientWidth || 600; // not yet in the page; a change of size follows
  const columns = grids.map(({ across }) => (across === "t" ? table.times : table.scales));
  const beside = width >= 700 && grids.length > 1;
  const fixed = HEAT.left + HEAT.right;
  const room = beside ? width - 20 - grids.length * fixed : width - fixed;
  const shared = beside ? columns.reduce((a, b) => a + b) : Math.max(...columns);
  const cell = Math.min(64, room / shared);
  const tall = Math.min(30, Math.max(10, 380 / table.layers));
  grids.forEach((grid, i) => grid.build(fixed + cell * columns[i], tall));
}

// The colour bar, with its numbers and the level of chance.
function createHeatScale(table) {
  const width = 300;
  const element = svgElement("svg", { class: "wb-ht-scale", role: "img", width, height: 58, viewBox: `0 0 ${width} 58` });
  const [left, right] = [HEAT.left, width - 20];
  const update = (state) => {
    const [least, most] = table.limits(state);
    const middle = table.centre(state) ?? (least + most) / 2;
    const place = (value) => left + ((right - left) * (value - least)) / (most - least);
    const steps = 64;
    const parts = Array.from({ length: steps }, (_, i) => {
      const x = left + ((right - left) * i) / steps;
      const colour = heatColour((i + 0.5) / steps, table.centre(state) !== undefined);
      return `<rect x="${x}" y="20" width="${(right - left) / steps + 0.5}" height="10" fill="rgb(${colour})"/>`;
    });
    const ink = (text) => text.replace("<text", '<text class="wb-ht-ink"');
    const side = (value) => (place(value) < left + 30 ? "start" : place(value) > right - 30 ? "end" : "middle");
    const label = (value, y, said, anchor = "middle") => ink(svgText(said, place(value), y, { anchor }));
    const ticks = [least, middle, most].map((value) => label(value, 44, heatNumber(value, [least, most])));
    const chance = table.chance(state);
    const mark = chance === undefined ? "" : `<path class="wb-ht-chance" d="M${place(chance)},17V33" stroke="#1c1e21"`
      + ` stroke-width="2"/>${label(chance, 12, `chance ${heatNumber(chance, [least, most])}`, side(chance))}`;
    element.innerHTML = parts.join("") + ticks.join("") + mark;
    element.setAttribute("aria-label", `Colours from ${heatNumber(least, [least, most])} to ${heatNumber(most, [least, most])}`
      + `${chance === undefined ? "" : `, chance ${heatNumber(chance, [least, most])}`}`);
  };
  return { element, update, width, height: 58 };
}

// Both maps and the colour bar on white. The colours of a dark page are laid over these by its style alone.
function heatPicture(grids, scale, table, state) {
  let x = 0;
  const inner = grids.map((grid) => {
    const copy = grid.element.cloneNode(true);
    copy.querySelectorAll("[visibility=hidden], .wb-ht-over").forEach((one) => one.remove());
    const placed = `<g transform="translate(${x},26)">${copy.innerHTML}</g>`;
    x += grid.width + 20;
    return placed;
  });
  const tall = 26 + Math.max(...grids.map(({ height }) => height));
  const title = [table.chosen("measure", state), table.chosen("version", state)].map(table.named).join(" · ");
  return svgDocument(Math.max(x, scale.width), tall + scale.height + 6, svgText(title, HEAT.left, 18, { size: 13, weight: 600 })
    + `${inner.join("")}<g transform="translate(0,${tall})">${scale.element.innerHTML}</g>`);
}

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
