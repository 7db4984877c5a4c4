// Mounts a view: sliders and lists of the axes, the panes, the status line and the buttons.

import { unpack } from "./arrays.js";
import { createFrame, followSurroundings } from "./controls.js";
import { make, unclip } from "./dom.js";
import { openPage } from "./page.js";
import { loadPanes } from "./panes.js";
import { codeOf, copyText, download, rasterised, stacked } from "./saving.js";
import { createSteps } from "./steps.js";
import { createStore } from "./store.js";
import * as tools from "./tools.js";

async function render({ model, el }) {
  const meta = model.get("meta");
  const drawers = await loadPanes(meta);
  const store = createStore(meta, model.get("state"));
  const stops = [];
  const { root, status, say, fail, ui } = createFrame(store);
  el.replaceChildren(root);

  // No choice of source if every pane shows all sources.
  const used = (name) => name !== "source" || meta.panes.some((pane) => pane.columns !== "sources");
  const sliders = Object.keys(meta.axes).filter((name) => meta.axes[name].values.length > 1 && used(name));
  const axes = make("div", { class: "wb-axes", role: "group", "aria-label": "What is shown" });
  const named = (axis) => typeof meta.axes[axis].values[0] === "string";
  axes.append(...sliders.map((axis) => (named(axis) ? listOf(axis, store, ui) : ui.slider({ axis }))));
  const stage = make("div", { class: "wb-panes" });
  stage.classList.toggle("wb-several", meta.panes.length > 1);
  stage.classList.toggle("wb-three", meta.panes.length === 3);
  const list = meta.steps?.length ? document.getElementById("workbench-view-steps") : null;
  const steps = list ? [createSteps(meta.steps, list, store, ui)] : [];
  root.append(make("h2", {}, meta.title), ...steps, ...(sliders.length ? [axes] : []), stage);

  const panes = meta.panes.map((pane, index) => mountPane(stage, pane, index, { drawers, meta, model, store, ui }));
  root.append(make("div", { class: "wb-foot" }, buttons({ meta, model, store, ui, panes }), status));
  if (meta.offline) describeControls(root);

  let failing = false;
  const update = (state, changed) => {
    ui.refresh();
    const errors = panes.flatMap(({ pane, shown }) => {
      try {
        shown?.update(state, changed);
        return [];
      } catch (error) {
        return [[error, pane.title]];
      }
    });
    if (failing && !errors.length) say("");
    failing = errors.length > 0;
    errors.forEach(([error, title]) => fail(error, title));
  };
  update(store.get(), new Set([...Object.keys(store.get()), "theme", "size"]));
  stops.push(
    store.subscribe(update),
    synchronise(model, store, say),
    receive(model, ui),
    followSurroundings(root, store),
    unclip(root),
  );
  return () => stops.forEach((stop) => stop());
}

// A page says below the view what its controls mean; screen readers read it with the control.
function describeControls(root) {
  for (const control of root.querySelectorAll("[data-axis], [data-option]")) {
    const id = `about-${(control.dataset.axis ?? control.dataset.option).replace(/\W+/g, "-")}`;
    if (document.getElementById(id)) control.setAttribute("aria-describedby", id);
  }
}

// Names have no order, so they get a list instead of a slider.
function listOf(axis, store, ui) {
  const { texts } = store.axes[axis];
  return ui.select({
    axis,
    texts,
    values: [...texts.keys()],
    get: (state) => state[axis],
    set: (at) => store.set({ [axis]: at }),
  });
}

function mountPane(stage, pane, index, { drawers, meta, model, store, ui }) {
  const body = make("div", { class: `wb-body wb-${pane.kind.replace(/\W+/g, "-")}` });
  const heading = meta.panes.length > 1 || pane.title !== meta.title ? [make("h3", {}, pane.title)] : [];
  stage.append(make("section", { class: "wb-pane", "aria-label": pane.title }, ...heading, body));
  try {
    const draw = drawers[pane.kind];
    if (draw instanceof Error) throw draw;
    return { pane, shown: draw(body, pane, unpack(meta, model.get("data"), index), store, ui, tools) };
  } catch (error) {
    body.append(make("p", { class: "wb-note" }, "This picture could not be drawn; see the error below."));
    ui.fail(error, pane.title);
    return { pane };
  }
}

// Synchronises the state with the kernel, which is updated after a pause, not at every move.
function synchronise(model, store, say) {
  let timer = 0;
  const sent = () => Object.fromEntries(Object.entries(store.get()).filter(([key]) => !key.startsWith("_")));
  const leave = store.subscribe((_, changed) => {
    if (![...changed].some((key) => key in sent())) return;
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (JSON.stringify(model.get("state")) === JSON.stringify(sent())) return;
      model.set("state", sent());
      model.save_changes();
    }, 60);
  });
  const received = () => store.set(model.get("state"));
  const failed = () => model.get("error") && say(model.get("error"), true);
  model.on("change:state", received);
  model.on("change:error", failed);
  failed();
  return () => {
    clearTimeout(timer);
    leave();
    model.off("change:state", received);
    model.off("change:error", failed);
  };
}

function buttons({ meta, model, store, ui, panes }) {
  const bar = make("div", { class: "wb-bar wb-actions", role: "group", "aria-label": "Copy and save" });
  let chosen = -1;
  const wanted = () => panes.filter(({ shown }, index) => shown && (chosen < 0 || chosen === index));
  const picture = () => {
    const pictures = wanted().map(({ shown }) => shown.picture());
    if (!pictures.length) throw new Error("there is no picture to save");
    return stacked(pictures);
  };
  const name = (ending) => `${meta.name}${chosen < 0 ? "" : `-${chosen + 1}`}.${ending}`;
  const save = (ending, type, content) => async () => {
    download(await content(picture()), type, name(ending));
    ui.status(`Saved ${name(ending)}.`);
  };
  const copy = async () => {
    await copyText(codeOf(meta.code, store));
    ui.status("Copied the code of this view.");
  };
  bar.append(ui.button({ label: "Copy code", title: "Python that shows this view in a notebook", onclick: copy }));
  if (panes.length > 1) {
    const values = [-1, ...panes.keys()];
    const texts = ["all pictures", ...panes.map(({ pane }) => pane.title)];
    bar.append(
      ui.select({
        label: "Save",
        values,
        texts,
        get: () => chosen,
        set: (value) => {
          chosen = value;
        },
      }),
    );
  }
  bar.append(
    ui.button({ label: "Save PNG", onclick: save("png", "image/png", rasterised) }),
    ui.button({ label: "Save SVG", onclick: save("svg", "image/svg+xml", ({ svg }) => svg) }),
  );
  if (!meta.offline) bar.append(ui.button({ label: "Save PDF", onclick: () => askForPdf(model, store, ui, chosen) }));
  return bar;
}

// matplotlib in the kernel draws the PDF as vector graphics.
function askForPdf(model, store, ui, pane) {
  ui.status("Drawing the PDF …");
  const state = Object.fromEntries(Object.entries(store.get()).filter(([key]) => !key.startsWith("_")));
  model.send({ type: "save", pane: pane < 0 ? null : pane, state });
}

// Files drawn by the kernel arrive as messages.
function receive(model, ui) {
  const received = (message, buffers) => {
    if (message.type !== "file") return;
    download(buffers[0], "application/pdf", message.name);
    ui.status(`Saved ${message.name}.`);
  };
  model.on("msg:custom", received);
  return () => model.off("msg:custom", received);
}

openPage(render);

export default { render };
