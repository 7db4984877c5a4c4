// The lens: what the model would draw if it stopped at a layer, a column for each layer and a row for each lens.

import { make, paintImage, setText } from "../dom.js";
import { svgDocument, svgImage, svgText } from "../saving.js";

const ALL = "raw and tuned";

export default function lensPane(root, pane, arrays, store, ui) {
  const { lenses, layers } = pane;
  const columns = ["given", ...layers.map((layer) => `layer ${layer}`), "image"];
  const bar = make("div", { class: "wb-bar" });
  if (store.options.lens.length > 1) bar.append(ui.toggle({ option: "lens", label: "lens" }));
  const cells = (className) => columns.map((text) => make("div", { class: className }, text));
  const heads = cells("wb-head");
  const lanes = lenses.map((title) => {
    const canvases = columns.map(() => make("canvas", { role: "img" }));
    const errors = columns.map(() => make("div", { class: "wb-head" }));
    const lane = make(
      "div",
      { class: "wb-lane", role: "group", "aria-label": `${title} lens` },
      make("div", { class: "wb-lane-name" }, title),
      ...canvases,
    );
    const below = make(
      "div",
      { class: "wb-lane wb-heads", "aria-hidden": "true" },
      make("div", { class: "wb-lane-name" }, "error"),
      ...errors,
    );
    return { title, canvases, errors, lane, below };
  });
  const top = make("div", { class: "wb-lane wb-heads", "aria-hidden": "true" });
  top.append(make("div", { class: "wb-lane-name" }), ...heads);
  const table = make("div", { class: "wb-samples" }, top, ...lanes.flatMap(({ lane, below }) => [lane, below]));
  table.style.setProperty("--wb-columns", columns.length);
  const note = make("p", { class: "wb-note" });
  root.append(bar, table, note);

  const isShown = (title, state) => state.lens === title || state.lens === ALL;

  function update(state) {
    const [t, image] = [store.index("t", state), store.index("image", state)];
    const time = store.axes.t ? `t ${store.text("t", t)}` : "";
    const errors = arrays("errors");
    setText(heads.at(-1), pane.names[image]);
    lanes.forEach(({ title, canvases, errors: texts, lane, below }, lens) => {
      const hidden = !isShown(title, state);
      lane.hidden = hidden;
      below.hidden = hidden;
      if (hidden) return;
      canvases.forEach((canvas, column) => {
        if (column === 0) paintImage(canvas, arrays("noisy"), [t, image]);
        else if (column > layers.length) paintImage(canvas, arrays("images"), [image]);
        else paintImage(canvas, arrays("predicted"), [lens, t, column - 1, image]);
        const layer = column > 0 && column <= layers.length;
        const error = layer ? errorText(errors.data[(lens * errors.shape[1] + t) * layers.length + column - 1]) : "";
        setText(texts[column], error);
        const what = layer ? `${title} lens, layer ${layers[column - 1]}, error ${error}` : columns[column];
        canvas.setAttribute("aria-label", [pane.names[image], what, time].filter(Boolean).join(", "));
      });
    });
    setText(note, `${time && `${time}. `}${pane.measured}`);
  }

  function picture() {
    const shown = lanes.filter(({ lane }) => !lane.hidden);
    const [size, gap, left, start] = [64, 4, 60, 24];
    const tall = size + 18;
    const middle = (column) => left + column * (size + gap) + size / 2;
    const parts = heads.map((head, column) =>
      svgText(head.textContent, middle(column), start - 8, { size: 9, anchor: "middle" }),
    );
    shown.forEach(({ title, canvases, errors }, row) => {
      const y = start + row * tall;
      parts.push(svgText(title, left - 8, y + size / 2 + 4, { anchor: "end" }));
      canvases.forEach((canvas, column) => {
        parts.push(svgImage(canvas, left + column * (size + gap), y, size, size));
        const style = { size: 9, anchor: "middle" };
        parts.push(svgText(errors[column].textContent, middle(column), y + size + 11, style));
      });
    });
    const below = start + shown.length * tall + 12;
    parts.push(svgText(note.textContent, 8, below, { size: 10 }));
    return { svg: svgDocument(left + columns.length * (size + gap) + 8, below + 10, parts.join("")) };
  }

  return { update, picture };
}

function errorText(error) {
  return error.toFixed(error >= 0.1 ? 2 : 3);
}
