// Images as points in the plane, by class: PCA (linear in w), t-SNE or UMAP, with a lasso and numbers by class.
const BATCH = 5000; // points above which the table follows the picture instead of moving with it

PANES.scatter = function scatter(root, pane, arrays, store, ui) {
  const points = createPoints(pane, arrays, store);
  const title = make("p", { class: "wb-caption" });
  const note = make("p", { class: "wb-note wb-sc-note" });
  const table = createClassTable(points, store, ui);
  const plot = createPlot(points, store, ui);
  const clear = ui.button({ label: "Clear selection", title: "Escape in the plot", onclick: () => plot.choose([]) });
  root.append(
    make("style", {}, SCATTER_STYLE), make("div", { class: "wb-bar" }, ...scatterChoices(points, ui), clear), title,
    make("div", { class: "wb-sc-both" }, plot.element, table.element), note,
  );
  const later = afterPaint(table.update);
  return {
    update(state, changed) {
      title.textContent = points.title(state);
      note.textContent = points.note(state);
      clear.disabled = !state.selection?.length;
      plot.update(state, changed);
      if (points.count > BATCH) later(state);
      else table.update(state);
    },
    picture() {
      plot.settle();
      table.update(store.get());
      return { svg: scatterPicture(points, plot, table, store.get(), ui) };
    },
  };
};

// What can be chosen of the method and of the labels that classes are told apart by.
function scatterChoices(points, ui) {
  const { methods, method, by, labels } = points;
  const made = [];
  if (methods.length > 1) {
    const texts = methods.map((name) => METHOD_NAMES[name]);
    made.push(ui.toggle({ option: "method", label: "method", values: methods, texts, get: method }));
  }
  if (labels.given) {
    const texts = ["true label", "given label"];
    made.push(ui.toggle({ option: "labels", label: "class", values: ["true", "given"], texts, get: by }));
  }
  return made;
}

// Calls `action` with the latest argument once the picture that is due has been painted.
function afterPaint(action) {
  let due;
  return (argument) => {
    if (due === undefined) requestAnimationFrame(() => setTimeout(() => { action(due); due = undefined; }));
    due = argument;
  };
}

const SCATTER_STYLE = `
.wb-scatter { container-type: inline-size; }
.wb-sc-both { display: grid; grid-template-columns: minmax(0, 1fr); gap: 12px 20px; align-items: start; }
@container (max-width: 420px) { .wb .wb-sc-table :is(th, td) { padding-left: 5px; padding-right: 5px; } }
@container (min-width: 700px) { .wb-sc-both { grid-template-columns: minmax(0, 1fr) minmax(345px, min(36%, 400px)); } }
.wb-sc-plot { position: relative; border: 1px solid var(--wb-line); border-radius: 6px; color: var(--wb-fg);
  background: var(--wb-bg); overflow: hidden; }
.wb .wb-sc-plot:focus-visible { outline: 2px solid var(--wb-accent); outline-offset: -1px; border-radius: 6px; }
.wb-sc-whole { position: absolute; top: 8px; right: 8px; }
.wb-sc-whole[hidden] { display: none; }
.wb-sc-plot > canvas { display: block; cursor: crosshair; touch-action: none; }
.wb-sc-over { position: absolute; left: 0; top: 0; pointer-events: none; }
.wb-sc-over polygon { fill: var(--wb-accent); fill-opacity: .12; stroke: var(--wb-accent); stroke-width: 1.5;
  stroke-dasharray: 4 3; }
.wb-sc-over circle { fill: none; stroke: var(--wb-fg); stroke-width: 2; }
.wb-sc-tip { position: absolute; pointer-events: none; display: flex; gap: 8px; align-items: center; padding: 6px 8px;
  background: var(--wb-bg); color: var(--wb-fg); border: 1px solid var(--wb-line); border-radius: 6px;
  box-shadow: 0 2px 10px rgba(0, 0, 0, .22); font-size: 12px; line-height: 1.35; white-space: nowrap; z-index: 2; }
.wb-sc-tip[hidden] { display: none; }
.wb-sc-thumb { width: 72px; height: 72px; image-rendering: pixelated; border-radius: 3px; }
.wb-sc-spoken { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.wb-sc-table { max-height: 562px; overflow: auto; }
.wb-sc-table table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
.wb-sc-table th, .wb-sc-table td { padding: 2px 6px; text-align: right; font-weight: 400; white-space: nowrap; }
.wb-sc-table thead th { position: sticky; top: 0; white-space: normal; vertical-align: bottom; line-height: 1.25;
  background: var(--wb-bg); color: var(--wb-muted); font-size: 12px; }
.wb .wb-sc-table th:first-child { text-align: left; padding-left: 0; }
.wb .wb-sc-table tbody th { white-space: normal; overflow-wrap: anywhere; }
.wb-sc-table thead tr, .wb-sc-table tbody { border-bottom: 1px solid var(--wb-line); }
.wb-sc-table button { display: flex; align-items: center; gap: 6px; width: 100%; padding: 2px 6px 2px 2px; border: 0;
  border-radius: 4px; background: none; color: inherit; font: inherit; text-align: left; cursor: pointer; }
.wb-sc-table button:hover { background: color-mix(in srgb, var(--wb-accent) 12%, transparent); }
.wb-sc-table button[aria-pressed="true"] { background: color-mix(in srgb, var(--wb-accent) 20%, transparent); }
.wb-sc-table button:focus-visible { outline: 2px solid var(--wb-accent); outline-offset: -1px; }
.wb-sc-table tfoot th, .wb-sc-table tfoot td { padding-top: 5px; padding-bottom: 5px; }
.wb-sc-table tfoot b { font-weight: 600; padding-left: 26px; }
.wb-scatter .wb-button:disabled { opacity: .5; cursor: default; }
.wb-sc-mark { stroke: var(--wb-fg); stroke-opacity: .45; stroke-width: .8; }
.wb-sc-note { max-width: 75ch; }
`;
