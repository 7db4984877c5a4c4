// What can be done with the selected runs: views of them below, code that opens them, tags and notes, the trash.
const OPENS = [["watch", "Watch"], ["maps", "Maps"], ["samples", "Samples"], ["compare", "Compare scores"]];

function createActions(model, store, ui, act) {
  const count = make("span", { class: "wb-count", role: "status" });
  const opens = OPENS.map(([what, label]) => {
    const button = ui.button({ label: `Copy: ${label}`, title: "Copies code: paste it into a cell", onclick: async () => {
      const code = model.get("code")[what];
      if (!code) throw new Error("the kernel has not answered yet: is a cell running?");
      await copyText(code);
      ui.status(`Copied the code: ${label.toLowerCase()}. Paste it into a cell.`);
    } });
    button.dataset.what = what;
    return button;
  });
  const shows = OPENS.slice(0, 3).map(([what, label]) => {
    const button = ui.button({ label: `Open ${label.toLowerCase()}`, title: "Below the table", onclick: () => {
      ui.status(`Opening ${label.toLowerCase()} …`);
      act({ what: "open", view: what });
    } });
    button.dataset.what = what;
    return button;
  });
  const form = createNotes(store, ui, act);
  const question = createQuestion(model, store, ui, act);
  const note = ui.button({ label: "Tags and notes", title: "Of one run", onclick: () => form.open() });
  const remove = ui.button({ label: "Move to trash", title: "Asks first; nothing is deleted", onclick: () => question.open() });
  const again = ui.button({ label: "Read again", title: "Read the run folders again", onclick: () => act({ what: "refresh" }) });
  const bar = make("div", { class: "wb-bar", role: "group", "aria-label": "selected runs" }, count, ...shows, ...opens, note, remove, again);
  const element = make("div", { class: "wb-table-actions" }, bar, form.element, question.element);

  function update(rows, shown) {
    const { chosen } = store.get();
    count.textContent = `${chosen.length} of ${rows.length} selected${shown < rows.length ? `, ${shown} shown` : ""}`;
    [...shows, ...opens].forEach((button) => { button.disabled = chosen.length < (button.dataset.what === "compare" ? 2 : 1); });
    note.disabled = chosen.length !== 1;
    remove.disabled = !chosen.length;
    form.update(rows);
    question.update();
  }

  return { element, update };
}

// Tags and notes of the one selected run; what is typed stays until it is saved or another run is selected.
function createNotes(store, ui, act) {
  const tags = make("input", { type: "text", "aria-label": "tags, with commas between them" });
  const notes = make("textarea", { rows: 3, "aria-label": "notes" });
  const title = make("strong", {});
  let name = null;
  const close = () => { element.hidden = true; };
  const save = () => {
    act({ what: "note", name, tags: tags.value.split(",").map((tag) => tag.trim()).filter(Boolean), notes: notes.value });
    close();
  };
  const element = make("form", { class: "wb-form", hidden: true, "aria-label": "tags and notes" }, title,
    make("label", {}, make("span", { class: "wb-name" }, "tags"), tags),
    make("label", {}, make("span", { class: "wb-name" }, "notes"), notes),
    make("div", { class: "wb-bar" }, ui.button({ label: "Save", onclick: save }), ui.button({ label: "Cancel", onclick: close })));
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

// The confirmation names what will go and where; another selection takes the question back.
function createQuestion(model, store, ui, act) {
  const text = make("span", {});
  let asked = [];
  const close = () => { element.hidden = true; };
  const yes = ui.button({ label: "Yes, move", onclick: () => {
    close();
    act({ what: "trash", names: asked });
  } });
  const element = make("div", { class: "wb-form", hidden: true, role: "alertdialog", "aria-label": "move to trash" },
    text, make("div", { class: "wb-bar" }, yes, ui.button({ label: "No, keep", onclick: close })));
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
