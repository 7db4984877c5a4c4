// Mounts a table of runs; the kernel holds the rows and the selection.
const LOOK = { search: "", state: "all", method: "all", sort: null, down: false };

function render({ model, el }) {
  const store = createStore({ axes: {}, options: {} }, { ...LOOK, score: "", chosen: model.get("chosen") });
  const { root, status, say, fail, ui } = createFrame(store, "wb-runs-table");
  const act = (content) => model.send({ type: "act", ...content });
  const choose = (chosen) => {
    store.set({ chosen });
    model.set("chosen", chosen);
    model.save_changes();
  };
  const rows = createRows(store, ui, choose);
  const actions = createActions(model, store, ui, act);
  const filters = createFilters(store, ui);
  root.append(make("style", {}, STYLE), make("h2", {}, "Runs"), filters.element, rows.element, actions.element,
    make("div", { class: "wb-foot" }, status));
  el.replaceChildren(root);

  const update = () => {
    try {
      const all = model.get("rows");
      filters.update(all);
      ui.refresh();
      actions.update(all, rows.update(all));
    } catch (error) {
      fail(error, "table");
    }
  };
  const heard = (message) => message.type === "said" && say(message.text, message.wrong);
  const changed = () => store.touch("rows");
  const selected = () => store.set({ chosen: model.get("chosen") });
  model.on("change:rows", changed);
  model.on("change:chosen", selected);
  model.on("msg:custom", heard);
  const leave = store.subscribe(update);
  const unwatch = watchTheme(() => { root.dataset.theme = themeOf(); });
  update();
  act({ what: "refresh" }); // after a reload the states are those of long ago
  return () => {
    leave();
    unwatch();
    model.off("change:rows", changed);
    model.off("change:chosen", selected);
    model.off("msg:custom", heard);
  };
}

// Search, and lists of the states, methods and scores that there are.
function createFilters(store, ui) {
  const search = make("input", { type: "search", "aria-label": "search", placeholder: "words anywhere in a row",
    oninput: () => store.set({ search: search.value }) });
  const bar = make("div", { class: "wb-bar wb-tools", role: "group", "aria-label": "which runs are shown" });
  let known = "";
  const element = bar;
  return {
    element,
    update(rows) {
      const scores = scoreNames(rows);
      const lists = { state: ["all", ...new Set(rows.map((row) => row.state))], method: ["all", ...new Set(rows.map((row) => row.method).filter(Boolean))] };
      const now = JSON.stringify([lists, scores]);
      if (now === known) return;
      known = now;
      const state = store.get();
      const kept = Object.fromEntries(Object.entries(lists).map(([key, values]) => [key, values.includes(state[key]) ? state[key] : "all"]));
      store.set({ ...kept, score: scores.includes(state.score) ? state.score : scores[0] ?? "" });
      const texts = { label: "score", values: scores, option: "score" };
      bar.replaceChildren(make("label", { class: "wb-select" }, make("span", { class: "wb-name" }, "search"), search),
        ...Object.entries(lists).map(([key, values]) => ui.select({ option: key, label: key, values })),
        ...(scores.length > 1 ? [ui.select(texts)] : []));
    },
  };
}

export default { render };
