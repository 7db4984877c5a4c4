// Attention: what a token looks at, and which tokens look at it, without and with the label.

import { blockStart } from "../arrays.js";
import { heatColour, VIRIDIS, viridisGradient, viridisOffset } from "../colours.js";
import { captionLines, make, paintImage, paintPixels, setText } from "../dom.js";
import { nearestIndex, plain } from "../numbers.js";
import { svgDocument, svgText, svgTile } from "../saving.js";
import { outlinePath } from "../similarity.js";
import { framePath, mountMap } from "../tokens.js";

const DIRECTIONS = ["from", "to"];
const STEPS = 255;

export default function attentionPane(root, pane, arrays, store, ui) {
  const { side } = pane;
  const m = side * side;
  const weights = arrays("weights");
  const heads = weights.shape[3];
  const bar = make("div", { class: "wb-bar" });
  if (store.options.head.length > 1) {
    const control = store.options.head.length > 7 ? ui.select : ui.toggle;
    bar.append(control({ option: "head" }));
  }
  const tiles = [null, ...DIRECTIONS.flatMap((direction) => [0, 1].map((label) => ({ direction, label })))].map(
    (of) => {
      const canvas = make("canvas", { role: "img" });
      const caption = make("figcaption");
      const mounted = mountMap(canvas, side, "");
      return { ...mounted, of, canvas, caption, figure: make("figure", { class: "wb-tile" }, mounted.map, caption) };
    },
  );
  const grid = make("div", { class: "wb-grid wb-wrap" }, ...tiles.map(({ figure }) => figure));
  grid.style.setProperty("--wb-columns", tiles.length);
  const [low, high] = [make("span", {}, "0"), make("span")];
  const ramp = make(
    "div",
    { class: "wb-ramp wb-at-ramp", role: "img" },
    make("i", { style: `background:${viridisGradient()}` }),
    low,
    high,
  );
  const note = make("p", { class: "wb-note" });
  root.append(bar, grid, ramp, note);

  // The first of the chosen tokens; without any, the middle one of the image of the slider.
  function chosen(state) {
    if (!state.tokens.length) return { image: store.index("image", state), token: Math.floor(side / 2) * (side + 1) };
    const [[value, token]] = state.tokens;
    return { image: store.axes.image ? store.axes.image.values.indexOf(value) : value, token };
  }

  // Weights from a token to all, or to it from all, of a head or their mean (null).
  function read(at, { direction, label }, head, image, token) {
    const made = new Float64Array(m);
    const wanted = head === null ? [...Array(heads).keys()] : [head];
    for (const one of wanted) {
      const [first, second] = [0, 1].map((which) => blockStart(weights, [which, ...at, one, image]));
      for (let other = 0; other < m; other += 1) {
        const place = direction === "from" ? token * m + other : other * m + token;
        const difference = label ? weights.data[second + place] : 0;
        const step = ((weights.data[first + place] + difference) & 255) / STEPS;
        made[other] += (step * step) / wanted.length;
      }
    }
    return made;
  }

  // Which part falls on the token itself, and on the object.
  function parts(values, image, token, direction) {
    const total = values.reduce((sum, x) => sum + x, 0) || 1;
    const word = direction === "from" ? "on" : "from";
    const texts = [`${shareText(values[token] / total)} ${word} itself`];
    if (!arrays.has("part")) return texts;
    const share = arrays("part").data.subarray(image * m, (image + 1) * m);
    const sum = values.reduce((all, x, other) => all + (x * share[other]) / 255, 0);
    return [...texts, `${shareText(sum / total)} ${word} the object`];
  }

  function outlineOf(image) {
    if (!arrays.has("objects")) return "";
    const { data, shape } = arrays("objects");
    const [tall, wide] = shape.slice(1);
    return outlinePath(data.subarray(image * tall * wide, (image + 1) * tall * wide), tall, wide, side);
  }

  const near = (name, values, at) => {
    const wanted = store.value(name);
    const differs = wanted !== undefined && Math.abs(wanted - values[at]) > 1e-6;
    return `${name} ${plain(values[at])}${differs ? ", the nearest" : ""}`;
  };

  function update(state) {
    const { image, token } = chosen(state);
    const at = [
      nearestIndex(pane.times, store.value("t", state)),
      nearestIndex(pane.layers, store.value("layer", state)),
    ];
    const head = state.head === "mean" ? null : Number(state.head) - 1;
    const maps = tiles.slice(1).map(({ of }) => read(at, of, head, image, token));
    const most = Math.max(...maps.map((values) => values.reduce((best, x) => Math.max(best, x), 0))) || 1;
    const named = pane.names?.[image] ? `: ${pane.names[image]}` : "";
    const name = `image ${image + 1} of ${arrays("images").shape[0]}${named}`;
    const place = `row ${Math.floor(token / side) + 1}, column ${(token % side) + 1}`;
    const outline = outlineOf(image);
    tiles.forEach(({ of, canvas, caption, over, frames }, index) => {
      [...over.querySelectorAll("path:not(.wb-tk-frame)")].forEach((path) => path.setAttribute("d", outline));
      frames.forEach((frame) => frame.setAttribute("d", framePath(token, side)));
      if (!of) {
        paintImage(canvas, arrays("images"), [image]);
        canvas.setAttribute("aria-label", `${name}; ${place} is framed`);
        caption.replaceChildren(...captionLines(name, place));
        return;
      }
      const values = maps[index - 1];
      paintPixels(canvas, pixelsOf(values, most), side);
      const texts = [pane.titles[of.direction], pane.labels[of.label], ...parts(values, image, token, of.direction)];
      canvas.setAttribute("aria-label", `${name}, ${place}: ${texts.join(", ")}`);
      caption.replaceChildren(...captionLines(...texts));
    });
    setText(high, most.toPrecision(2));
    ramp.setAttribute("aria-label", `viridis: attention weight from 0 to ${most.toPrecision(2)}`);
    const which = head === null ? "the mean of the heads" : `head ${head + 1}`;
    const hint = state.tokens.length ? "" : " Click a token in the token maps to see its attention.";
    const where = [near("layer", pane.layers, at[1]), near("t", pane.times, at[0])].join("; ");
    setText(
      note,
      `Attention weights of ${which}, ${where}. What the framed token looks at adds up to 1; what looks at it does not.` +
        hint,
    );
  }

  function picture() {
    const [size, gap, left, top] = [120, 8, 8, 8];
    const parts = tiles.flatMap((tile, x) => {
      const from = left + x * (size + gap);
      const texts = [...tile.caption.querySelectorAll(".wb-line")].map((line, y) =>
        svgText(line.textContent, from, top + size + 14 + 13 * y, { size: 10, weight: y ? 400 : 700 }),
      );
      return [svgTile(tile, from, top, size), ...texts];
    });
    const below = top + size + 14 + 5 * 13;
    const bars = Array.from({ length: 32 }, (_, i) => {
      const colour = heatColour((i + 0.5) / 32, false);
      return `<rect x="${left + 14 + 3 * i}" y="${below - 9}" width="3.2" height="9" fill="rgb(${colour})"/>`;
    });
    const words = svgText("0", left, below, { size: 10 }) + svgText(high.textContent, left + 114, below, { size: 10 });
    const said = svgText(note.textContent.split(". ")[0], left, below + 16, { size: 10 });
    const width = 2 * left + tiles.length * (size + gap) - gap;
    return { svg: svgDocument(width, below + 26, [...parts, ...bars, words, said].join("")) };
  }

  return { update, picture };
}

function pixelsOf(values, most) {
  const pixels = new Uint8ClampedArray(4 * values.length);
  values.forEach((value, token) => {
    const offset = viridisOffset(value / most);
    pixels.set(VIRIDIS.subarray(offset, offset + 3), 4 * token);
    pixels[4 * token + 3] = 255;
  });
  return pixels;
}

// A share in percent, with a decimal below ten.
function shareText(share) {
  const percent = 100 * share;
  return `${percent.toFixed(percent < 9.95 ? 1 : 0)} %`;
}
