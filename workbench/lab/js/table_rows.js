// Rows of a table of runs: which are shown, in which order, and what their cells say.
const COLUMNS = [
  { key: "name", label: "run" }, { key: "state", label: "state" }, { key: "step", label: "step", number: true },
  { key: "method", label: "method" }, { key: "backbone", label: "backbone" }, { key: "w", label: "w", number: true },
  { key: "layers", label: "layers" }, { key: "seed", label: "seed", number: true },
  { key: "score", label: "score", number: true }, { key: "loss", label: "loss", number: true },
  { key: "cost", label: "cost", number: true }, { key: "tags", label: "tags" }, { key: "notes", label: "notes" },
];

function hoursText(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

// What a column sorts by: null where a run has no value, which comes last whichever way it goes.
function valueOf(row, key, score) {
  if (key === "score") return row.scores[score] ?? null;
  if (key === "tags") return row.tags.join(", ") || null;
  return row[key] === "" ? null : row[key] ?? null;
}

function cellText(row, key, score) {
  const value = valueOf(row, key, score);
  if (value === null) return "";
  if (key === "step") return row.steps ? `${value.toLocaleString("en-US")} / ${row.steps.toLocaleString("en-US")}` : String(value);
  if (key === "cost") return hoursText(value);
  return typeof value === "number" ? String(Number(value.toPrecision(4))) : value;
}

// Every metric that a run was scored by, those of no layer first.
function scoreNames(rows) {
  const all = [...new Set(rows.flatMap((row) => Object.keys(row.scores)))].sort();
  const ofLayers = (name) => name.includes(" of layer ");
  const first = ["fd-clf64", "fid"].filter((name) => all.includes(name));
  return [...new Set([...first, ...all.filter((name) => !ofLayers(name)), ...all.filter(ofLayers)])];
}

// Rows that have every word of the search somewhere, and the chosen state and method; sorted.
function rowsShown(rows, { search, state, method, sort, down, score }) {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  const found = rows.filter((row) => {
    const text = [...COLUMNS.map(({ key }) => cellText(row, key, score)), row.teacher, row.remark].join(" ").toLowerCase();
    return words.every((word) => text.includes(word)) && [row.state, "all"].includes(state) && [row.method, "all"].includes(method);
  });
  if (!sort) return found;
  const [known, unknown] = [true, false].map((has) => found.filter((row) => (valueOf(row, sort, score) !== null) === has));
  const order = (one, other) => {
    const [a, b] = [valueOf(one, sort, score), valueOf(other, sort, score)];
    return typeof a === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  };
  known.sort((one, other) => (down ? order(other, one) : order(one, other)));
  return [...known, ...unknown];
}

// The body of the table; `choose(names)` sets the selection.
function createRows(store, ui, choose) {
  const heads = COLUMNS.map(({ key, label, number }) => {
    const button = make("button", { type: "button", class: "wb-sort", onclick: () => sortBy(store, key) }, label);
    return make("th", { scope: "col", class: number ? "wb-number" : null, "data-key": key }, button);
  });
  const all = make("input", { type: "checkbox", "aria-label": "select all runs that are shown" });
  const body = make("tbody", {});
  const table = make("table", { class: "wb-table" },
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, all), ...heads)), body);
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
    if (focused) [...body.rows].find((one) => one.dataset.name === focused)?.querySelector("input").focus();
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
  const element = make("tr", { "data-name": row.name, "data-state": row.state, class: chosen ? "wb-chosen" : null },
    make("td", {}, box), ...cells);
  element.addEventListener("click", (event) => event.target !== box && !String(getSelection()) && flip());
  return element;
}

// Up and down go from box to box, as in a list.
function walk(event, body) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || event.target.type !== "checkbox") return;
  const boxes = [...body.querySelectorAll("input")];
  boxes[boxes.indexOf(event.target) + step]?.focus();
  event.preventDefault();
  event.stopPropagation();
}
