// Token maps: images and the colours of their tokens, one column per layer or per source.

import { heatColour, viridisGradient } from "../colours.js";
import { mapColumn, mapPixels } from "../components.js";
import { make, paintImage, paintPixels, sizedLines } from "../dom.js";
import { nearestIndex, percent, plain } from "../numbers.js";
import { svgDocument, svgText, svgTile, wrapped } from "../saving.js";
import { leftOut, leftOutText, outlinePath, similarities, similarityPixels } from "../similarity.js";
import { cosineRamp, createTokens, mountMap } from "../tokens.js";

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
  rgb: " Red, green and blue need full colour vision; “single” and “three” do not.",
  single: " Viridis: first component, low to high.",
  three: " Viridis, low to high; rows are the first, second and third component.",
};

const NEAREST = "the nearest that is stored";

const LETTERS = 20; // that are as wide as a map of a saved picture

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
  const outlines = new Map(); // by image
  const similar = arrays.has("ratio") ? createSimilarity() : null;
  for (const option of ["basis", "colour", "show", "pictures"]) {
    if (store.options[option]?.length > 1) bar.append(ui.toggle({ option }));
  }
  root.append(
    bar,
    ...(similar ? [similar.bar] : []),
    grid,
    make("div", { class: "wb-either" }, note, ...(similar ? [similar.note] : [])),
  );

  // The bar of the tokens, and a note that takes the place of the other while tokens are held.
  function createSimilarity() {
    const shown = { values: [], note: make("p", { class: "wb-note wb-tk-off" }) };
    shown.note.textContent = similarityNote();
    const tokens = createTokens(root, grid, {
      pane,
      store,
      ui,
      nameOf: imageName,
      titleOf: (tile) => tile.title,
      valueAt: (tile, token) => shown.values[tile.number]?.[tile.image * arrays("ratio").shape.at(-1) + token],
    });
    return Object.assign(shown, tokens);
  }

  function similarityNote() {
    const across = pane.columns === "sources" ? " Each column compares tokens of one run or target." : "";
    return (
      `Cosine similarity of f_g, not centred, to the framed token.${across} The page has ${arrays("unit_u").shape[0]}` +
      " directions of f_u and f_c at each layer and t; left out is the share of |f_g|² that these and rounding omit."
    );
  }

  function columns(state) {
    const [source, step, t, layer] = ["source", "step", "t", "layer"].map((name) => store.index(name, state));
    if (pane.columns === "sources") {
      return Array.from({ length: store.count("source") }, (_, each) => ({
        id: `source ${each}`,
        at: [each, step, t, layer],
        title: store.axes.source ? store.text("source", each) : pane.title,
      }));
    }
    // The layer of the slider has its own fixed column, the first, unless every layer is shown already.
    const all = store.count("layer") <= pane.layers.length;
    const shown = pane.layers.map((each) => ({
      id: `layer ${each}`,
      at: [source, step, t, each],
      chosen: all && each === layer && pane.layers.length > 1,
    }));
    if (!all) shown.unshift({ id: "slider", at: [source, step, t, layer], chosen: true });
    return shown.map((column) => ({
      ...column,
      title: layerTitle(column, store.axes.layer && store.text("layer", column.at[3])),
      most: layerTitle({ ...column, chosen: true }, store.axes.layer && store.longest("layer")),
    }));
  }

  function layerTitle({ chosen }, layer) {
    return layer === undefined ? pane.title : `layer ${layer}${chosen ? " (slider)" : ""}`;
  }

  // The rows: the image of the slider, all images, or those selected in another pane.
  function rows(state) {
    const all = [...Array(images.shape[0]).keys()];
    const marked = all.filter((image) => pane.rows && state.selection.includes(pane.rows[image]));
    const shown = state.show !== "all images" ? [store.index("image", state)] : marked.length ? marked : all;
    const parts = state.colour === "three" ? [0, 1, 2] : [state.colour === "single" ? 0 : null];
    return shown.flatMap((image) => parts.map((component) => ({ image, component })));
  }

  // The columns before the maps: the image and, at this t, what the model was given and what it predicts at the nearest
  // stop. `of` is the array with the picture of each image.
  function pictures(state) {
    const image = { id: "image", of: images, at: [] };
    if (!arrays.has("noisy") || state.pictures === "image") return [image];
    const [step, t] = ["step", "t"].map((name) => store.index(name, state));
    const [runs, noisy] = [pane.runs ?? [], arrays("noisy")];
    const stop = nearestIndex(pane.stops, state.w);
    const near = state.w !== undefined && Math.abs(pane.stops[stop] - state.w) >= 1e-6;
    const time = store.axes.t ? `t ${store.text("t", state.t)}` : "t";
    const longestTime = store.axes.t ? `t ${store.longest("t")}` : "t";
    const longestStop = pane.stops
      .map((of) => plain(of))
      .reduce((one, other) => (other.length > one.length ? other : one));
    const given = Array.from({ length: noisy.shape[0] }, (_, run) => ({
      id: `given ${run}`,
      of: noisy,
      at: [run, t],
      title: noisy.shape[0] > 1 ? `what ${runs[run]} was given` : "what the model was given",
      values: time,
      most: longestTime,
    }));
    const all = pane.columns === "sources" && runs.length;
    const predicting = all ? [...runs.keys()] : [store.index("source", state)];
    const predicted = predicting.map((run) => ({
      id: `predicted ${run}`,
      of: arrays("predicted"),
      at: [run, step, t, stop],
      title: runs.length ? `what ${runs[run]} predicts` : "what it predicts",
      values: `${time}, w ${plain(pane.stops[stop])}`,
      most: `${longestTime}, w ${longestStop}`,
      near,
    }));
    return [image, ...given, ...predicted];
  }

  function computed(column, state) {
    const key = JSON.stringify([column.at, state.w, state.basis]);
    const cached = cache.get(column.id);
    if (cached?.key === key) return cached.made;
    const made = mapColumn(arrays, pane, column.at, state.w ?? 0, state.basis);
    cache.set(column.id, { key, made });
    return made;
  }

  // t and w, if the source depends on them, and the longest text of these.
  function tAndW(state, source) {
    const names = ["t", "w"].filter((name) => store.axes[name] && !pane.still[name].includes(source));
    const texts = [(name) => store.text(name, state[name]), store.longest.bind(store)];
    return texts.map((text) => names.map((name) => `${name} ${text(name)}`).join(", "));
  }

  // Share of the variance that the colours show, all three components (null) or one of them; for a refit, also the share
  // outside its subspace.
  function shares({ shares: each, of, outside }, component = null) {
    const share = component === null ? each[0] + each[1] + each[2] : each[component];
    const shown = `${percent(share)} ${SHARE_OF[of ?? "all"]}`;
    return outside === undefined ? [shown] : [shown, `${percent(outside)} outside subspace`];
  }

  // The shares of what is drawn: of the one component, or of three below each other.
  function sharesShown(made, colour) {
    if (colour !== "three") return shares(made, colour === "single" ? 0 : null);
    const each = made.shares.map(percent).join(", ");
    return [`${each} ${SHARE_OF[made.of ?? "all"]}`, ...shares(made).slice(1)];
  }

  function imageName(image) {
    return `image ${image + 1} of ${images.shape[0]}${names[image] ? `: ${names[image]}` : ""}`;
  }

  // Similarities of all tokens to the held ones.
  function compared(column, state) {
    const tokens = state.tokens.map(([image, token]) => [store.axes.image?.values.indexOf(image) ?? image, token]);
    const key = JSON.stringify([column.at, state.w, tokens, state.several]);
    const cached = cache.get(`${column.id} tokens`);
    if (cached?.key === key) return cached.made;
    const made = similarities(arrays, column.at, state.w ?? 0, tokens, state.several);
    cache.set(`${column.id} tokens`, { key, made });
    return made;
  }

  function outlineOf(image) {
    if (!arrays.has("objects")) return "";
    if (!outlines.has(image)) {
      const { data, shape } = arrays("objects");
      const [tall, wide] = shape.slice(1);
      const mask = data.subarray(image * tall * wide, (image + 1) * tall * wide);
      outlines.set(image, outlinePath(mask, tall, wide, pane.side));
    }
    return outlines.get(image);
  }

  // Rows of tiles: of a tile with a map, `number` is that of its column among the maps.
  function build(beside, wanted, shown) {
    const key = JSON.stringify([[...beside, ...wanted].map(({ id }) => id), shown]);
    if (key === built) return;
    built = key;
    const cell = (image, component, number) => {
      const canvas = make("canvas", { role: "img" });
      const [head, caption] = [make("div", { class: "wb-tile-head" }), make("figcaption")];
      const mounted = mountMap(canvas, pane.side, component > 0 && number < 0 ? "" : outlineOf(image));
      const figure = make("figure", { class: "wb-tile" }, head, mounted.map, caption);
      return { ...mounted, canvas, head, caption, figure, image, component, number };
    };
    tiles = shown.map(({ image, component }) =>
      Array.from({ length: beside.length + wanted.length }, (_, at) => cell(image, component, at - beside.length)),
    );
    grid.replaceChildren(...tiles.flat().map(({ figure }) => figure));
    grid.classList.toggle("wb-wrap", shown.length === 1);
    grid.classList.toggle("wb-wide", beside.length > 1);
    grid.style.setProperty("--wb-columns", beside.length + wanted.length);
    grid.style.setProperty("--wb-folded", Math.max(beside.length, wanted.length));
    for (const row of tiles) {
      row[0].figure.classList.add("wb-first");
      row[beside.length].figure.classList.add("wb-first");
    }
    similar?.build(tiles);
  }

  // Pictures of the images; those of further components are left empty.
  function paintPictures(beside, state) {
    beside.forEach(({ of, at, title, values, most, near }, column) => {
      for (const row of tiles) {
        const { canvas, image, component } = row[column];
        const name = imageName(image) + (title ? `; ${title}, ${values}${near ? `, ${NEAREST}` : ""}` : "");
        row[column].title = title;
        const key = `${at}`;
        if (canvas.dataset.at === key && canvas.getAttribute("aria-label") === name) continue;
        if (canvas.dataset.at !== key) paintImage(canvas, of, [...at, image], component > 0);
        canvas.dataset.at = key;
        canvas.setAttribute("aria-label", component > 0 ? "" : name);
        if (component > 0) canvas.setAttribute("aria-hidden", "true");
      }
      const { head } = tiles[0][column];
      const { caption } = tiles.at(-1)[column];
      const first = state.show === "all images" ? "images" : imageName(tiles[0][0].image);
      const texts = title ? [[title], [values, most]] : [[first]];
      const key = [...texts.map(([text]) => text), near].join("\n");
      if (head.dataset.text === key) return;
      head.dataset.text = key;
      sizedLines(head, ...texts);
      // It keeps its place, so that nothing moves with w.
      if (near !== undefined)
        caption.replaceChildren(
          make("span", { class: near ? "" : "wb-tk-off" }, make("span", { class: "wb-part" }, NEAREST)),
        );
    });
  }

  function update(state, changed) {
    const [beside, wanted, shown] = [pictures(state), columns(state), rows(state)];
    build(beside, wanted, shown);
    const held = similar && state.tokens.length > 0;
    const last = shown.length - 1;
    paintPictures(beside, state);
    wanted.forEach((column, index) => {
      const [values, most] = tAndW(state, column.at[0]);
      const of = [column.title, values].filter(Boolean).join(", ");
      const at = beside.length + index;
      if (held) paintSimilarities(column, state, at, of);
      else paintColours(column, state, at, of);
      tiles.forEach((row) => {
        row[at].title = column.title;
      });
      const { head } = tiles[0][at];
      sizedLines(head, [column.title, column.most], [values, most]);
      head.classList.toggle("wb-chosen", Boolean(column.chosen));
      const { caption } = tiles[last][at];
      caption.replaceChildren(sharesOf(column, state, held));
      if (state.colour === "single" && state.basis !== "per map") {
        caption.append(held ? cosineRamp(pane.cosines) : ramp(...computed(column, state).limits[0][0]));
      }
    });
    note.textContent =
      BASIS_NOTES[state.basis === "fixed" ? fixed : state.basis] +
      COLOUR_NOTES[state.colour] +
      selected(state) +
      noiseNote(beside);
    note.classList.toggle("wb-tk-off", Boolean(held));
    similar?.note.classList.toggle("wb-tk-off", !held);
    similar?.update(state, changed);
  }

  function paintColours(column, state, at, of) {
    const made = computed(column, state);
    if (similar) similar.values[tiles[0][at].number] = null;
    for (const row of tiles) {
      const { canvas, image, component } = row[at];
      canvas.hidden = false;
      paintPixels(canvas, mapPixels(made, image, made.m, component), pane.side);
      const what = component === null ? of : of.replace(column.title, `${column.title}, component ${component + 1}`);
      canvas.setAttribute(
        "aria-label",
        `${imageName(image)}; token map of ${what}; ${shares(made, component).join(", ")}`,
      );
    }
  }

  function paintSimilarities(column, state, at, of) {
    const values = compared(column, state);
    similar.values[tiles[0][at].number] = values;
    for (const row of tiles) {
      const { canvas, image, component } = row[at];
      canvas.hidden = component > 0; // one map of each image
      paintPixels(canvas, similarityPixels(values, image, pane.side ** 2, pane.cosines), pane.side);
      canvas.setAttribute("aria-label", `${imageName(image)}, ${of}. ${similar.heldText(state)}`);
    }
  }

  // The shares that colours show and that similarities leave out, in one place, so that a click moves nothing. While
  // tokens are held, the former stay as they were.
  function sharesOf(column, state, held) {
    const block = (texts, shown) =>
      make(
        "span",
        { class: shown ? "" : "wb-tk-off" },
        ...texts.map((text) => make("span", { class: "wb-part" }, text)),
      );
    const made = held ? (cache.get(column.id)?.made ?? computed(column, state)) : computed(column, state);
    const variance = sharesShown(made, state.colour);
    if (!similar) return block(variance, true);
    const left = `${leftOutText(leftOut(arrays, column.at, state.w ?? 0))} left out`;
    return make("span", { class: "wb-either" }, block(variance, !held), block([left], held));
  }

  function noiseNote(beside) {
    if (beside.length === 1) return "";
    const known = pane.stops.map((stop) => plain(stop));
    const at = known.length > 1 ? `${known.slice(0, -1).join(", ")} and ${known.at(-1)}` : known[0];
    return (
      " What the model was given is the image with the noise of this t, x_t; what it predicts is the clean image," +
      ` z_hat = x_t - t v; both are decoded. Predictions are stored at w = ${at}.`
    );
  }

  function selected(state) {
    if (!pane.rows || !state.selection.length || state.show !== "all images") return "";
    const count = pane.rows.filter((row) => state.selection.includes(row)).length;
    if (!count) return " None of the selected images has token maps; all are shown.";
    return ` Shown: ${count} of the ${state.selection.length} selected.`;
  }

  // For a saved picture: layers in order, that of the slider only once, even if it is also another column.
  function picture() {
    const [size, gap, left, line] = [120, 8, 8, 13];
    const state = store.get();
    const layers = columns(state).map(({ at }) => (pane.columns === "sources" ? 0 : at[3]));
    const twice = columns(state).findIndex(({ id, at }) => id === "slider" && pane.layers.includes(at[3]));
    const order = tiles[0]
      .map(({ number }, at) => ({ number, at }))
      .filter(({ number }) => twice < 0 || number !== twice)
      .sort((one, other) => (layers[one.number] ?? -1) - (layers[other.number] ?? -1) || one.at - other.at)
      .map(({ at }) => at);
    const arranged = tiles.map((row) => order.map((at) => row[at]));
    const shown = arranged.filter((row) => row.some(({ canvas }) => !canvas.hidden));
    const heads = arranged[0].map(({ head }) => {
      const lines = [...head.querySelectorAll(".wb-line")].map((of) => of.textContent.replace(" (slider)", ""));
      return lines.flatMap((text) => wrapped(text, LETTERS));
    });
    const feet = arranged.at(-1).map(({ caption }) => {
      const parts = [...caption.querySelectorAll(":not(.wb-tk-off) > .wb-part")].map((of) => of.textContent);
      const texts = parts.flatMap((text) => wrapped(text, LETTERS));
      const scale = caption.querySelector(".wb-ramp:not(.wb-tk-ramp)");
      return scale ? [...texts, `${scale.dataset.low} to ${scale.dataset.high}`] : texts;
    });
    const longest = (texts) => Math.max(...texts.map((of) => of.length));
    const top = 8 + line * longest(heads);
    const below = top + shown.length * (size + gap) + 6;
    const width = 2 * left + shown[0].length * (size + gap) - gap;
    const parts = shown.flatMap((row, y) =>
      row.map((tile, x) =>
        tile.canvas.hidden ? "" : svgTile(tile, left + x * (size + gap), top + y * (size + gap), size),
      ),
    );
    const put = (texts, x, y, bold) =>
      texts.forEach((text, at) =>
        parts.push(
          svgText(text, left + x * (size + gap), y + at * line, { size: 10, weight: bold && !at ? 700 : 400 }),
        ),
      );
    heads.forEach((texts, x) => put(texts, x, top - 6 - line * (texts.length - 1), true));
    feet.forEach((texts, x) => put(texts, x, below + 4, false));
    const foot = below + line * longest(feet);
    const legend = state.tokens.length && similar ? svgLegend(similar.heldText(state), left, foot + 4) : "";
    return {
      svg: svgDocument(legend ? Math.max(width, 360) : width, foot + (legend ? 3 : 1) * line, parts.join("") + legend),
    };
  }

  // What the colours of similarities are, with their bar.
  function svgLegend(text, x, y) {
    const steps = 32;
    const bar = Array.from({ length: steps }, (_, i) => {
      const colour = heatColour((i + 0.5) / steps, false);
      return `<rect x="${x + 28 + 3 * i}" y="${y}" width="3.2" height="9" fill="rgb(${colour})"/>`;
    });
    const [low, high] = pane.cosines;
    const words = svgText(`≤ ${low}`, x, y + 9, { size: 10 }) + svgText(String(high), x + 130, y + 9, { size: 10 });
    return `${bar.join("")}${words}${svgText(text, x, y + 24, { size: 10 })}`;
  }

  return { update, picture };
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
