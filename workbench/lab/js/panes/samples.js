// Samples: one column per seed, so that all rows start from the same noise. Rows are steps of one source, or sources
// at one step.

import { make, paintImage } from "../dom.js";
import { svgDocument, svgImage, svgText } from "../saving.js";

export default function samplesPane(root, pane, arrays, store, ui) {
  const images = arrays("images");
  const seeds = images.shape[3];
  const names = pane.names ?? [];
  const bar = make("div", { class: "wb-bar" });
  const table = make("div", { class: "wb-samples" });
  const note = make("p", { class: "wb-note" });
  if (store.options.rows?.length > 1) bar.append(ui.toggle({ option: "rows" }));
  root.append(bar, table, note);
  let built = "";
  let lanes = [];

  const rowAxis = (state) => (state.rows === "sources" ? "source" : "step");
  const seedName = (seed) => `seed ${pane.seeds?.[seed] ?? seed}${names[seed] ? `, ${names[seed]}` : ""}`;

  function rows(state) {
    const axis = rowAxis(state);
    return Array.from({ length: store.count(axis) }, (_, each) => ({
      title: store.axes[axis] ? (axis === "step" ? "step " : "") + store.text(axis, each) : pane.title,
      chosen: store.axes[axis] !== undefined && each === state[axis],
      at: axis === "source" ? [each, store.index("step", state)] : [store.index("source", state), each],
    }));
  }

  function build(wanted) {
    const key = JSON.stringify(wanted.map(({ title }) => title));
    if (key === built) return;
    built = key;
    table.style.setProperty("--wb-columns", seeds);
    lanes = wanted.map(({ title }) => {
      const canvases = Array.from({ length: seeds }, () => make("canvas", { role: "img" }));
      const name = make("div", { class: "wb-lane-name" }, title);
      const lane = make("div", { class: "wb-lane", role: "group", "aria-label": title }, name, ...canvases);
      return { name, canvases, lane };
    });
    const heads = make("div", { class: "wb-lane wb-heads", "aria-hidden": "true" });
    heads.append(
      make("div", { class: "wb-lane-name" }),
      ...names.map((name) => make("div", { class: "wb-head" }, name)),
    );
    table.replaceChildren(...(names.length ? [heads] : []), ...lanes.map(({ lane }) => lane));
  }

  function update(state) {
    const wanted = rows(state);
    build(wanted);
    const guidance = store.axes.guidance
      ? `${store.axes.guidance.label} ${store.text("guidance", state.guidance)}`
      : "";
    wanted.forEach(({ at, title, chosen }, row) => {
      lanes[row].lane.classList.toggle("wb-chosen", chosen);
      lanes[row].canvases.forEach((canvas, seed) => {
        paintImage(canvas, images, [...at, store.index("guidance", state), seed]);
        canvas.setAttribute("aria-label", `sample of ${title}, ${seedName(seed)}${guidance && `, ${guidance}`}`);
      });
    });
    const other = rowAxis(state) === "source" ? "step" : "source";
    const fixed = store.axes[other] ? `${store.axes[other].label} ${store.text(other, state[other])}` : "";
    const constant = [fixed, guidance].filter(Boolean).join(", ");
    note.textContent = `${constant && `${constant}. `}A column has the same noise and class in every row.`;
  }

  function picture() {
    const longest = Math.max(...lanes.map(({ name }) => name.textContent.length));
    const [size, gap, left, top] = [64, 4, 20 + 6.2 * longest, names.length ? 24 : 8];
    const parts = lanes.flatMap(({ name, canvases }, y) => [
      svgText(name.textContent, left - 8, top + y * (size + gap) + size / 2 + 4, { anchor: "end" }),
      ...canvases.map((canvas, x) => svgImage(canvas, left + x * (size + gap), top + y * (size + gap), size, size)),
    ]);
    const head = { size: 9, anchor: "middle" };
    names.forEach((text, x) => parts.push(svgText(text, left + x * (size + gap) + size / 2, top - 8, head)));
    const below = top + lanes.length * (size + gap) + 12;
    parts.push(svgText(note.textContent, 8, below, { size: 10 }));
    return { svg: svgDocument(left + seeds * (size + gap) + 8, below + 10, parts.join("")) };
  }

  return { update, picture };
}
