// A chart as SVG text: lines over training steps, on a light or dark background.

import { dashes, seriesAt } from "./colours.js";
import { numberText } from "./numbers.js";
import { svgText } from "./saving.js";

export const INKS = {
  light: { ink: "#1c1e21", muted: "#5a6068", grid: "#e3e5e8", ground: "#fdfdfc" },
  dark: { ink: "#e6e7e8", muted: "#a4abb3", grid: "#2c3136", ground: "#16181b" },
};

const WIDTH = 1.8; // of a line
export const BORDER = { left: 54, right: 12, top: 8, bottom: 24 };

// Colour, on a light or dark ground, and dashes of run number `index`: the dashes are the second cue.
export function lineStyle(index, theme) {
  return { index, colour: seriesAt(index)[theme], dash: dashes(index, WIDTH) };
}

// About `count` round numbers from `low` to `high`.
export function ticks(low, high, count) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((times) => times * power >= rough * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, at) => Number(((first + at) * step).toPrecision(12)));
}

export function logTicks(low, high) {
  const all = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const times of Math.log10(high / low) < 2 ? [1, 2, 5] : [1]) all.push(times * 10 ** power);
  }
  const inside = all.filter((value) => value >= low * 0.999 && value <= high * 1.001);
  return inside.length > 1 ? inside : ticks(low, high, 3).filter((value) => value > 0);
}

// Exponential moving average with decay `keep`, bias-corrected at the start.
export function smoothed(values, keep) {
  if (!keep) return values;
  let sum = 0;
  let weight = 0;
  return values.map((value) => {
    sum = keep * sum + value;
    weight = keep * weight + 1;
    return sum / weight;
  });
}

// Index of the first entry of ascending `steps` that is at least `step`.
export function lowerBound(steps, step) {
  let [low, high] = [0, steps.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle + 1;
    else high = middle;
  }
  return low;
}

export function nearest(steps, step) {
  const after = lowerBound(steps, step);
  if (after === steps.length) return after - 1;
  return after > 0 && step - steps[after - 1] < steps[after] - step ? after - 1 : after;
}

// Lowest and highest visible value, with some padding; null if there is none.
function valuesShown(lines, [from, to], log) {
  let [low, high] = [Infinity, -Infinity];
  const count = (value) => {
    if (value === null || value === undefined || (log && value <= 0)) return;
    low = Math.min(low, value);
    high = Math.max(high, value);
  };
  for (const { steps, drawn, lows, highs, level } of lines) {
    // One point beyond each border, because lines continue to it.
    for (let at = Math.max(0, lowerBound(steps, from) - 1); at < steps.length; at += 1) {
      count(drawn[at]);
      count(lows?.[at]);
      count(highs?.[at]);
      if (steps[at] > to) break;
    }
    count(level);
  }
  if (low > high) return null;
  if (log) return [low / 1.08, high * 1.08];
  // A nearly constant value is drawn as a flat line.
  const room = Math.max((high - low) * 0.06, (0.01 * Math.abs(high + low) - (high - low)) / 2) || 1;
  return [low - room, high + room];
}

// Scales of a picture of this size: functions between steps or values and pixels, and the range of values `shown`.
export function createScales(lines, { span, width, height, log }) {
  const shown = valuesShown(lines, span, log);
  if (!shown) return null;
  const [inner, tall] = [width - BORDER.left - BORDER.right, height - BORDER.top - BORDER.bottom];
  const length = Math.max(span[1] - span[0], 1e-9);
  const [low, high] = log ? shown.map(Math.log10) : shown;
  const height01 = (value) => ((log ? Math.log10(value) : value) - low) / (high - low || 1);
  return {
    shown,
    x: (step) => BORDER.left + ((step - span[0]) / length) * inner,
    y: (value) => BORDER.top + (1 - height01(value)) * tall,
    step: (x) => span[0] + ((x - BORDER.left) / inner) * length,
  };
}

// Starting at point `first`.
export function pathOf(steps, values, scales, log, first = 0) {
  let text = "";
  let open = false;
  for (let at = first; at < steps.length; at += 1) {
    const value = values[at];
    const known = value !== null && value !== undefined && !(log && value <= 0);
    if (known) text += `${open ? "L" : "M"}${scales.x(steps[at]).toFixed(1)} ${scales.y(value).toFixed(1)}`;
    open = known;
  }
  return text;
}

// Round numbers of training steps, which are whole.
export const stepTicks = (low, high, count) => ticks(low, high, Math.min(count, Math.max(high - low, 1e-9)));

const LONGEST = 7; // characters that have room beside the axis

// Labels of values, short enough to be seen whole: as powers of ten if they are longer.
export function tickTexts(values, text) {
  const plain = values.map(text);
  if (plain.every((label) => label.length <= LONGEST)) return plain;
  const powers = [0, 1, 2, 3].map((digits) => values.map((value) => value.toExponential(digits).replace("e+", "e")));
  return powers.find((labels) => new Set(labels).size === labels.length) ?? powers.at(-1);
}

// Labels with enough digits to distinguish the round numbers.
export function tickText(value, values) {
  const apart = values.length > 1 ? Math.abs(values[1] - values[0]) : 0;
  const digits = Math.min(12, Math.max(0, Math.ceil(-Math.log10(apart || 1) - 1e-9)));
  return digits && apart ? value.toFixed(digits) : numberText(value);
}

function gridText(scales, { span, width, height, log, inks }) {
  const right = width - BORDER.right;
  const base = height - BORDER.bottom;
  const [low, high] = scales.shown;
  const round = log ? logTicks(low, high) : ticks(low, high, 4);
  const texts = tickTexts(round, (value) => (log ? numberText(value) : tickText(value, round)));
  const rows = round.map((value, at) => {
    const y = scales.y(value).toFixed(1);
    const label = svgText(texts[at], BORDER.left - 6, Number(y) + 4, { anchor: "end", fill: inks.muted });
    return `<line x1="${BORDER.left}" x2="${right}" y1="${y}" y2="${y}" stroke="${inks.grid}"/>${label}`;
  });
  const columns = stepTicks(span[0], span[1], Math.max(2, width / 90)).map((value) => {
    const [text, x] = [numberText(value), scales.x(value)];
    const cut = x + 3.5 * text.length > width; // at the right edge of the picture
    const place = { anchor: cut ? "end" : "middle", fill: inks.muted };
    return svgText(text, cut ? width - 1 : x, height - 7, place);
  });
  const axis = `<line x1="${BORDER.left}" x2="${right}" y1="${base}" y2="${base}" stroke="${inks.muted}"/>`;
  return rows.join("") + columns.join("") + axis;
}

function lineText(line, scales, log) {
  const { steps, values, drawn, lows, highs, level, colour, dash, marked } = line;
  const stroke = `fill="none" stroke="${colour}" stroke-linejoin="round"`;
  let text = "";
  if (drawn !== values)
    text += `<path class="wb-raw" d="${pathOf(steps, values, scales, log)}" ${stroke} opacity="0.25"/>`;
  text +=
    `<path class="wb-curve" d="${pathOf(steps, drawn, scales, log)}" ${stroke} stroke-width="${WIDTH}"` +
    ` stroke-dasharray="${dash}"/>`;
  if (level !== null && level !== undefined && !(log && level <= 0)) {
    const y = scales.y(level).toFixed(1);
    text += `<line x1="0" x2="9999" y1="${y}" y2="${y}" stroke="${colour}" stroke-dasharray="1 4" opacity="0.8"/>`;
  }
  const dot = (step, value) =>
    `<circle cx="${scales.x(step).toFixed(1)}" cy="${scales.y(value).toFixed(1)}" r="3.2"` + ` fill="${colour}"/>`;
  const usable = (value) => value !== null && value !== undefined && !(log && value <= 0);
  steps.forEach((step, at) => {
    if ((!marked && steps.length > 1) || !usable(drawn[at])) return;
    text += dot(step, drawn[at]);
    if (usable(lows?.[at]) && usable(highs?.[at])) {
      const [x, top, foot] = [scales.x(step), scales.y(highs[at]), scales.y(lows[at])].map((at) => at.toFixed(1));
      text += `<path d="M${x} ${top}V${foot}M${x - 4} ${top}h8M${x - 4} ${foot}h8" stroke="${colour}" fill="none"/>`;
    }
  });
  return text;
}

// The SVG content of a chart, and its scales; without points, a sentence and null.
export function chartText(lines, how) {
  const scales = createScales(lines, how);
  if (!scales) {
    return {
      scales,
      text: svgText("no values yet", how.width / 2, how.height / 2, {
        anchor: "middle",
        fill: how.inks.muted,
      }),
    };
  }
  const [width, height] = [how.width - BORDER.left - BORDER.right, how.height - BORDER.top - BORDER.bottom];
  const clip = `wb-clip-${how.id}`;
  const room =
    `<clipPath id="${clip}"><rect x="${BORDER.left - 4}" y="${BORDER.top - 4}" width="${width + 8}"` +
    ` height="${height + 8}"/></clipPath>`;
  const curves = lines.map((line) => lineText(line, scales, how.log)).join("");
  return { scales, text: `${room}${gridText(scales, how)}<g clip-path="url(#${clip})">${curves}</g>` };
}

// A chart in the page, to which new points are appended. Redrawing all of it at every update would take time from the
// training that it shows.

const PIECES = 100; // appended pieces of a line before it is merged into one path

// `draw(lines, how)` returns the scales, or null without points. `how` is that of `chartText`.
export function createDrawing(host) {
  let current = null; // what is drawn: {scales, key, end, counts, pieces}

  // Steps beyond the last drawn one have no values to fit.
  const fits = ({ steps, drawn }, first) => {
    const [low, high] = current.scales.shown;
    return drawn.slice(first).every((value, at) => steps[first + at] > current.end || (value >= low && value <= high));
  };

  // Whether points were only added, within the drawn range.
  const canAppend = (lines, key) =>
    current?.scales &&
    current.key === key &&
    current.pieces < PIECES &&
    lines.length === current.counts.length &&
    lines.every((line, at) => {
      const { from, count } = current.counts[at];
      return (
        line.from === from &&
        (line.steps.length === count || (count > 1 && line.steps.length > count && fits(line, count)))
      );
    });

  function append(lines, { log }) {
    const [curves, raws] = [".wb-curve", ".wb-raw"].map((kind) => host.querySelectorAll(kind));
    let added = 0;
    lines.forEach(({ steps, values, drawn }, at) => {
      const { count } = current.counts[at];
      if (steps.length === count) return;
      current.counts[at].count = steps.length;
      added = 1;
      [[curves[at], drawn], ...(drawn === values ? [] : [[raws[at], values]])].forEach(([path, heights]) => {
        const piece = path.cloneNode();
        piece.setAttribute("class", "wb-more");
        piece.setAttribute("d", pathOf(steps, heights, current.scales, log, count - 1));
        path.after(piece);
      });
    });
    current.pieces += added;
  }

  function redraw(lines, how, key) {
    const { scales, text } = chartText(lines, how);
    const size = `width="${how.width}" height="${how.height}"`;
    host.innerHTML = `<svg ${size} viewBox="0 0 ${how.width} ${how.height}" aria-hidden="true">${text}</svg>`;
    const counts = lines.map(({ from, steps }) => ({ from, count: steps.length }));
    current = { scales, key, counts, end: how.span[1], pieces: 0 };
  }

  function draw(lines, how) {
    const key = JSON.stringify(how);
    if (canAppend(lines, key)) append(lines, how);
    else redraw(lines, how, key);
    return current.scales;
  }

  return { draw };
}
