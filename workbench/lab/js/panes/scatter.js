// Images as points in the plane, by class: PCA (linear in w), t-SNE or UMAP, with a lasso and numbers by class.

import { blockStart } from "../arrays.js";
import { make, setText, svgElement } from "../dom.js";
import { createStamps, markerPath, markerSvg, putStamp, radiusFor } from "../markers.js";
import { counted, plain, shareText } from "../numbers.js";
import { svgDocument, svgText } from "../saving.js";

// Data of a scatter plot: classes, positions, kNN correctness, and their texts.

const METHOD_NAMES = { pca: "PCA", tsne: "t-SNE", umap: "UMAP" };

// The stop of the w axis that is nearest to w; arrays without such an axis have one stop.
function nearestStop(store, state, count) {
  const stops = store.axes.w?.stops ?? [];
  const w = store.value("w", state);
  let best = 0;
  for (let i = 1; i < Math.min(count, stops.length); i += 1) {
    if (Math.abs(stops[i] - w) < Math.abs(stops[best] - w)) best = i;
  }
  return { index: best, value: stops[best], exact: stops[best] === undefined || Math.abs(stops[best] - w) < 1e-6 };
}

function createPoints(pane, arrays, store) {
  const labels = { true: arrays("labels").data, given: arrays.has("given") ? arrays("given").data : null };
  const count = labels.true.length;
  const methods = ["pca", "tsne", "umap"].filter((name) => arrays.has(name === "pca" ? "u" : name));
  const where = (state) => ["source", "step", "t", "layer"].map((name) => store.index(name, state));
  const method = (state) => (methods.includes(state.method) ? state.method : methods[0]);
  const by = (state) => (labels.given && state.labels === "given" ? "given" : "true");
  const stops = arrays("correct").shape[4];
  return {
    count,
    methods,
    method,
    by,
    labels,
    classes: pane.names.map(String),
    sprite: arrays("sprite"),
    order: shuffled(count),
    // Positions of the current frame, in units of the embedding.
    positions(state, out) {
      if (method(state) === "pca") return principalPositions(arrays, where(state), store.value("w", state) ?? 0, out);
      const stop = nearestStop(store, state, arrays(method(state)).shape[4]).index;
      return framePositions(arrays, method(state), [...where(state), stop], out);
    },
    // kNN correctness, by the chosen labels (true or given).
    correct(state) {
      const correct = arrays(by(state) === "given" ? "correct_given" : "correct");
      const from = blockStart(correct, [...where(state), nearestStop(store, state, stops).index]);
      return correct.data.subarray(from, from + count);
    },
    title: (state) => scatterTitle(store, state, method(state), stops),
    note: (state) => scatterNote(pane.neighbours, method(state), by(state)),
  };
}

// Coordinates of f_g are u + w d (Eq. 3).
function principalPositions(arrays, at, w, out) {
  const [u, d] = [arrays("u"), arrays("d")];
  const [from, scale] = [blockStart(u, at), blockStart(arrays("u_scale"), at)];
  const a = arrays("u_scale").data[scale];
  const b = arrays("d_scale").data[scale] * w;
  for (let i = 0; i < out.length; i += 1) out[i] = a * u.data[from + i] + b * d.data[from + i];
  return out;
}

function framePositions(arrays, method, at, out) {
  const [frames, scale] = [arrays(method), arrays(`${method}_scale`)];
  const from = blockStart(frames, at);
  const a = scale.data[blockStart(scale, at.slice(0, scale.shape.length))];
  for (let i = 0; i < out.length; i += 1) out[i] = a * frames.data[from + i];
  return out;
}

// "PCA · layer 8 · t = 0.3 · w = 2.4 · kNN at w = 2.5, the nearest stop"
function scatterTitle(store, state, method, stops) {
  const stop = nearestStop(store, state, stops);
  const parts = ["source", "step", "layer", "t", "w"]
    .filter((name) => store.axes[name])
    .map((name) => namedValue(store, name, state));
  if (!stop.exact) parts.push(`${method === "pca" ? "kNN" : "shown"} at w = ${plain(stop.value)}, the nearest stop`);
  return [METHOD_NAMES[method], ...parts].join(" · ");
}

function scatterNote(neighbours, method, by) {
  const own = by === "given" ? "their given label" : "their true class";
  const knn =
    `kNN accuracy: share of images whose ${neighbours ? `${neighbours} ` : ""}nearest other images (cosine, in the ` +
    `original space) vote for ${own}.`;
  if (method === "pca") return `The scale bar is in units of the features; the plot always fits. ${knn}`;
  return `Distances between clusters, and their sizes, mean nothing in ${METHOD_NAMES[method]}. ${knn}`;
}

// "layer 8", "t = 0.3"; a source is shown by its name.
function namedValue(store, name, state) {
  const text = store.text(name, state[name]);
  if (name === "source") return text;
  return name.length === 1 ? `${name} = ${text}` : `${store.axes[name].label} ${text}`;
}

// Rows in a fixed order that mixes the classes, so that no class hides the others.
function shuffled(count) {
  const order = Uint32Array.from({ length: count }, (_, i) => i);
  let seed = 1;
  for (let i = count - 1; i > 0; i -= 1) {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    const j = Math.floor((seed / 4294967296) * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

function describePlot(points, state, selected) {
  const chosen = selected.reduce((sum, one) => sum + one, 0);
  return (
    `${points.title(state)}: ${points.count} images of ${points.classes.length} classes, ` +
    `${chosen ? `${chosen} selected` : "none selected"}`
  );
}

const numbered = (points, row) => `image ${counted(row + 1)} of ${counted(points.count)}`;

// Description of a point: ["coat, given label bag", "image 18 of 600", "kNN predicts its class"].
function describePoint(points, state, row) {
  const { labels, classes } = points;
  const given = labels.given ? labels.given[row] : labels.true[row];
  const name = classes[labels.true[row]] + (given === labels.true[row] ? "" : `, given label ${classes[given]}`);
  const predicted = points.correct(state)[row] ? "its class" : "another class";
  return [name, numbered(points, row), `kNN predicts ${predicted}`];
}

// The plot: positions of the points on the canvas, painting and animation.

const MORPH = 300; // milliseconds from one frame of points to another

// A canvas for the points, with an overlay for the lasso and the hovered point.
function createPlot(points, store, ui) {
  const view = createPlotView(points, store, ui);
  const painter = createPainter(view);
  const glide = createGlide(view);
  view.repaint = () => {
    painter();
    markRows(view);
  };
  zoomTo(view, { k: 1, x: 0, y: 0 });
  listenToPointer(view);
  listenToWheel(view);
  listenToKeys(view);
  return {
    element: view.element,
    view,
    choose: (rows) => chooseRows(view, rows),
    point(row) {
      view.hovered = row;
      markRows(view);
    },
    settle: () => glide(false),
    update(state, changed) {
      if (changed.has("selection")) {
        view.selected.fill(0);
        for (const row of state.selection ?? []) view.selected[row] = 1;
      }
      const fresh = changed.has("size") && resizePlot(view);
      if (!view.width) return;
      const moved = ["source", "step", "t", "layer", "method"].some((key) => changed.has(key));
      if (fresh || moved || changed.has("w")) {
        view.unit = fitPositions(points.positions(state, view.target), view.width / view.height);
        glide(view.placed && !fresh && (moved || points.method(state) !== "pca"));
      } else if (["selection", "labels", "theme"].some((key) => changed.has(key))) {
        view.repaint();
      }
      view.canvas.setAttribute("aria-label", describePlot(points, state, view.selected));
    },
  };
}

// Elements of the plot, current and target positions, the selection, and the pixels of a point.
function createPlotView(points, store, ui) {
  const { count } = points;
  const [element, canvas, overlay, spoken] = plotElements();
  const tip = createTip(element, points, store);
  const undo = "Undo the zoom: 0, or a double click";
  const whole = ui.button({ label: "Whole plot", title: undo, onclick: () => showWhole(view) });
  whole.classList.add("wb-sc-whole");
  element.append(whole);
  const view = {
    points,
    store,
    ui,
    element,
    canvas,
    overlay,
    spoken,
    tip,
    width: 0,
    height: 0,
    unit: 0,
    shown: new Float32Array(2 * count),
    target: new Float32Array(2 * count),
    selected: new Uint8Array(count),
    zoom: null,
    whole,
    cursor: -1,
    hovered: -1,
    placed: false,
    radius: radiusFor(count),
    x: (i) => view.width / 2 + (view.shown[2 * i] * view.zoom.k + view.zoom.x) * view.height * 0.47,
    y: (i) => view.height / 2 - (view.shown[2 * i + 1] * view.zoom.k + view.zoom.y) * view.height * 0.47,
  };
  return view;
}

function plotElements() {
  const canvas = make("canvas", { role: "img" });
  const overlay = svgElement("svg", { class: "wb-sc-over", "aria-hidden": "true" });
  const spoken = make("div", { class: "wb-sc-spoken", "aria-live": "polite" });
  const help = make(
    "div",
    { class: "wb-sc-spoken", id: `wb-sc-${Math.random().toString(36).slice(2)}` },
    "Arrow keys go from point to point, Enter selects or deselects it, Escape clears the selection," +
      " plus and minus zoom, 0 shows the whole plot. With a pointer draw around points; Shift adds, Alt removes.",
  );
  const element = make(
    "div",
    {
      class: "wb-sc-plot",
      tabindex: 0,
      role: "application",
      "aria-label": "Points",
      "aria-describedby": help.id,
    },
    canvas,
    overlay,
    spoken,
    help,
  );
  return [element, canvas, overlay, spoken];
}

// Scales positions into the plot: y in -1..1, x in the same unit. Returns the length of a unit of the embedding.
export function fitPositions(positions, aspect) {
  const low = [Infinity, Infinity];
  const high = [-Infinity, -Infinity];
  for (let i = 0; i < positions.length; i += 1) {
    if (positions[i] < low[i & 1]) low[i & 1] = positions[i];
    if (positions[i] > high[i & 1]) high[i & 1] = positions[i];
  }
  const unit = 1 / (Math.max((high[0] - low[0]) / 2 / aspect, (high[1] - low[1]) / 2) || 1);
  const middle = [(low[0] + high[0]) / 2, (low[1] + high[1]) / 2];
  for (let i = 0; i < positions.length; i += 1) positions[i] = (positions[i] - middle[i & 1]) * unit;
  return unit;
}

// Fits the canvas to the available width; true if it changed.
function resizePlot(view) {
  const width = Math.max(0, Math.floor(view.element.getBoundingClientRect().width - 2)); // within the border
  const height = Math.round(Math.min(560, Math.max(280, width * 0.8)));
  if (!width || (width === view.width && height === view.height)) return false;
  const ratio = window.devicePixelRatio || 1;
  Object.assign(view, { width, height, ratio });
  Object.assign(view.canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
  Object.assign(view.canvas.style, { width: `${width}px`, height: `${height}px` });
  view.overlay.setAttribute("width", width);
  view.overlay.setAttribute("height", height);
  return true;
}

// Draws into a buffer with a margin of one marker, so that no marker has to be clipped.
function createPainter(view) {
  const { ui, canvas } = view;
  const context = canvas.getContext("2d");
  let paper;
  let made = "";
  return () => {
    const key = [ui.theme(), view.ratio, canvas.width, canvas.height].join(" ");
    if (key !== made) paper = preparePaper(view);
    made = key;
    stampPoints(view, paper);
    const {
      image,
      stamps: { size },
    } = paper;
    context.putImageData(image, -size, -size, size, size, canvas.width, canvas.height);
    drawScaleBar(view, context);
  };
}

// The buffer for a size and a theme: its pixels, the markers as stamps, and the background colour.
function preparePaper({ points, ui, canvas, element, radius, ratio }) {
  const margin = createStamps(ui, 1, radius, ratio, 0).size;
  const stride = canvas.width + 2 * margin;
  const stamps = createStamps(ui, points.classes.length, radius, ratio, stride);
  const image = new ImageData(stride, canvas.height + 2 * margin);
  const [red, green, blue] = getComputedStyle(element).backgroundColor.match(/\d+/g).map(Number);
  const ground = (0xff000000 | (blue << 16) | (green << 8) | red) >>> 0;
  return { stamps, image, pixels: new Uint32Array(image.data.buffer), ground };
}

// Selected points are drawn over the others.
function stampPoints(
  { points, store, canvas, ratio, shown, zoom, height, selected },
  { stamps, image, pixels, ground },
) {
  const labels = points.labels[points.by(store.get())];
  const { size, of } = stamps;
  const scale = height * 0.47 * ratio;
  const k = zoom.k * scale;
  const [x0, y0] = [canvas.width / 2 + zoom.x * scale + size / 2, canvas.height / 2 - zoom.y * scale + size / 2];
  const any = selected.includes(1);
  pixels.fill(ground);
  for (const pass of any ? [0, 1] : [0]) {
    for (const i of points.order) {
      if (selected[i] !== pass) continue;
      const [x, y] = [Math.round(x0 + shown[2 * i] * k), Math.round(y0 - shown[2 * i + 1] * k)];
      if (x < 0 || y < 0 || x > canvas.width + size || y > canvas.height + size) continue;
      putStamp(pixels, y * image.width + x, of(labels[i], any ? 1 + pass : 0));
    }
  }
}

// PCA has a scale bar, so that a spread that grows with w is visible although the plot always fits.
function drawScaleBar(view, context) {
  const bar = scaleBar(view);
  if (!bar) return;
  context.save();
  context.scale(view.ratio, view.ratio);
  context.fillStyle = context.strokeStyle = getComputedStyle(view.element).color;
  context.font = "11px sans-serif";
  context.globalAlpha = 0.75;
  context.fillRect(10, view.height - 11, bar.length, 1.5);
  context.fillText(bar.text, 10, view.height - 17);
  context.restore();
}

function scaleBar(view) {
  if (view.points.method(view.store.get()) !== "pca") return null;
  const pixels = view.unit * view.zoom.k * view.height * 0.47;
  const most = 90 / pixels;
  const power = 10 ** Math.floor(Math.log10(most));
  const units = power * [5, 2, 1].find((step) => step * power <= most);
  return { length: units * pixels, text: plain(units) };
}

// Moves the points to their targets, animated if `slowly` and the user accepts motion.
function createGlide(view) {
  const { shown, target } = view;
  const from = new Float32Array(shown.length);
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  let running = 0;
  return (slowly) => {
    cancelAnimationFrame(running);
    running = 0;
    view.placed = true;
    if (!slowly || still.matches) {
      shown.set(target);
      view.repaint();
      return;
    }
    from.set(shown);
    const start = performance.now();
    const frame = (now) => {
      const part = Math.min(1, Math.max(0, (now - start) / MORPH));
      const eased = part * part * (3 - 2 * part);
      for (let i = 0; i < shown.length; i += 1) shown[i] = from[i] + (target[i] - from[i]) * eased;
      running = part < 1 && view.element.isConnected ? requestAnimationFrame(frame) : 0;
      view.repaint();
    };
    running = requestAnimationFrame(frame);
  };
}

// Interaction by pointer, wheel and keyboard: hover, select, zoom.

// The nearest point within `reach` pixels, or -1.
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
export function rowsInside(view, polygon) {
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

// Changes the selection by rows: replace, add with Shift, remove with Alt.
function chooseRows(view, rows, { shiftKey = false, altKey = false } = {}) {
  const next = shiftKey || altKey ? Uint8Array.from(view.selected) : new Uint8Array(view.points.count);
  for (const row of rows) next[row] = altKey ? 0 : 1;
  const selection = [];
  next.forEach((one, row) => {
    if (one) selection.push(row);
  });
  view.store.set({ selection });
  view.ui.status(`${counted(selection.length)} of ${counted(view.points.count)} images selected.`);
}

// Rings around the hovered point and the keyboard's point.
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

// Zooms about (x, y), whose point stays where it is.
function zoomBy(view, factor, x = view.width / 2, y = view.height / 2) {
  const { zoom } = view;
  const k = Math.min(40, Math.max(1, zoom.k * factor));
  const px = (x - view.width / 2) / (view.height * 0.47);
  const py = -(y - view.height / 2) / (view.height * 0.47);
  const shifted = (from, at) => (k === 1 ? 0 : at - ((at - from) * k) / zoom.k);
  zoomTo(view, { k, x: shifted(zoom.x, px), y: shifted(zoom.y, py) });
  view.repaint();
}

// The lasso while it is drawn; null otherwise.
function createLasso(view) {
  const line = svgElement("polygon");
  const lasso = {
    vertices: null,
    start(vertex) {
      lasso.vertices = [vertex];
    },
    stop() {
      const { vertices } = lasso;
      lasso.vertices = null;
      line.remove();
      return vertices;
    },
    add([x, y]) {
      const { vertices } = lasso;
      const [lastX, lastY] = vertices[vertices.length - 1];
      if (Math.hypot(x - lastX, y - lastY) < 3) return;
      vertices.push([x, y]);
      if (vertices.length === 2) view.overlay.append(line);
      line.setAttribute("points", vertices.map((vertex) => vertex.map((z) => z.toFixed(1)).join(",")).join(" "));
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
    if (lasso.vertices) lasso.add(at(event));
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
  // A touch ends after every tap; its tip stays until the next tap.
  canvas.addEventListener("pointerleave", (event) => {
    if (event.pointerType !== "touch") hover(view, -1);
  });
}

// Without focus or Ctrl, the wheel scrolls the page.
function listenToWheel(view) {
  const { element, canvas } = view;
  canvas.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey && !element.matches(":focus")) return;
      event.preventDefault();
      hover(view, -1);
      const box = canvas.getBoundingClientRect();
      const factor = Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0015));
      zoomBy(view, factor, event.clientX - box.left, event.clientY - box.top);
    },
    { passive: false },
  );
  canvas.addEventListener("dblclick", () => showWhole(view));
}

// The next point in a direction: near, and preferably straight ahead.
export function nextRow(view, row, [dx, dy]) {
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
    spoken.textContent =
      describePoint(points, view.store.get(), row).join(", ") + (view.selected[row] ? ", selected" : "");
  };
  const first = () => (view.cursor < 0 ? nearestRow(view, view.width / 2, view.height / 2, Infinity) : null);
  const keys = {
    Enter: () => {
      if (view.cursor < 0) return;
      const remove = Boolean(view.selected[view.cursor]);
      chooseRows(view, [view.cursor], { shiftKey: !remove, altKey: remove });
      spoken.textContent = remove ? "no longer selected" : "selected";
    },
    Escape: () => {
      if (!view.stopLasso()) chooseRows(view, []);
    },
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
    event.stopPropagation(); // notebooks use these keys too
    action();
  });
  element.addEventListener("blur", () => go(-1));
}

// The tip of a point: image, class and row.

function createTip(parent, points, store) {
  const { sprite } = points;
  const [, h, w, c] = sprite.shape;
  const image = make("canvas", { width: w, height: h, class: "wb-sc-thumb" });
  const text = make("div");
  const element = make("div", { class: "wb-sc-tip", hidden: true, "aria-hidden": "true" }, image, text);
  parent.append(element);
  const context = image.getContext("2d");
  return {
    hide: () => {
      element.hidden = true;
    },
    show(row, x, y, width, height) {
      context.putImageData(new ImageData(spritePixels(sprite.data, row, h, w, c), w, h), 0, 0);
      const [name, ...rest] = describePoint(points, store.get(), row);
      text.replaceChildren(make("b", {}, name), ...rest.map((line) => make("div", {}, line)));
      element.hidden = false;
      const [tall, wide] = [element.offsetHeight, element.offsetWidth];
      element.style.left = `${x + 14 + wide > width ? Math.max(0, x - 14 - wide) : x + 14}px`;
      element.style.top = `${Math.max(0, Math.min(height - tall, y - tall / 2))}px`;
    },
  };
}

function spritePixels(data, row, h, w, c) {
  const pixels = new Uint8ClampedArray(h * w * 4);
  for (let i = 0; i < h * w; i += 1) {
    const from = (row * h * w + i) * c;
    for (let k = 0; k < 3; k += 1) pixels[4 * i + k] = data[from + (c >= 3 ? k : 0)];
    pixels[4 * i + 3] = 255;
  }
  return pixels;
}

// Legend and table: number of selected images of each class, and their kNN accuracy in the original space.

function createClassTable(points, store, ui) {
  const [body, foot] = [make("tbody"), make("tfoot")];
  const titles = ["Class", "Selected", "kNN, selected", "kNN, all"].map((text) => make("th", { scope: "col" }, text));
  const head = make("thead", {}, make("tr", {}, ...titles));
  const caption = make("caption", { class: "wb-sc-spoken" }, "Classes: selected images and kNN accuracy");
  const element = make("div", { class: "wb-sc-table" }, make("table", {}, caption, head, body, foot));
  const rows = new Map();
  let latest = { byClass: [], total: {} };
  const rowOf = (label) => {
    if (!rows.has(label)) {
      const choose = () => toggleClass(points, store, ui, label);
      rows.set(label, classRow(points.classes[label], markerSvg(ui, label), choose));
    }
    return rows.get(label);
  };
  const total = classRow("All classes");
  foot.append(total.line);
  return {
    element,
    numbers: () => latest,
    update(state) {
      latest = classNumbers(points, state);
      for (const one of latest.byClass) fillRow(rowOf(one.label), one);
      const shown = latest.byClass.map(({ label }) => rowOf(label).line);
      if (shown.length !== body.children.length || shown.some((line, i) => line !== body.children[i])) {
        body.replaceChildren(...shown);
      }
      fillRow(total, latest.total);
    },
  };
}

// Selects the images of a class, or deselects them where all are selected.
function toggleClass(points, store, ui, label) {
  const state = store.get();
  const chosen = new Set(state.selection ?? []);
  const own = [];
  points.labels[points.by(state)].forEach((one, i) => {
    if (one === label) own.push(i);
  });
  const remove = own.every((i) => chosen.has(i));
  own.forEach((i) => (remove ? chosen.delete(i) : chosen.add(i)));
  store.set({ selection: [...chosen].sort((a, b) => a - b) });
  ui.status(`${counted(chosen.size)} of ${counted(points.count)} images selected.`);
}

// A row of the table; a button if it has a marker and an action.
function classRow(name, marker, onclick) {
  const named = onclick
    ? make("button", { type: "button", onclick, "aria-pressed": "false" }, marker, make("span", {}, name))
    : make("b", {}, name);
  const cells = [1, 2, 3].map(() => make("td"));
  return { line: make("tr", {}, make("th", { scope: "row" }, named), ...cells), cells, named };
}

function fillRow({ cells, named }, { selected, all, right, rightAll }) {
  const texts = [`${counted(selected)} of ${counted(all)}`, shareText(right, selected), shareText(rightAll, all)];
  texts.forEach((text, i) => setText(cells[i], text));
  cells[1].title = selected ? `${right} of ${selected} right` : "none selected";
  cells[2].title = `${rightAll} of ${all} right`;
  const pressed = selected === 0 ? "false" : selected === all ? "true" : "mixed";
  if (named.tagName === "BUTTON") named.setAttribute("aria-pressed", pressed);
}

// A grid of the selected images, by class. Its height does not depend on them, so that a selection moves nothing.

const SHOWN = 200;

function createGallery(points, plot) {
  const text = make("p", { class: "wb-sc-count" });
  const list = make("div", { class: "wb-sc-images", role: "list", "aria-label": "Selected images", tabindex: 0 });
  const { sprite } = points;
  const [, h, w, c] = sprite.shape;
  let drawn = "";
  const tile = (label, row) => {
    const name = `${points.classes[label]}, ${numbered(points, row)}`;
    const image = make("canvas", { width: w, height: h, role: "img", "aria-label": name, title: name });
    image.getContext("2d").putImageData(new ImageData(spritePixels(sprite.data, row, h, w, c), w, h), 0, 0);
    image.addEventListener("pointerenter", () => plot.point(row));
    image.addEventListener("pointerleave", () => plot.point(-1));
    return make("div", { role: "listitem" }, image);
  };
  return {
    element: make("div", { class: "wb-sc-gallery" }, text, list),
    update(state) {
      const selection = state.selection ?? [];
      const labels = points.labels[points.by(state)];
      const key = [points.by(state), ...selection].join();
      if (key === drawn) return;
      drawn = key;
      const rows = [...selection].sort((one, other) => labels[one] - labels[other] || one - other);
      const more = rows.length > SHOWN ? `The first ${SHOWN} of ${counted(rows.length)}` : counted(rows.length);
      setText(text, rows.length ? `${more} selected, by class` : "Draw around points to see their images here.");
      list.replaceChildren(...rows.slice(0, SHOWN).map((row) => tile(labels[row], row)));
    },
  };
}

export function classNumbers(points, state) {
  const labels = points.labels[points.by(state)];
  const correct = points.correct(state);
  const fresh = () => ({ selected: 0, all: 0, right: 0, rightAll: 0 });
  const byClass = points.classes.map((_, label) => ({ label, ...fresh() }));
  const total = fresh();
  const selected = new Uint8Array(points.count);
  for (const row of state.selection ?? []) selected[row] = 1;
  for (let i = 0; i < points.count; i += 1) {
    for (const one of [byClass[labels[i]], total]) {
      one.all += 1;
      one.rightAll += correct[i];
      one.selected += selected[i];
      one.right += selected[i] & correct[i];
    }
  }
  return { byClass: byClass.filter(({ all }) => all), total };
}

// The plot and its table as a saved picture, on white.

function scatterPicture(points, { view }, table, state, ui) {
  const { width, height, radius } = view;
  const top = 40;
  const labels = points.labels[points.by(state)];
  const any = view.selected.includes(1);
  const markers = [...new Set(labels)]
    .map(
      (label) =>
        `<path id="wb-m${label}" d="${markerPath(ui.marker(label), radius)}"` +
        ` fill="${ui.palette(label, "light")}"/>`,
    )
    .join("");
  const uses = (pass) => {
    const drawn = [];
    for (const i of points.order) {
      const [x, y] = [view.x(i), view.y(i)];
      if (view.selected[i] !== pass || x < 0 || y < 0 || x > width || y > height) continue;
      drawn.push(`<use href="#wb-m${labels[i]}" x="${x.toFixed(1)}" y="${y.toFixed(1)}"/>`);
    }
    return drawn.join("");
  };
  const bar = scaleBar(view);
  const measure = bar
    ? `<rect x="10" y="${height - 11}" width="${bar.length}" height="1.5" fill="#444" stroke="none"/>` +
      svgText(bar.text, 10, height - 17).replace("<text", '<text stroke="none"')
    : "";
  const plotted =
    `<g transform="translate(0,${top})" stroke="#000" stroke-opacity=".4" stroke-width=".5">` +
    `<g opacity="${any ? 0.25 : 0.9}">${uses(0)}</g><g stroke-opacity="1" stroke-width="1">${any ? uses(1) : ""}</g>` +
    `${measure}</g>`;
  const legend = classPicture(points, table.numbers(), ui, width + 24, top + 14);
  return svgDocument(
    width + 24 + legend.width,
    Math.max(top + height, legend.bottom) + 10,
    `<defs>${markers}</defs>` + svgText(points.title(state), 10, 24, { size: 13, weight: 600 }) + plotted + legend.body,
  );
}

// The table of the classes, with its upper left corner at (x, y).
function classPicture(points, { byClass, total }, ui, x, y) {
  const columns = [
    [x + 14, "start"],
    [x + 200, "end"],
    [x + 262, "end"],
    [x + 322, "end"],
  ];
  const line = (texts, at, weight = 400) =>
    texts.map((text, i) => svgText(text, columns[i][0], at, { anchor: columns[i][1], weight })).join("");
  const cells = (name, { selected, all, right, rightAll }) => [
    name,
    `${counted(selected)} of ${counted(all)}`,
    shareText(right, selected),
    shareText(rightAll, all),
  ];
  // A picture has room for 40 classes, selected ones first; the last line gives the total.
  const listed =
    byClass.length > 40
      ? byClass
          .filter((one) => one.selected)
          .concat(byClass.filter((one) => !one.selected))
          .slice(0, 40)
      : byClass;
  const name = byClass.length > 40 ? `All ${counted(byClass.length)} classes` : "All classes";
  const rows = listed.map(
    (one, i) =>
      `<path transform="translate(${x + 2},${y + 16 + 20 * i})" fill="${ui.palette(one.label, "light")}"` +
      ` d="${markerPath(ui.marker(one.label), 5)}"/>${line(cells(points.classes[one.label], one), y + 20 + 20 * i)}`,
  );
  const bottom = y + 20 + 20 * listed.length;
  const body =
    line(["Class", "selected", "kNN, sel.", "kNN, all"], y, 600) +
    rows.join("") +
    line(cells(name, total), bottom + 4, 600);
  return { body, bottom: bottom + 4, width: 336 };
}

const BATCH = 5000; // number of points above which the table is updated after the plot

export default function scatterPane(root, pane, arrays, store, ui) {
  const points = createPoints(pane, arrays, store);
  const title = make("p", { class: "wb-caption" });
  const note = make("p", { class: "wb-note wb-sc-note" });
  const table = createClassTable(points, store, ui);
  const plot = createPlot(points, store, ui);
  const gallery = createGallery(points, plot);
  const clear = ui.button({ label: "Clear selection", title: "Escape in the plot", onclick: () => plot.choose([]) });
  root.append(
    make("div", { class: "wb-bar" }, ...scatterChoices(points, ui), clear),
    title,
    make(
      "div",
      { class: "wb-sc-both" },
      plot.element,
      make("div", { class: "wb-sc-side" }, table.element, gallery.element),
    ),
    note,
  );
  const later = afterPaint((state) => {
    table.update(state);
    gallery.update(state);
  });
  return {
    update(state, changed) {
      title.textContent = points.title(state);
      note.textContent = points.note(state);
      clear.disabled = !state.selection?.length;
      plot.update(state, changed);
      if (points.count <= BATCH) table.update(state);
      later(state);
    },
    picture() {
      plot.settle();
      table.update(store.get());
      return { svg: scatterPicture(points, plot, table, store.get(), ui) };
    },
  };
}

// Choices of the method and of the labels (true or given).
function scatterChoices(points, ui) {
  const { methods, method, by, labels } = points;
  const made = [];
  if (methods.length > 1) {
    made.push(ui.toggle({ option: "method", values: methods, get: method }));
  }
  if (labels.given) {
    made.push(ui.toggle({ option: "labels", values: ["true", "given"], get: by }));
  }
  return made;
}

// Calls `action` with the latest argument once the pending frame has been painted.
function afterPaint(action) {
  let due;
  return (argument) => {
    if (due === undefined)
      requestAnimationFrame(() =>
        setTimeout(() => {
          action(due);
          due = undefined;
        }),
      );
    due = argument;
  };
}
