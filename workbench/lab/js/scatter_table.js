// The legend and the numbers: how many of each class are selected, and their kNN share in the original space.
function createClassTable(points, store, ui) {
  const [body, foot] = [make("tbody"), make("tfoot")];
  const titles = ["Class", "Selected", "kNN, selected", "kNN, all"].map((text) => make("th", { scope: "col" }, text));
  const head = make("thead", {}, make("tr", {}, ...titles));
  const caption = make("caption", { class: "wb-sc-spoken" }, "Classes: selected images, and kNN shares");
  const element = make("div", { class: "wb-sc-table" }, make("table", {}, caption, head, body, foot));
  const rows = new Map();
  let latest = { byClass: [], total: {} };
  const rowOf = (label) => {
    if (!rows.has(label)) {
      const choose = () => toggleClass(points, store, ui, label);
      rows.set(label, classRow(points.classes[label], markerSvg(ui, label), choose));
    }
    return rows.get(label);
  };
  const total = classRow("All classes");
  foot.append(total.line);
  return {
    element,
    numbers: () => latest,
    update(state) {
      latest = classNumbers(points, state);
      for (const one of latest.byClass) fillRow(rowOf(one.label), one);
      const shown = latest.byClass.map(({ label }) => rowOf(label).line);
      if (shown.length !== body.children.length || shown.some((line, i) => line !== body.children[i])) {
        body.replaceChildren(...shown);
      }
      fillRow(total, latest.total);
    },
  };
}

// Selects the images of a class, or deselects them where all are selected.
function toggleClass(points, store, ui, label) {
  const state = store.get();
  const chosen = new Set(state.selection ?? []);
  const own = [];
  points.labels[points.by(state)].forEach((one, i) => { if (one === label) own.push(i); });
  const remove = own.every((i) => chosen.has(i));
  own.forEach((i) => (remove ? chosen.delete(i) : chosen.add(i)));
  store.set({ selection: [...chosen].sort((a, b) => a - b) });
  ui.status(`${counted(chosen.size)} of ${counted(points.count)} images selected.`);
}

// A line of the table: with a marker and something to do it is a button.
function classRow(name, mark, onclick) {
  const named = onclick
    ? make("button", { type: "button", onclick, "aria-pressed": "false" }, mark, make("span", {}, name))
    : make("b", {}, name);
  const cells = [1, 2, 3].map(() => make("td"));
  return { line: make("tr", {}, make("th", { scope: "row" }, named), ...cells), cells, named };
}

function fillRow({ cells, named }, { selected, all, right, rightAll }) {
  const texts = [`${counted(selected)} of ${counted(all)}`, shareText(right, selected), shareText(rightAll, all)];
  texts.forEach((text, i) => setText(cells[i], text));
  cells[1].title = selected ? `${right} of ${selected} right` : "none selected";
  cells[2].title = `${rightAll} of ${all} right`;
  const pressed = selected === 0 ? "false" : selected === all ? "true" : "mixed";
  if (named.tagName === "BUTTON") named.setAttribute("aria-pressed", pressed);
}

const counted = (count) => count.toLocaleString("en-US");

// A share as ".83"; nothing to take a share of is a dash.
function shareText(part, of) {
  if (!of) return "–";
  const text = (part / of).toFixed(2);
  return text.startsWith("0") ? text.slice(1) : text;
}

function classNumbers(points, state) {
  const labels = points.labels[points.by(state)];
  const correct = points.correct(state);
  const fresh = () => ({ selected: 0, all: 0, right: 0, rightAll: 0 });
  const byClass = points.classes.map((_, label) => ({ label, ...fresh() }));
  const total = fresh();
  const selected = new Uint8Array(points.count);
  for (const row of state.selection ?? []) selected[row] = 1;
  for (let i = 0; i < points.count; i += 1) {
    for (const one of [byClass[labels[i]], total]) {
      one.all += 1;
      one.rightAll += correct[i];
      one.selected += selected[i];
      one.right += selected[i] & correct[i];
    }
  }
  return { byClass: byClass.filter(({ all }) => all), total };
}
