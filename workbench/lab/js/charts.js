// Line charts of a live panel with all runs in each chart, a shared range of steps and a shared cursor.

import { BORDER, chartText, createDrawing, INKS, lineStyle, lowerBound, nearest, smoothed } from "./chart.js";
import { dashes, seriesStyle } from "./colours.js";
import { inView, make, setText, themeOf } from "./dom.js";
import { numberText } from "./numbers.js";
import { svgDocument, svgText } from "./saving.js";

const FIRST = ["loss", "denoise", "alignment", "gradient_norm"];

const TITLES = {
  loss: "loss (total)",
  denoise: "denoising loss",
  alignment: "alignment loss",
  gradient_norm: "gradient norm",
  images_per_second: "throughput (images/s)",
};

// Choices of smoothing: the factor of the exponential moving average.
export const KEEPS = [0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99];
const CHART_HEIGHT = 190;
const ROOM = 1 / 16; // for further steps, as a share of the drawn ones
let charted = 0; // number of charts in the page: clip paths need unique ids

function titleOf(name) {
  return TITLES[name] ?? name.replace(/^norm_/, "feature norm, ").replaceAll("_", " ");
}

// Names of all curves of the runs, in the order of the charts.
function curveNames(runs) {
  const all = new Set(runs.flatMap((run) => Object.keys(run.curves)));
  const rest = [...all].filter((name) => !FIRST.includes(name) && name !== "images_per_second").sort();
  return [
    ...FIRST.filter((name) => all.has(name)),
    ...rest,
    ...(all.has("images_per_second") ? ["images_per_second"] : []),
  ];
}

// Lines of a curve, at full resolution in a zoomed `range` if these points have arrived; null is no zoom.
function curveLines(runs, name, keep, range, theme) {
  return runs.flatMap((run, index) => {
    const known = range && run.finer && range.every((end, at) => end === run.finer.range[at]);
    const curve = (known && run.finer.curves[name]) || run.curves[name];
    if (!curve) return [];
    const [steps, values] = curve;
    return [{ ...lineStyle(index, theme), run: run.name, from: curve, steps, values, drawn: smoothed(values, keep) }];
  });
}

function scoreLines(runs, theme) {
  return runs.flatMap((run, index) => {
    if (!run.scores) return [];
    const [steps, values, lows, highs] = [0, 1, 2, 3].map((column) => run.scores.points.map((point) => point[column]));
    const style = { ...lineStyle(index, theme), run: run.name, from: run.scores, marked: true };
    return [{ ...style, steps, values, drawn: values, lows, highs, level: run.scores.floor }];
  });
}

function scoreTitle(runs) {
  const all = runs.filter((run) => run.scores).map((run) => run.scores);
  const names = [...new Set(all.map((scores) => `${scores.metric.replace("fd-", "FD-")}, ${scores.how}`))];
  return `${names.join("; ")}${all.some((scores) => scores.floor !== null) ? " (dotted: real images)" : ""}`;
}

// The first and last step of any line.
export function fullSpan(runs) {
  const ends = runs
    .flatMap((run) => [
      ...Object.values(run.curves).flatMap(([steps]) => [steps[0], steps[steps.length - 1]]),
      ...(run.scores ? run.scores.points.map((point) => point[0]) : []),
    ])
    .filter((step) => step !== undefined);
  if (!ends.length) return [0, 1];
  const [low, high] = [Math.min(...ends), Math.max(...ends)];
  return high > low ? [low, high] : [low - 1, high + 1];
}

// A sample of the line of run number `index`, for legends.
export function swatch(index) {
  const holder = make("span", { class: "wb-swatch wb-series", style: seriesStyle(index), "aria-hidden": "true" });
  holder.innerHTML =
    `<svg width="26" height="10"><line x1="0" x2="26" y1="5" y2="5" stroke="currentColor"` +
    ` stroke-width="3" stroke-dasharray="${dashes(index, 2)}"/></svg>`;
  return holder;
}

// Values of all lines at a step: [{run, index, step, text}], with the number of the run as `index`.
function readings(lines, step) {
  return lines
    .filter(({ steps }) => steps.length)
    .map((line) => {
      const at = nearest(line.steps, step);
      const around =
        line.lows?.[at] !== null && line.lows?.[at] !== undefined
          ? ` (${numberText(line.lows[at])} to ${numberText(line.highs[at])})`
          : "";
      return { run: line.run, index: line.index, step: line.steps[at], text: numberText(line.drawn[at]) + around };
    });
}

// A chart: a figure whose frame acts as a slider over steps for the keyboard and screen readers.
// `drawn()` is the range of steps in the picture, which may have room for further ones.
function createChart(store, { title, lines, span, drawn }) {
  const heading = make("span", { class: "wb-chart-title" });
  const read = make("span", { class: "wb-chart-read" });
  const frame = make("div", { class: "wb-chart-frame", role: "slider", tabindex: 0 });
  const cursor = make("div", { class: "wb-chart-cursor", hidden: true });
  const box = make("div", { class: "wb-chart-box", hidden: true });
  const picture = make("div", { class: "wb-chart-picture" });
  frame.append(picture, cursor, box);
  const element = make("figure", { class: "wb-chart" }, make("figcaption", {}, heading, read), frame);
  const chart = { element, frame, scales: null, width: 0, lines: [] };
  const drawing = createDrawing(picture);
  charted += 1;
  const id = charted;

  // Called for all charts before any is drawn, to avoid one page layout per chart.
  chart.measure = () => {
    chart.width = frame.clientWidth;
  };
  chart.draw = inView(
    element,
    () => {
      chart.lines = lines(themeOf());
      if (!chart.width) return;
      setText(heading, title());
      frame.setAttribute("aria-label", `${title()} by step`);
      const { scale, smoothing } = store.get();
      chart.scales = drawing.draw(chart.lines, {
        span: drawn(),
        width: chart.width,
        height: CHART_HEIGHT,
        log: scale === "log",
        inks: INKS[themeOf()],
        smoothing,
        id,
      });
      chart.point();
    },
    () => store.touch("data"),
  );

  // The step of the cursor, or the newest.
  chart.point = () => {
    const [low, high] = span();
    const step = store.get()._cursor;
    const values = readings(chart.lines, step ?? high);
    const at = values.length ? values[0].step : Math.round(high);
    const inside = step !== null && chart.scales && at >= low && at <= high;
    cursor.hidden = !inside;
    if (inside) cursor.style.left = `${chart.scales.x(at)}px`;
    const texts = [...(step === null ? [] : [`step ${numberText(at)}`]), ...values.map(({ text }) => text)];
    const entries = step === null ? values : [null, ...values];
    const key = entries.map((one) => one?.index).join();
    if (key !== chart.key) {
      chart.key = key;
      read.replaceChildren(
        ...entries.map((one) =>
          one ? make("span", { class: "wb-read", title: one.run }, swatch(one.index), "") : make("span", {}, ""),
        ),
      );
    }
    texts.forEach((text, index) => setText(read.children[index].lastChild, text));
    frame.setAttribute("aria-valuemin", Math.round(low));
    frame.setAttribute("aria-valuemax", Math.round(high));
    frame.setAttribute("aria-valuenow", at);
    frame.setAttribute(
      "aria-valuetext",
      values.length
        ? `step ${numberText(at)}: ${values.map(({ run, text }) => `${run} ${text}`).join(", ")}`
        : "no values yet",
    );
  };

  steer(store, chart, box, span);
  return chart;
}

// Zoom by dragging, double click and keys; cursor by pointer and arrow keys.
function steer(store, chart, box, span) {
  const { frame } = chart;
  const pixelOf = (event) => event.clientX - frame.getBoundingClientRect().left;
  let start = null;
  const stop = () => {
    start = null;
    box.hidden = true;
  };
  frame.addEventListener("pointerdown", (event) => {
    if (!chart.scales || event.button) return;
    start = pixelOf(event);
    frame.setPointerCapture(event.pointerId);
  });
  frame.addEventListener("pointermove", (event) => {
    if (!chart.scales) return;
    const x = pixelOf(event);
    if (start === null) {
      store.set({ _cursor: Math.round(chart.scales.step(x)) });
      return;
    }
    const moved = Math.abs(x - start) > 4;
    box.hidden = !moved;
    if (moved) Object.assign(box.style, { left: `${Math.min(x, start)}px`, width: `${Math.abs(x - start)}px` });
  });
  frame.addEventListener("pointerup", (event) => {
    if (start !== null && Math.abs(pixelOf(event) - start) > 4) {
      const ends = [start, pixelOf(event)].sort((one, other) => one - other).map(chart.scales.step);
      zoom(store, ...ends, span);
    }
    stop();
  });
  frame.addEventListener("pointercancel", stop);
  frame.addEventListener("pointerleave", () => start === null && store.set({ _cursor: null }));
  frame.addEventListener("dblclick", () => store.set({ range: null }));
  frame.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !chart.scales) return;
    if (pressed(store, chart, span, event)) {
      event.preventDefault();
      event.stopPropagation();
    }
  });
}

function zoom(store, low, high, span) {
  const [first, last] = span();
  const range = [Math.max(low, first), Math.min(high, last)];
  if (range[1] - range[0] >= 1) store.set({ range });
}

// Returns whether the chart handles the key.
export function pressed(store, chart, span, event) {
  const steps = chart.lines.find((line) => line.steps.length)?.steps ?? [];
  const [low, high] = span();
  const at = steps.length ? nearest(steps, store.get()._cursor ?? high) : 0;
  const read = (index) => store.set({ _cursor: steps[Math.max(0, Math.min(steps.length - 1, index))] ?? null });
  const around = (share) => {
    const middle = store.get()._cursor ?? (low + high) / 2;
    const reach = ((high - low) / 2) * share;
    if (reach > 0.5) store.set({ range: [middle - reach, middle + reach] });
  };
  const many = event.shiftKey ? 10 : 1;
  const moves = {
    ArrowLeft: () => read(at - many),
    ArrowRight: () => read(at + many),
    PageDown: () => read(at - 10),
    PageUp: () => read(at + 10),
    Home: () => read(lowerBound(steps, low)),
    End: () => read(lowerBound(steps, high)),
    "+": () => around(0.5),
    "=": () => around(0.5),
    "-": () => around(2),
    0: () => store.set({ range: null }),
    Escape: () => store.set({ range: null, _cursor: null }),
  };
  if (!moves[event.key]) return false;
  moves[event.key]();
  return true;
}

// All charts of some runs, created as curves appear; `picture()` is the saved picture, on white.
export function createCharts(host, runs, store) {
  const charts = new Map();
  const span = () => store.get().range ?? fullSpan(runs);
  // A growing range is drawn with room for further steps, the same in all charts.
  let reach = null;
  const drawn = () => {
    if (store.get().range) return store.get().range;
    const [low, high] = fullSpan(runs);
    const room = (high - low) * ROOM;
    const holds = reach && reach[0] === low && reach[1] >= high && reach[1] <= high + room;
    if (!holds) reach = [low, reach && high > reach[1] ? high + room : high];
    return reach;
  };
  const wanted = () => [...curveNames(runs), ...(runs.some((run) => run.scores) ? ["score"] : [])];
  const sourceOf = (name) =>
    name === "score"
      ? { title: () => scoreTitle(runs), lines: (theme) => scoreLines(runs, theme) }
      : {
          title: () => titleOf(name),
          lines: (theme) => curveLines(runs, name, KEEPS[store.get().smoothing], store.get().range, theme),
        };
  const empty = make("p", { class: "wb-note" }, "No steps logged yet.");

  function update(changed) {
    const names = wanted();
    names.forEach((name) => {
      if (!charts.has(name)) charts.set(name, createChart(store, { ...sourceOf(name), span, drawn }));
    });
    const elements = names.length ? names.map((name) => charts.get(name).element) : [empty];
    // Only if they changed: a chart that is inserted again loses focus.
    const current = [...host.children];
    if (current.length !== elements.length || elements.some((one, at) => one !== current[at]))
      host.replaceChildren(...elements);
    const shown = names.map((name) => charts.get(name));
    if ([...changed].every((key) => key === "_cursor")) {
      shown.forEach((chart) => chart.point());
    } else {
      shown.filter((chart) => !chart.width || changed.has("size")).forEach((chart) => chart.measure());
      shown.forEach((chart) => chart.draw());
    }
  }

  function picture() {
    return wanted().map((name) => {
      const { title, lines } = sourceOf(name);
      const how = {
        span: span(),
        width: 520,
        height: 210,
        log: store.get().scale === "log",
        inks: INKS.light,
        id: `${name}-saved`,
      };
      const shown = lines("light");
      const names = shown.map(({ run, colour }, at) =>
        svgText(run, BORDER.left, 34 + 15 * at, { fill: colour, weight: 600 }),
      );
      const head = 26 + 15 * names.length;
      const body = svgText(title(), BORDER.left, 17, { size: 13, weight: 650 }) + names.join("");
      const inner = `<svg y="${head}" width="520" height="210">${chartText(shown, how).text}</svg>`;
      return { svg: svgDocument(520, head + 214, body + inner) };
    });
  }

  return { update, picture };
}
