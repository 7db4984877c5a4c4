// What a reader does with the plot, by pointer, wheel and keyboard: point, choose, zoom.
// The point nearest to a place within `reach` pixels, or -1.
function nearestRow(view, x, y, reach = 14) {
  let best = -1;
  let least = reach * reach;
  for (let i = 0; i < view.points.count; i += 1) {
    const distance = (view.x(i) - x) ** 2 + (view.y(i) - y) ** 2;
    if (distance < least) [best, least] = [i, distance];
  }
  return best;
}

// Rows whose points lie in a polygon of pixels (even-odd rule).
function rowsInside(view, polygon) {
  const rows = [];
  const [xs, ys] = [polygon.map(([x]) => x), polygon.map(([, y]) => y)];
  const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  for (let i = 0; i < view.points.count; i += 1) {
    const [x, y] = [view.x(i), view.y(i)];
    if (x < left || x > right || y < top || y > bottom) continue;
    let within = false;
    for (let a = 0, b = xs.length - 1; a < xs.length; b = a, a += 1) {
      if (ys[a] > y !== ys[b] > y && x < ((xs[b] - xs[a]) * (y - ys[a])) / (ys[b] - ys[a]) + xs[a]) within = !within;
    }
    if (within) rows.push(i);
  }
  return rows;
}

// A selection changed by rows: replaced, or with Shift joined, or with Alt freed of them.
function chooseRows(view, rows, { shiftKey = false, altKey = false } = {}) {
  const next = shiftKey || altKey ? Uint8Array.from(view.selected) : new Uint8Array(view.points.count);
  for (const row of rows) next[row] = altKey ? 0 : 1;
  const selection = [];
  next.forEach((one, row) => { if (one) selection.push(row); });
  view.store.set({ selection });
  view.ui.status(`${counted(selection.length)} of ${counted(view.points.count)} images selected.`);
}

// Rings about the point under the pointer and that of the keyboard.
function markRows(view) {
  view.overlay.querySelectorAll("circle").forEach((ring) => ring.remove());
  for (const row of new Set([view.cursor, view.hovered])) {
    if (row >= 0) view.overlay.append(svgElement("circle", { cx: view.x(row), cy: view.y(row), r: view.radius + 5 }));
  }
}

function showPoint(view, row) {
  if (row < 0) view.tip.hide();
  else view.tip.show(row, view.x(row), view.y(row), view.width, view.height);
}

function hover(view, row) {
  if (row === view.hovered) return;
  view.hovered = row;
  view.canvas.style.cursor = row < 0 ? "crosshair" : "pointer";
  markRows(view);
  showPoint(view, row);
}

function zoomTo(view, zoom) {
  view.zoom = zoom;
  view.whole.hidden = zoom.k === 1;
}

function showWhole(view) {
  zoomTo(view, { k: 1, x: 0, y: 0 });
  view.repaint();
}

// Zooms so that what stands at (x, y) stays there.
function zoomBy(view, factor, x = view.width / 2, y = view.height / 2) {
  const { zoom } = view;
  const k = Math.min(40, Math.max(1, zoom.k * factor));
  const px = (x - view.width / 2) / (view.height * 0.47);
  const py = -(y - view.height / 2) / (view.height * 0.47);
  const kept = (from, at) => (k === 1 ? 0 : at - ((at - from) * k) / zoom.k);
  zoomTo(view, { k, x: kept(zoom.x, px), y: kept(zoom.y, py) });
  view.repaint();
}

// The line that a reader draws around points; null between two of them.
function createLasso(view) {
  const line = svgElement("polygon");
  const lasso = {
    places: null,
    start(place) { lasso.places = [place]; },
    stop() {
      const { places } = lasso;
      lasso.places = null;
      line.remove();
      return places;
    },
    add([x, y]) {
      const { places } = lasso;
      const [lastX, lastY] = places[places.length - 1];
      if (Math.hypot(x - lastX, y - lastY) < 3) return;
      places.push([x, y]);
      if (places.length === 2) view.overlay.append(line);
      line.setAttribute("points", places.map((place) => place.map((z) => z.toFixed(1)).join(",")).join(" "));
    },
  };
  view.stopLasso = () => lasso.stop() !== null;
  return lasso;
}

function listenToPointer(view) {
  const { element, canvas } = view;
  const lasso = createLasso(view);
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    event.preventDefault();
    element.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    lasso.start(at(event));
    hover(view, -1);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (lasso.places) lasso.add(at(event));
    else hover(view, nearestRow(view, ...at(event)));
  });
  canvas.addEventListener("pointerup", (event) => {
    const polygon = lasso.stop();
    if (!polygon) return;
    if (polygon.length > 3) {
      chooseRows(view, rowsInside(view, polygon), event);
      return;
    }
    const row = nearestRow(view, ...polygon[0]);
    if (row < 0) return;
    chooseRows(view, [row], event);
    hover(view, row);
  });
  canvas.addEventListener("pointercancel", lasso.stop);
  // A finger leaves with every tap; what it showed stays until the next.
  canvas.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") hover(view, -1); });
}

// Without the focus or Ctrl the wheel goes on scrolling the page.
function listenToWheel(view) {
  const { element, canvas } = view;
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !element.matches(":focus")) return;
    event.preventDefault();
    hover(view, -1);
    const box = canvas.getBoundingClientRect();
    const factor = Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0015));
    zoomBy(view, factor, event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });
  canvas.addEventListener("dblclick", () => showWhole(view));
}

// From a point to the next one in a direction: near, and rather straight on than aside.
function nextRow(view, row, [dx, dy]) {
  let best = row;
  let least = Infinity;
  for (let i = 0; i < view.points.count; i += 1) {
    const [x, y] = [view.x(i) - view.x(row), view.y(i) - view.y(row)];
    const [ahead, aside] = [x * dx + y * dy, Math.abs(x * dy) + Math.abs(y * dx)];
    if (i === row || ahead <= 0 || aside > 2 * ahead) continue;
    if (ahead + 2 * aside < least) [best, least] = [i, ahead + 2 * aside];
  }
  return best;
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function listenToKeys(view) {
  const { element, points, spoken } = view;
  const go = (row) => {
    view.cursor = row;
    markRows(view);
    showPoint(view, row);
    if (row < 0) return;
    spoken.textContent = describePoint(points, view.store.get(), row).join(", ") + (view.selected[row] ? ", selected" : "");
  };
  const first = () => (view.cursor < 0 ? nearestRow(view, view.width / 2, view.height / 2, Infinity) : null);
  const keys = {
    Enter: () => {
      if (view.cursor < 0) return;
      const remove = Boolean(view.selected[view.cursor]);
      chooseRows(view, [view.cursor], { shiftKey: !remove, altKey: remove });
      spoken.textContent = remove ? "no longer selected" : "selected";
    },
    Escape: () => { if (!view.stopLasso()) chooseRows(view, []); },
    Home: () => go(0),
    End: () => go(points.count - 1),
    "+": () => zoomBy(view, 1.3),
    "=": () => zoomBy(view, 1.3),
    "-": () => zoomBy(view, 1 / 1.3),
    0: () => showWhole(view),
  };
  keys[" "] = keys.Enter;
  element.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.target !== element) return;
    const way = ARROWS[event.key];
    const action = way ? () => go(first() ?? nextRow(view, view.cursor, way)) : keys[event.key];
    if (!action) return;
    event.preventDefault();
    event.stopPropagation(); // a notebook has uses of its own for these keys
    action();
  });
  element.addEventListener("blur", () => go(-1));
}
