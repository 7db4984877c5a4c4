// Table of runs: search, sort, select, and actions on the selected runs.

import { createFrame } from "./controls.js";
import { make, themeOf, watchTheme } from "./dom.js";
import { hoursText } from "./numbers.js";
import { copyText } from "./saving.js";
import { createStore } from "./store.js";

// Rows of the table: filtering, order and text of the cells.

const COLUMNS = [
  { key: "name", label: "run" },
  { key: "state", label: "state" },
  { key: "step", label: "step", number: true },
  { key: "score", label: "score", number: true }, // what people sort by, so that it is in sight where the table is wider
  { key: "method", label: "method" },
  { key: "backbone", label: "backbone" },
  { key: "w", label: "w", number: true },
  { key: "layers", label: "layers" },
  { key: "seed", label: "seed", number: true },
  { key: "loss", label: "loss", number: true },
  { key: "cost", label: "cost", number: true },
  { key: "tags", label: "tags" },
  { key: "notes", label: "notes" },
];

// Sort key of a column; null for a missing value, which comes last in both directions.
function sortValue(row, key, score) {
  if (key === "score") return row.scores[score] ?? null;
  if (key === "tags") return row.tags.join(", ") || null;
  return row[key] === "" ? null : (row[key] ?? null);
}

export function cellText(row, key, score) {
  const value = sortValue(row, key, score);
  if (value === null) return "";
  if (key === "step")
    return row.steps ? `${value.toLocaleString("en-US")} / ${row.steps.toLocaleString("en-US")}` : String(value);
  if (key === "cost") return hoursText(value);
  return typeof value === "number" ? String(Number(value.toPrecision(4))) : value;
}

// All metrics of the runs, those without a layer first.
export function scoreNames(rows) {
  const all = [...new Set(rows.flatMap((row) => Object.keys(row.scores)))].sort();
  const ofLayers = (name) => name.includes(" of layer ");
  const first = ["fd-clf64", "fid"].filter((name) => all.includes(name));
  return [...new Set([...first, ...all.filter((name) => !ofLayers(name)), ...all.filter(ofLayers)])];
}

// Rows that contain every search word and have the chosen state and method; sorted.
export function rowsShown(rows, { search, state, method, sort, down, score }) {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  const matching = rows.filter((row) => {
    const text = [...COLUMNS.map(({ key }) => cellText(row, key, score)), row.teacher, row.remark]
      .join(" ")
      .toLowerCase();
    return (
      words.every((word) => text.includes(word)) &&
      [row.state, "all"].includes(state) &&
      [row.method, "all"].includes(method)
    );
  });
  if (!sort) return matching;
  const [known, unknown] = [true, false].map((has) =>
    matching.filter((row) => (sortValue(row, sort, score) !== null) === has),
  );
  const order = (one, other) => {
    const [a, b] = [sortValue(one, sort, score), sortValue(other, sort, score)];
    return typeof a === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  };
  known.sort((one, other) => (down ? order(other, one) : order(one, other)));
  return [...known, ...unknown];
}

// The body of the table; `choose(names)` sets the selection.
function createRows(store, choose) {
  const heads = COLUMNS.map(({ key, label, number }) => {
    const button = make("button", { type: "button", class: "wb-sort", onclick: () => sortBy(store, key) }, label);
    return make("th", { scope: "col", class: number ? "wb-number" : null, "data-key": key }, button);
  });
  const all = make("input", { type: "checkbox", "aria-label": "select all runs that are shown" });
  const body = make("tbody", {});
  const table = make(
    "table",
    { class: "wb-table" },
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, all), ...heads)),
    body,
  );
  const element = make("div", { class: "wb-table-frame", role: "region", "aria-label": "runs", tabindex: 0 }, table);
  let shown = [];
  all.addEventListener("change", () => {
    const names = shown.map((row) => row.name);
    const others = store.get().chosen.filter((name) => !names.includes(name));
    choose(all.checked ? [...others, ...names] : others);
  });
  body.addEventListener("keydown", (event) => walk(event, body));

  function update(rows) {
    const state = store.get();
    shown = rowsShown(rows, state);
    heads.forEach((head) => {
      const key = head.dataset.key;
      head.setAttribute("aria-sort", key !== state.sort ? "none" : state.down ? "descending" : "ascending");
      if (key === "score") head.firstChild.textContent = state.score || "score";
    });
    const focused = document.activeElement?.closest?.("tr")?.dataset.name;
    body.replaceChildren(...shown.map((row) => rowElement(row, state, choose)));
    if (focused)
      [...body.rows]
        .find((one) => one.dataset.name === focused)
        ?.querySelector("input")
        .focus();
    all.checked = shown.length > 0 && shown.every((row) => state.chosen.includes(row.name));
    all.indeterminate = !all.checked && shown.some((row) => state.chosen.includes(row.name));
    return shown.length;
  }

  return { element, update };
}

function sortBy(store, key) {
  const { sort, down } = store.get();
  store.set({ sort: key, down: sort === key ? !down : false });
}

function rowElement(row, state, choose) {
  const chosen = state.chosen.includes(row.name);
  const box = make("input", { type: "checkbox", "aria-label": `select ${row.name}` });
  box.checked = chosen;
  const flip = () => choose(chosen ? state.chosen.filter((name) => name !== row.name) : [...state.chosen, row.name]);
  box.addEventListener("change", flip);
  const cells = COLUMNS.map(({ key, number }) => {
    const text = cellText(row, key, state.score);
    const title = key === "state" ? row.remark || null : null;
    const scope = key === "name" ? "row" : null;
    return make(scope ? "th" : "td", { class: number ? "wb-number" : `wb-of-${key}`, title, scope }, text);
  });
  const element = make(
    "tr",
    { "data-name": row.name, "data-state": row.state, class: chosen ? "wb-chosen" : null },
    make("td", {}, box),
    ...cells,
  );
  element.addEventListener("click", (event) => event.target !== box && !String(getSelection()) && flip());
  return element;
}

// Up and down move between the boxes, as in a list.
function walk(event, body) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || event.target.type !== "checkbox") return;
  const boxes = [...body.querySelectorAll("input")];
  boxes[boxes.indexOf(event.target) + step]?.focus();
  event.preventDefault();
  event.stopPropagation();
}

// Actions on the selected runs: open views below, copy code, edit tags and notes, move to trash.

const OPENS = [
  ["watch", "Watch"],
  ["maps", "Maps"],
  ["samples", "Samples"],
  ["compare", "Compare scores"],
];

function createActions(model, store, ui, act) {
  const count = make("span", { class: "wb-count", role: "status" });
  const opens = OPENS.map(([what, label]) => {
    const button = ui.button({
      label: `Copy: ${label}`,
      title: "Copy code to paste into a cell",
      onclick: async () => {
        const code = model.get("code")[what];
        if (!code) throw new Error("no answer from the kernel yet: is a cell running?");
        await copyText(code);
        ui.status(`Copied the code: ${label.toLowerCase()}. Paste it into a cell.`);
      },
    });
    button.dataset.what = what;
    return button;
  });
  const shows = OPENS.slice(0, 3).map(([what, label]) => {
    const button = ui.button({
      label: `Open ${label.toLowerCase()}`,
      title: "Open below the table",
      onclick: () => {
        ui.status(`Opening ${label.toLowerCase()} …`);
        act({ what: "open", view: what });
      },
    });
    button.dataset.what = what;
    return button;
  });
  const form = createNotes(store, ui, act);
  const question = createQuestion(model, store, ui, act);
  const note = ui.button({ label: "Tags and notes", title: "Edit those of one run", onclick: () => form.open() });
  const remove = ui.button({
    label: "Move to trash",
    title: "Asks for confirmation; nothing is deleted",
    onclick: () => question.open(),
  });
  const again = ui.button({
    label: "Read again",
    title: "Read the run folders again",
    onclick: () => act({ what: "refresh" }),
  });
  const bar = make(
    "div",
    { class: "wb-bar", role: "group", "aria-label": "selected runs" },
    count,
    ...shows,
    ...opens,
    note,
    remove,
    again,
  );
  const element = make("div", { class: "wb-table-actions" }, bar, form.element, question.element);

  function update(rows, shown) {
    const { chosen } = store.get();
    count.textContent = `${chosen.length} of ${rows.length} selected${shown < rows.length ? `, ${shown} shown` : ""}`;
    [...shows, ...opens].forEach((button) => {
      button.disabled = chosen.length < (button.dataset.what === "compare" ? 2 : 1);
    });
    note.disabled = chosen.length !== 1;
    remove.disabled = !chosen.length;
    form.update(rows);
    question.update();
  }

  return { element, update };
}

// Tags and notes of one selected run; typed text remains until it is saved or another run is selected.
function createNotes(store, ui, act) {
  const tags = make("input", { type: "text", "aria-label": "tags, with commas between them" });
  const notes = make("textarea", { rows: 3, "aria-label": "notes" });
  const title = make("strong", {});
  let name = null;
  const close = () => {
    element.hidden = true;
  };
  const save = () => {
    act({
      what: "note",
      name,
      tags: tags.value
        .split(",")
        .map((tag) => tag.trim())
        .filter(Boolean),
      notes: notes.value,
    });
    close();
  };
  const element = make(
    "form",
    { class: "wb-form", hidden: true, "aria-label": "tags and notes" },
    title,
    make("label", {}, make("span", { class: "wb-name" }, "tags"), tags),
    make("label", {}, make("span", { class: "wb-name" }, "notes"), notes),
    make(
      "div",
      { class: "wb-bar" },
      ui.button({ label: "Save", onclick: save }),
      ui.button({ label: "Cancel", onclick: close }),
    ),
  );
  element.addEventListener("submit", (event) => {
    event.preventDefault();
    save();
  });
  let rows = [];
  return {
    element,
    open() {
      [name] = store.get().chosen;
      const row = rows.find((one) => one.name === name);
      Object.assign(title, { textContent: name });
      tags.value = row.tags.join(", ");
      notes.value = row.notes;
      element.hidden = false;
      tags.focus();
    },
    update(now) {
      rows = now;
      const { chosen } = store.get();
      if (chosen.length !== 1 || chosen[0] !== name) close();
    },
  };
}

// Asks for confirmation with names and destination; a new selection cancels the question.
function createQuestion(model, store, ui, act) {
  const text = make("span", {});
  let asked = [];
  const close = () => {
    element.hidden = true;
  };
  const yes = ui.button({
    label: "Yes, move",
    onclick: () => {
      close();
      act({ what: "trash", names: asked });
    },
  });
  const element = make(
    "div",
    { class: "wb-form", hidden: true, role: "alertdialog", "aria-label": "move to trash" },
    text,
    make("div", { class: "wb-bar" }, yes, ui.button({ label: "No, keep", onclick: close })),
  );
  element.addEventListener("keydown", (event) => event.key === "Escape" && close());
  return {
    element,
    open() {
      asked = [...store.get().chosen];
      text.textContent = `Move ${asked.join(", ")} to ${model.get("trash")}?`;
      element.hidden = false;
      yes.focus();
    },
    update() {
      if (String(asked) !== String(store.get().chosen)) close();
    },
  };
}

// Mounts a table of runs; rows and selection are stored in the kernel.

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
  const rows = createRows(store, choose);
  const actions = createActions(model, store, ui, act);
  const filters = createFilters(store, ui);
  root.append(
    make("h2", {}, "Runs"),
    filters.element,
    rows.element,
    actions.element,
    make("div", { class: "wb-foot" }, status),
  );
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
  const onMessage = (message) => message.type === "status" && say(message.text, message.wrong);
  const changed = () => store.touch("rows");
  const selected = () => store.set({ chosen: model.get("chosen") });
  model.on("change:rows", changed);
  model.on("change:chosen", selected);
  model.on("msg:custom", onMessage);
  const leave = store.subscribe(update);
  const unwatch = watchTheme(() => {
    root.dataset.theme = themeOf();
  });
  update();
  act({ what: "refresh" }); // after a reload the states are outdated
  return () => {
    leave();
    unwatch();
    model.off("change:rows", changed);
    model.off("change:chosen", selected);
    model.off("msg:custom", onMessage);
  };
}

// Search, and lists of the existing states, methods and scores.
function createFilters(store, ui) {
  const search = make("input", {
    type: "search",
    "aria-label": "search",
    placeholder: "words anywhere in a row",
    oninput: () => store.set({ search: search.value }),
  });
  const bar = make("div", { class: "wb-bar wb-tools", role: "group", "aria-label": "which runs are shown" });
  let known = "";
  const element = bar;
  return {
    element,
    update(rows) {
      const scores = scoreNames(rows);
      const lists = {
        state: ["all", ...new Set(rows.map((row) => row.state))],
        method: ["all", ...new Set(rows.map((row) => row.method).filter(Boolean))],
      };
      const now = JSON.stringify([lists, scores]);
      if (now === known) return;
      known = now;
      const state = store.get();
      const choices = Object.fromEntries(
        Object.entries(lists).map(([key, values]) => [key, values.includes(state[key]) ? state[key] : "all"]),
      );
      store.set({ ...choices, score: scores.includes(state.score) ? state.score : (scores[0] ?? "") });
      const texts = { label: "score", values: scores, option: "score" };
      bar.replaceChildren(
        make("label", { class: "wb-select" }, make("span", { class: "wb-name" }, "search"), search),
        ...Object.entries(lists).map(([key, values]) => ui.select({ option: key, label: key, values })),
        ...(scores.length > 1 ? [ui.select(texts)] : []),
      );
    },
  };
}

export default { render };
