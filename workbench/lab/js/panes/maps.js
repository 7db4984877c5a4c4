// Token maps: images and the colours of their tokens, one column per layer or per source.

import { viridisGradient } from "../colours.js";
import { mapColumn, mapPixels } from "../components.js";
import { make, paintImage, paintPixels } from "../dom.js";
import { percent } from "../numbers.js";
import { svgDocument, svgImage, svgText } from "../saving.js";

const BASIS_NOTES = {
  own:
    "Each column has its own PCA basis (a run has one for each layer), Procrustes-aligned with the first column:" +
    " colours are comparable within a column, at every t and w, and only approximately across columns.",
  joint:
    "One PCA basis for each layer, the same in all columns: colours are comparable across columns and images, at" +
    " every t and w.",
  fixed: "One PCA basis for each layer: within a column, colours are comparable across images and at every t and w.",
  refit:
    "PCA fitted again at this t and w, Procrustes-aligned with the fixed basis so that colours keep their meaning.",
  "per map": "Each map has its own PCA and full colour range: colours of two maps cannot be compared.",
  foreground:
    "The first component separates foreground from background (black); the colours are a PCA of the foreground.",
};

const COLOUR_NOTES = {
  rgb: "",
  single: " Viridis: first component, low to high.",
  three: " Viridis, low to high; rows are the first, second and third component.",
};

const SHARE_OF = { all: "of variance", subspace: "of the subspace", foreground: "of foreground" };

export default function mapsPane(root, pane, arrays, store, ui) {
  const images = arrays("images");
  const names = pane.names ?? [];
  const cache = new Map(); // by column: its inputs and the result
  const fixed = pane.columns !== "sources" ? "fixed" : pane.joint ? "joint" : "own";
  let built = "";
  let tiles = [];

  const bar = make("div", { class: "wb-bar" });
  const grid = make("div", { class: "wb-grid" });
  const note = make("p", { class: "wb-note" });
  for (const [option, label] of [
    ["basis", "basis"],
    ["colour", "colours"],
    ["show", "show"],
  ]) {
    if (store.options[option]?.length > 1) bar.append(ui.toggle({ option, label }));
  }
  root.append(bar, grid, note);

  function columns(state) {
    const [source, step, t, layer] = ["source", "step", "t", "layer"].map((name) => store.index(name, state));
    if (pane.columns === "sources") {
      return Array.from({ length: store.count("source") }, (_, each) => ({
        id: `source ${each}`,
        at: [each, step, t, layer],
        title: store.axes.source ? store.text("source", each) : pane.title,
      }));
    }
    // The layer of the slider has its own fixed column, unless every layer is shown already.
    const all = store.count("layer") <= pane.layers.length;
    const shown = pane.layers.map((each) => ({
      id: `layer ${each}`,
      at: [source, step, t, each],
      chosen: all && each === layer && pane.layers.length > 1,
    }));
    if (!all) shown.push({ id: "slider", at: [source, step, t, layer], chosen: true });
    return shown.map((column) => ({ ...column, title: layerTitle(column) }));
  }

  function layerTitle({ at, chosen }) {
    if (!store.axes.layer) return pane.title;
    return `layer ${store.text("layer", at[3])}${chosen ? " (slider)" : ""}`;
  }

  // The rows: the image of the slider, all images, or those selected in another pane.
  function rows(state) {
    const all = [...Array(images.shape[0]).keys()];
    const marked = all.filter((image) => pane.rows && state.selection.includes(pane.rows[image]));
    const shown = state.show !== "all images" ? [store.index("image", state)] : marked.length ? marked : all;
    const parts = state.colour === "three" ? [0, 1, 2] : [state.colour === "single" ? 0 : null];
    return shown.flatMap((image) => parts.map((component) => ({ image, component })));
  }

  function computed(column, state) {
    const key = JSON.stringify([column.at, state.w, state.basis]);
    const cached = cache.get(column.id);
    if (cached?.key === key) return cached.made;
    const made = mapColumn(arrays, pane, column.at, state.w ?? 0, state.basis);
    cache.set(column.id, { key, made });
    return made;
  }

  // t and w, if the source depends on them.
  function tAndW(state, source) {
    const names = ["t", "w"].filter((name) => store.axes[name] && !pane.still[name].includes(source));
    return names.map((name) => `${name} ${store.text(name, state[name])}`).join(", ");
  }

  // Share of the variance that the colours show; for a refit, also the share outside its subspace.
  function shares({ share, of, outside }) {
    const shown = `${percent(share)} ${SHARE_OF[of ?? "all"]}`;
    return outside === undefined ? [shown] : [shown, `${percent(outside)} outside subspace`];
  }

  function imageName(image) {
    const number = store.axes.image ? store.text("image", image) : image;
    return names[image] ? `image ${number}, ${names[image]}` : `image ${number}`;
  }

  function build(wanted, shown) {
    const key = JSON.stringify([wanted.map(({ id }) => id), shown]);
    if (key === built) return;
    built = key;
    const cell = () => {
      const canvas = make("canvas", { role: "img" });
      const caption = make("figcaption");
      return { canvas, caption, figure: make("figure", { class: "wb-tile" }, canvas, caption) };
    };
    tiles = shown.map(() => [cell(), ...wanted.map(cell)]);
    grid.replaceChildren(...tiles.flat().map(({ figure }) => figure));
    grid.classList.toggle("wb-wrap", shown.length === 1);
    grid.style.setProperty("--wb-columns", wanted.length + 1);
    tiles.forEach((row, index) => {
      const { image, component } = shown[index];
      paintImage(row[0].canvas, images, [image], component > 0);
      row[0].canvas.setAttribute("aria-label", component > 0 ? "" : imageName(image));
      if (component > 0) row[0].canvas.setAttribute("aria-hidden", "true");
    });
  }

  function update(state) {
    const wanted = columns(state);
    const shown = rows(state);
    build(wanted, shown);
    const last = shown.length - 1;
    const first = state.show === "all images" ? "images" : imageName(shown[0].image);
    tiles[last][0].caption.replaceChildren(...lines(first));
    wanted.forEach((column, index) => {
      const made = computed(column, state);
      const variance = shares(made);
      const values = tAndW(state, column.at[0]);
      shown.forEach(({ image, component }, row) => {
        const { canvas } = tiles[row][index + 1];
        paintPixels(canvas, mapPixels(made, image, made.m, component), pane.side);
        const part = component === null ? "" : `component ${component + 1}`;
        const what = [column.title, part, values].filter(Boolean).join(", ");
        canvas.setAttribute("aria-label", `${imageName(image)}: token map of ${what}; ${variance.join(", ")}`);
      });
      const caption = tiles[last][index + 1].caption;
      caption.replaceChildren(...lines(column.title, values, ...variance));
      caption.classList.toggle("wb-chosen", Boolean(column.chosen));
      if (state.colour === "single" && state.basis !== "per map") caption.append(ramp(...made.limits[0][0]));
    });
    note.textContent =
      BASIS_NOTES[state.basis === "fixed" ? fixed : state.basis] + COLOUR_NOTES[state.colour] + selected(state);
  }

  function selected(state) {
    if (!pane.rows || !state.selection.length || state.show !== "all images") return "";
    const count = pane.rows.filter((row) => state.selection.includes(row)).length;
    if (!count) return " None of the selected images has token maps; all are shown.";
    return ` Shown: ${count} of the ${state.selection.length} selected.`;
  }

  // For a saved picture: the layer of the slider only once, even if it is also another column.
  function picture() {
    const [size, gap, left, top] = [120, 8, 8, 8];
    const twice = columns(store.get()).findIndex(({ id, at }) => id === "slider" && pane.layers.includes(at[3]));
    const shown = tiles.map((row) => row.filter((_, x) => twice < 0 || x !== twice + 1));
    const width = 2 * left + shown[0].length * (size + gap) - gap;
    const parts = shown.flatMap((row, y) =>
      row.map(({ canvas }, x) =>
        canvas.hidden ? "" : svgImage(canvas, left + x * (size + gap), top + y * (size + gap), size, size),
      ),
    );
    const below = top + shown.length * (size + gap) + 6;
    shown.at(-1).forEach(({ caption }, x) => {
      const texts = [...caption.querySelectorAll(".wb-line")].map((line) => line.textContent.replace(" (slider)", ""));
      const scale = caption.querySelector(".wb-ramp");
      if (scale) texts.push(`${scale.dataset.low} to ${scale.dataset.high}`);
      texts.forEach((text, line) =>
        parts.push(
          svgText(text, left + x * (size + gap), below + line * 13 + 4, { size: 10, weight: line ? 400 : 700 }),
        ),
      );
    });
    return { svg: svgDocument(width, below + 5 * 13, parts.join("")) };
  }

  return { update, picture };
}

// The lines of a caption; the first is emphasised.
function lines(...texts) {
  return texts.filter(Boolean).map((text) => make("span", { class: "wb-line" }, text));
}

// The colour bar of viridis.
function ramp(low, high) {
  const [least, most] = [low, high].map((value) => String(Number(value.toPrecision(2))));
  const element = make(
    "span",
    { class: "wb-ramp", role: "img", "aria-label": `viridis from ${least} to ${most}` },
    make("i", { style: `background:${viridisGradient()}` }),
    make("span", {}, least),
    make("span", {}, most),
  );
  Object.assign(element.dataset, { low: least, high: most });
  return element;
}
