// Heat maps of measures: layer by t at the chosen w, and layer by w at the chosen t. A click on a cell sets all three.

import { blockStart } from "../arrays.js";
import { heatColour, inkOn, UNMEASURED } from "../colours.js";
import { make, setText, svgElement } from "../dom.js";
import { heatNumber, plain } from "../numbers.js";
import { svgDocument, svgText } from "../saving.js";

// The arrays of the pane as cells {layer, t, k}: indices of layer, time and scale.
function createHeatTable(pane, arrays, store) {
  const [values, low, high] = ["values", "low", "high"].map((name) => arrays(name));
  const [, , layers, times, scales] = values.shape;
  const stops = pane.scales;
  const chosen = (option, state) => {
    if (option === "version" && pane.follows) {
      const [byTrue, byGiven] = pane.follows[store.index("source", state)];
      return state.labels === "given" ? byGiven : byTrue;
    }
    return pane[`${option}s`].includes(state[option]) ? state[option] : pane[`${option}s`][0];
  };
  const index = (option, state) => pane[`${option}s`].indexOf(chosen(option, state));
  const at = (state, { layer, t, k }) =>
    blockStart(values, [index("measure", state), index("version", state), layer, t, k]);
  const limits = pane.measures.map((name, measure) => heatLimits(pane, name, values, measure));
  const measured = (state) => measuredScales(values, at(state, { layer: 0, t: 0, k: 0 }));

  // The measured scale nearest to w.
  function scaleOf(state) {
    const w = store.value("w", state) ?? stops[0];
    return measured(state).reduce((best, k) => (Math.abs(stops[k] - w) < Math.abs(stops[best] - w) ? k : best));
  }

  const table = {
    layers,
    times,
    scales,
    stops,
    chosen,
    measured,
    scaleOf,
    named: (name) => pane.labels?.[name] ?? name,
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

// Scales at which a measure exists, for cells that begin at `from`; a measure without guidance has one.
function measuredScales({ data, shape }, from) {
  const [, , layers, times, scales] = shape;
  const measured = Array(scales).fill(false);
  for (let i = 0; i < layers * times * scales; i += 1) measured[i % scales] ||= Number.isFinite(data[from + i]);
  const chosen = measured.flatMap((one, k) => (one ? [k] : []));
  return chosen.length ? chosen : [...measured.keys()];
}

// Colour limits over all versions of a measure, so that these can be compared; chance is included.
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

// "at w = 2.5 (nearest to 2.4)", and for the other map "at t = 0.3 (w = 0 only)".
function heatCaption(table, store, across, state) {
  const { stops } = table;
  const [measured, w] = [table.measured(state), store.value("w", state)];
  if (across === "w") {
    const only = measured.length === 1 ? ` (w = ${plain(stops[measured[0]])} only)` : "";
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
    layer && `layer ${plain(layer.values[cell.layer])}`,
    t && `t = ${plain(t.values[cell.t])}`,
    w && `w = ${plain(table.stops[cell.k])}`,
  ]
    .filter(Boolean)
    .join(", ");
  const [value, name, limits] = [
    table.value(state, cell),
    table.named(table.chosen("measure", state)),
    table.limits(state),
  ];
  if (!Number.isFinite(value)) return `${where}: ${name} not measured`;
  const ends = table.interval(state, cell);
  const range = ends.map((end) => heatNumber(end, limits, 3)).join(" to ");
  const interval = ends.every(Number.isFinite) ? ` (95 % interval ${range})` : "";
  const chance = table.chance(state) === undefined ? "" : `, chance ${heatNumber(table.chance(state), limits)}`;
  return `${where}: ${name} ${heatNumber(value, limits, 3)}${interval}${chance}`;
}

// One map. Its cells form a grid for the keyboard: arrows move, Enter shows that layer, t and w.

function createHeatGrid(across, table, store, say) {
  // The cells take the focus; an SVG with a focus listener would be a tab stop itself.
  const element = svgElement("svg", { class: "wb-ht-map", role: "grid", tabindex: -1 });
  const columns = () => (across === "t" ? table.times : table.scales);
  const grid = { across, element, cells: [], caption: (state) => table.caption(across, state) };
  grid.cellAt = (state, row, column) => ({
    layer: table.layers - 1 - row,
    t: across === "t" ? column : store.index("t", state),
    k: across === "t" ? table.scaleOf(state) : column,
  });
  grid.build = (width, cellHeight) => {
    buildHeatGrid(grid, { table, store, columns: columns(), width, cellHeight });
    grid.tab = null;
  };
  grid.update = (state) => updateHeatGrid(grid, table, state);
  listenToGrid(grid, { ...gridActions(grid, table, store, say), columns, rows: table.layers });
  return grid;
}

// Events of a cell: show and read it, leave it, or set layer, t and w of the view to it.
function gridActions(grid, table, store, say) {
  return {
    show(row, column) {
      moveFrame(grid, "over", row, column);
      say(table.sentence(store.get(), grid.cellAt(store.get(), row, column)));
    },
    leave() {
      for (const rect of grid.over) rect.setAttribute("visibility", "hidden");
      say(table.sentence(store.get(), table.here(store.get())));
    },
    set(row, column) {
      const { layer, t, k } = grid.cellAt(store.get(), row, column);
      const next = { layer, t, w: table.stops[k] };
      store.set(Object.fromEntries(Object.entries(next).filter(([name]) => store.axes[name])));
    },
  };
}

function updateHeatGrid(grid, table, state) {
  const { across, element } = grid;
  const name = `${table.named(table.chosen("measure", state))}, layer by ${across}, ${grid.caption(state)}`;
  element.setAttribute("aria-label", `${name}. Arrows move, Enter chooses.`);
  grid.title.textContent = grid.caption(state);
  const { layer, t, k } = table.here(state);
  const [row, column] = [table.layers - 1 - layer, across === "t" ? t : k];
  grid.cells.forEach((line, r) =>
    line.forEach((cell, c) => {
      paintCell(cell, grid.cellAt(state, r, c), table, state);
      cell.group.setAttribute("aria-selected", r === row && c === column);
    }),
  );
  moveFrame(grid, "here", row, column);
  if (!element.contains(document.activeElement)) setTab(grid, row, column);
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
  setText(cell.label, text);
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
  grid.title = heatText("", HEAT.left, 15, { "text-anchor": "start", "font-size": 12, "font-weight": 600 });
  const middle = HEAT.top + (table.layers * cellHeight) / 2;
  element.replaceChildren(
    grid.title,
    heatText("layer", 0, 0, { transform: `translate(11,${middle}) rotate(-90)` }),
    heatText(store.axes[across]?.label ?? across, HEAT.left + (columns * cellWidth) / 2, height - 8),
    ...columnNumbers(grid, across === "t" ? (store.axes.t?.values ?? []) : table.stops, columns),
  );
  for (let r = 0; r < table.layers; r += 1) element.append(...gridRow(grid, { table, store, columns, r }));
  const frame = { fill: "none", "stroke-width": 2.5, rx: 2, visibility: "hidden" };
  // Black within white is seen on any colour.
  const lines = [
    ["#fff", 4.5],
    ["#000", 2],
  ];
  grid.here = lines.map(([stroke, thick]) =>
    svgElement("rect", { ...frame, class: "wb-ht-here", stroke, "stroke-width": thick }),
  );
  grid.over = [svgElement("rect", { ...frame, class: "wb-ht-over", stroke: "#000" })];
  element.append(...grid.here, ...grid.over);
}

function heatText(text, x, y, more = {}) {
  const usual = { x, y, fill: "#1c1e21", "font-size": 11, "text-anchor": "middle", class: "wb-ht-ink" };
  const made = svgElement("text", { ...usual, ...more });
  made.textContent = text;
  return made;
}

// As many column numbers as fit.
function columnNumbers({ cellWidth, height }, values, columns) {
  const every = Math.ceil((Math.max(...values.map((value) => plain(value).length)) * 6.5 + 8) / cellWidth);
  return values
    .slice(0, columns)
    .flatMap((value, c) =>
      c % every ? [] : [heatText(plain(value), HEAT.left + (c + 0.5) * cellWidth, height - HEAT.bottom + 15)],
    );
}

// One layer: its number, where there is room, and its cells.
function gridRow(grid, { table, store, columns, r }) {
  const { cellHeight } = grid;
  const layer = table.layers - 1 - r;
  const row = svgElement("g", { role: "row" });
  grid.cells.push(Array.from({ length: columns }, (_, c) => heatCell(grid, row, r, c)));
  if (cellHeight < 12 && layer % 2) return [row];
  const number = plain(store.axes.layer?.values[layer] ?? layer);
  const y = HEAT.top + (r + 0.5) * cellHeight + 4;
  return [heatText(number, HEAT.left - 6, y, { "text-anchor": "end" }), row];
}

function heatCell(grid, row, r, c) {
  const { cellWidth, cellHeight } = grid;
  const [x, y] = [HEAT.left + c * cellWidth, HEAT.top + r * cellHeight];
  const group = svgElement("g", { role: "gridcell", tabindex: -1 });
  Object.assign(group.dataset, { r, c });
  const gap = cellWidth > 8 ? 1 : 0;
  const rect = svgElement("rect", { x, y, width: cellWidth - gap, height: cellHeight - gap });
  const label = svgElement("text", {
    x: x + (cellWidth - gap) / 2,
    y: y + cellHeight / 2 + 3.5,
    "text-anchor": "middle",
    "font-size": 11,
  });
  group.append(rect, label);
  row.append(group);
  return { group, rect, label, roomy: cellWidth >= 28 && cellHeight >= 14 };
}

function moveFrame(grid, frame, row, column) {
  const { cellWidth, cellHeight } = grid;
  const [x, y] = [HEAT.left + column * cellWidth, HEAT.top + row * cellHeight];
  const box = { x, y, width: cellWidth - 1, height: cellHeight - 1, visibility: "visible" };
  for (const rect of grid[frame]) for (const [name, value] of Object.entries(box)) rect.setAttribute(name, value);
}

function listenToGrid(grid, { show, leave, set, columns, rows }) {
  const { element } = grid;
  const cellOf = (event) => {
    const { r, c } = event.target.closest?.("[role=gridcell]")?.dataset ?? {};
    return r === undefined ? null : [Number(r), Number(c)];
  };
  const at = (action) => (event) => {
    if (cellOf(event)) action(...cellOf(event));
  };
  element.addEventListener("pointerover", at(show));
  element.addEventListener("pointerleave", leave);
  element.addEventListener(
    "focusin",
    at((row, column) => {
      setTab(grid, row, column);
      show(row, column);
    }),
  );
  element.addEventListener("focusout", leave);
  element.addEventListener("click", at(set));
  element.addEventListener("keydown", (event) => {
    const cell = cellOf(event);
    if (!cell || event.ctrlKey || event.metaKey || event.altKey) return;
    const [row, column] = cell;
    const moves = {
      ArrowUp: [row - 1, column],
      ArrowDown: [row + 1, column],
      PageUp: [0, column],
      PageDown: [rows - 1, column],
      ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1],
      Home: [row, 0],
      End: [row, columns() - 1],
    };
    if (event.key === "Enter" || event.key === " ") set(row, column);
    else if (moves[event.key]) grid.cells[moves[event.key][0]]?.[moves[event.key][1]]?.group.focus();
    else return;
    event.preventDefault();
    event.stopPropagation(); // notebooks use these keys too
  });
}

// Side by side with cells of equal width if there is room, else stacked.
function layOutHeat(both, grids, table) {
  const width = both.clientWidth || 600; // not in the page yet; a resize follows
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
  const element = svgElement("svg", {
    class: "wb-ht-scale",
    role: "img",
    width,
    height: 58,
    viewBox: `0 0 ${width} 58`,
  });
  const [left, right] = [HEAT.left, width - 20];
  const update = (state) => {
    const [least, most] = table.limits(state);
    const middle = table.centre(state) ?? (least + most) / 2;
    const x = (value) => left + ((right - left) * (value - least)) / (most - least);
    const steps = 64;
    const parts = Array.from({ length: steps }, (_, i) => {
      const from = left + ((right - left) * i) / steps;
      const colour = heatColour((i + 0.5) / steps, table.centre(state) !== undefined);
      return `<rect x="${from}" y="20" width="${(right - left) / steps + 0.5}" height="10" fill="rgb(${colour})"/>`;
    });
    const ink = (text) => text.replace("<text", '<text class="wb-ht-ink"');
    const side = (value) => (x(value) < left + 30 ? "start" : x(value) > right - 30 ? "end" : "middle");
    const label = (value, y, text, anchor = "middle") => ink(svgText(text, x(value), y, { anchor }));
    const ticks = [least, middle, most].map((value) => label(value, 44, heatNumber(value, [least, most])));
    const chance = table.chance(state);
    const marker =
      chance === undefined
        ? ""
        : `<path class="wb-ht-chance" d="M${x(chance)},17V33" stroke="#1c1e21"` +
          ` stroke-width="2"/>${label(chance, 12, `chance ${heatNumber(chance, [least, most])}`, side(chance))}`;
    element.innerHTML = parts.join("") + ticks.join("") + marker;
    element.setAttribute(
      "aria-label",
      `Colours from ${heatNumber(least, [least, most])} to ${heatNumber(most, [least, most])}` +
        `${chance === undefined ? "" : `, chance ${heatNumber(chance, [least, most])}`}`,
    );
  };
  return { element, update, width, height: 58 };
}

// Both maps and the colour bar on white; a dark page restyles them with CSS only.

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
  return svgDocument(
    Math.max(x, scale.width),
    tall + scale.height + 6,
    svgText(title, HEAT.left, 18, { size: 13, weight: 600 }) +
      `${inner.join("")}<g transform="translate(0,${tall})">${scale.element.innerHTML}</g>`,
  );
}

export default function heatPane(root, pane, arrays, store, ui) {
  const table = createHeatTable(pane, arrays, store);
  const bar = make("div", { class: "wb-bar" });
  for (const option of ["measure", ...(pane.follows ? [] : ["version"])]) {
    const values = pane[`${option}s`];
    const texts = values.map((name) => table.named(name));
    const get = (state) => table.chosen(option, state);
    if (values.length > 1) bar.append(ui.select({ option, values, texts, get }));
  }
  const read = make("p", { class: "wb-ht-read" });
  const say = (text) => {
    read.textContent = text;
  };
  const across = ["t", ...(table.stops.length > 1 ? ["w"] : [])];
  const grids = across.map((name) => createHeatGrid(name, table, store, say));
  const both = make("div", { class: "wb-ht-both" }, ...grids.map(({ element }) => element));
  const scale = createHeatScale(table);
  root.append(bar, both, scale.element, read);
  return {
    update(state, changed) {
      if (changed.has("size")) layOutHeat(both, grids, table);
      grids.forEach((grid) => grid.update(state));
      scale.update(state);
      if (!both.matches(":hover") && !both.contains(document.activeElement))
        say(table.sentence(state, table.here(state)));
    },
    picture: () => ({ svg: heatPicture(grids, scale, table, store.get()) }),
  };
}
