// The plot: where the points stand on the canvas, how they are painted and how they move.
const MORPH = 300; // milliseconds from one frame of points to another

// A canvas for the points, and a drawing over it for the lasso and the point under the pointer.
function createPlot(points, store, ui) {
  const view = createPlotView(points, store, ui);
  const painter = createPainter(view);
  const glide = createGlide(view);
  view.repaint = () => { painter(); markRows(view); };
  zoomTo(view, { k: 1, x: 0, y: 0 });
  listenToPointer(view);
  listenToWheel(view);
  listenToKeys(view);
  return {
    element: view.element, view,
    choose: (rows) => chooseRows(view, rows),
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
        view.unit = fitPlaces(points.places(state, view.target), view.width / view.height);
        glide(view.placed && !fresh && (moved || points.method(state) !== "pca"));
      } else if (["selection", "labels", "theme"].some((key) => changed.has(key))) {
        view.repaint();
      }
      view.canvas.setAttribute("aria-label", describePlot(points, state, view.selected));
    },
  };
}

// Elements of the plot, where its points stand and go to, what is selected, and pixels of a point.
function createPlotView(points, store, ui) {
  const { count } = points;
  const [element, canvas, overlay, spoken] = plotElements();
  const tip = createTip(element, points, store);
  const undo = "Undo the zoom: 0, or a double click";
  const whole = ui.button({ label: "Whole plot", title: undo, onclick: () => showWhole(view) });
  whole.classList.add("wb-sc-whole");
  element.append(whole);
  const view = {
    points, store, ui, element, canvas, overlay, spoken, tip, width: 0, height: 0, unit: 0,
    shown: new Float32Array(2 * count), target: new Float32Array(2 * count), selected: new Uint8Array(count),
    zoom: null, whole, cursor: -1, hovered: -1, placed: false, radius: radiusFor(count),
    x: (i) => view.width / 2 + (view.shown[2 * i] * view.zoom.k + view.zoom.x) * view.height * 0.47,
    y: (i) => view.height / 2 - (view.shown[2 * i + 1] * view.zoom.k + view.zoom.y) * view.height * 0.47,
  };
  return view;
}

function plotElements() {
  const canvas = make("canvas", { role: "img" });
  const overlay = svgElement("svg", { class: "wb-sc-over", "aria-hidden": "true" });
  const spoken = make("div", { class: "wb-sc-spoken", "aria-live": "polite" });
  const help = make("div", { class: "wb-sc-spoken", id: `wb-sc-${Math.random().toString(36).slice(2)}` },
    "Arrow keys go from point to point, Enter selects or deselects it, Escape clears the selection, plus and minus zoom,"
    + " 0 shows the whole plot. With a pointer draw around points; Shift adds, Alt removes.");
  const element = make("div", {
    class: "wb-sc-plot", tabindex: 0, role: "application", "aria-label": "Points", "aria-describedby": help.id,
  }, canvas, overlay, spoken, help);
  return [element, canvas, overlay, spoken];
}

// Puts places into the plot: y in -1..1, x in the same unit. Gives how long a unit of the embedding is.
function fitPlaces(places, aspect) {
  const low = [Infinity, Infinity];
  const high = [-Infinity, -Infinity];
  for (let i = 0; i < places.length; i += 1) {
    if (places[i] < low[i & 1]) low[i & 1] = places[i];
    if (places[i] > high[i & 1]) high[i & 1] = places[i];
  }
  const unit = 1 / (Math.max((high[0] - low[0]) / 2 / aspect, (high[1] - low[1]) / 2) || 1);
  const middle = [(low[0] + high[0]) / 2, (low[1] + high[1]) / 2];
  for (let i = 0; i < places.length; i += 1) places[i] = (places[i] - middle[i & 1]) * unit;
  return unit;
}

// The canvas takes the width there is; true if it changed.
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

// Draws into memory with a margin of one marker around the picture, so that none has to be cut.
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
    const { image, stamps: { size } } = paper;
    context.putImageData(image, -size, -size, size, size, canvas.width, canvas.height);
    drawScaleBar(view, context);
  };
}

// The memory for a size and a theme: its pixels, the markers as stamps for its rows, and the colour behind them.
function preparePaper({ points, ui, canvas, element, radius, ratio }) {
  const margin = createStamps(ui, 1, radius, ratio, 0).size;
  const stride = canvas.width + 2 * margin;
  const stamps = createStamps(ui, points.classes.length, radius, ratio, stride);
  const image = new ImageData(stride, canvas.height + 2 * margin);
  const [red, green, blue] = getComputedStyle(element).backgroundColor.match(/\d+/g).map(Number);
  const ground = (0xff000000 | (blue << 16) | (green << 8) | red) >>> 0;
  return { stamps, image, pixels: new Uint32Array(image.data.buffer), ground };
}

// Points that are selected lie over the others.
function stampPoints({ points, store, canvas, ratio, shown, zoom, height, selected }, { stamps, image, pixels, ground }) {
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

// PCA has a unit, so that a spread which grows with w can be seen to grow though the plot always fits.
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

// Moves the points to their targets: at once, or in a short time if `slowly` and the reader has nothing against it.
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
