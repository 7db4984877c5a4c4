// One map. Its cells form a grid for the keyboard: arrows move, Enter shows that layer, t and w.
function createHeatGrid(across, table, store, say) {
  // An SVG that hears of the focus would be a stop of the Tab key itself; the cells are.
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

// What happens at a cell: it is shown and read, left, or its layer, t and w become those of the view.
function gridActions(grid, table, store, say) {
  return {
    show(row, column) {
      moveFrame(grid, "over", row, column);
      say(table.sentence(store.get(), grid.cellAt(store.get(), row, column)));
    },
    leave() {
      grid.over.setAttribute("visibility", "hidden");
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
  grid.cells.forEach((line, r) => line.forEach((cell, c) => {
    paintCell(cell, grid.cellAt(state, r, c), table, state);
    cell.group.setAttribute("aria-selected", r === row && c === column);
  }));
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
    heatText(across, HEAT.left + (columns * cellWidth) / 2, height - 8, { "font-style": "italic" }),
    ...columnNumbers(grid, across === "t" ? store.axes.t?.values ?? [] : table.stops, columns),
  );
  for (let r = 0; r < table.layers; r += 1) element.append(...gridRow(grid, { table, store, columns, r }));
  const frame = { fill: "none", "stroke-width": 2.5, rx: 2, visibility: "hidden" };
  grid.here = svgElement("rect", { ...frame, class: "wb-ht-here", stroke: "#d62728" });
  grid.over = svgElement("rect", { ...frame, class: "wb-ht-over", stroke: "#000" });
  element.append(grid.here, grid.over);
}

function heatText(said, x, y, more = {}) {
  const usual = { x, y, fill: "#1c1e21", "font-size": 11, "text-anchor": "middle", class: "wb-ht-ink" };
  const made = svgElement("text", { ...usual, ...more });
  made.textContent = said;
  return made;
}

// As many of the numbers below the columns as there is room for.
function columnNumbers({ cellWidth, height }, values, columns) {
  const every = Math.ceil((Math.max(...values.map((value) => plain(value).length)) * 6.5 + 8) / cellWidth);
  return values.slice(0, columns).flatMap((value, c) => (c % every
    ? [] : [heatText(plain(value), HEAT.left + (c + 0.5) * cellWidth, height - HEAT.bottom + 15)]));
}

// One layer: its number, where there is room, and its cells.
function gridRow(grid, { table, store, columns, r }) {
  const { cellHeight } = grid;
  const layer = table.layers - 1 - r;
  const row = svgElement("g", { role: "row" });
  grid.cells.push(Array.from({ length: columns }, (_, c) => heatCell(grid, row, r, c)));
  if (cellHeight < 12 && layer % 2) return [row];
  const said = plain(store.axes.layer?.values[layer] ?? layer);
  const y = HEAT.top + (r + 0.5) * cellHeight + 4;
  return [heatText(said, HEAT.left - 6, y, { "text-anchor": "end" }), row];
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
