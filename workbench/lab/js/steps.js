// Steps of a lesson: one text at a time, and buttons that set the sliders to what it describes.

import { make } from "./dom.js";

// `steps` are [{state, sets}]: the whole state of a step, and the names that it changes. `list` is the <ol> with a text
// for each, which is read without JavaScript too; its contents move into the view.
export function createSteps(steps, list, store, ui) {
  const start = Object.fromEntries(Object.keys(steps[0].state).map((name) => [name, store.get()[name]]));
  const states = [start, ...steps.map(({ state }) => state)];
  const last = steps.length;
  let at = 0;

  const first = make("p", {}, `${last === 1 ? "One step sets" : `${last} steps set`} the controls below. `);
  first.append("Next begins, and you can move the sliders yourself at any time.");
  const texts = [make("div", {}, first)];
  steps.forEach(({ sets }, index) => {
    const item = list.children[index];
    texts.push(make("div", {}, ...item.childNodes, make("p", { class: "wb-step-sets" }, setText(sets, index + 1))));
  });
  list.remove();

  function setText(sets, number) {
    const parts = sets.map((name) => `${nameOf(name)} ${textOf(name, states[number])}`);
    return `Sets ${parts.join(", ")}.`;
  }

  function nameOf(name) {
    return store.axes[name]?.label ?? store.controls?.[name]?.label ?? name;
  }

  function textOf(name, state) {
    if (store.axes[name]) return store.text(name, state[name]);
    if (!Array.isArray(state[name])) return store.controls?.[name]?.texts[state[name]] ?? String(state[name]);
    return `(${state[name].length || "none"})`;
  }

  // The sliders may have been moved since; then no step is marked, and its number sets them again.
  function marked(state) {
    const same = ([name, value]) => JSON.stringify(state[name]) === JSON.stringify(value);
    return Object.entries(states[at]).every(same) ? at : -1;
  }

  const spoken = make("div", { class: "wb-spoken", "aria-live": "polite" });
  const back = ui.button({ label: "Back", title: "The step before", onclick: () => go(at - 1) });
  const next = ui.button({ label: "Next", title: "The next step", onclick: () => go(at + 1) });
  next.classList.add("wb-main");

  function go(to) {
    if (to < 0 || to > last) return;
    at = to;
    show();
    store.set(states[at]);
    ui.refresh(); // a step may change nothing
    spoken.textContent = at ? `Step ${at} of ${last}. ${texts[at].textContent}` : "The start.";
  }

  function show() {
    texts.forEach((text, index) => text.classList.toggle("wb-off", index !== at));
    back.setAttribute("aria-disabled", String(at === 0));
    next.setAttribute("aria-disabled", String(at === last));
  }

  const numbers = ui.toggle({
    label: "step",
    values: [...states.keys()],
    texts: ["start", ...steps.map((_, index) => String(index + 1))],
    get: marked,
    set: go,
  });
  show();
  return make(
    "section",
    { class: "wb-steps", "aria-label": "Steps" },
    make("div", { class: "wb-bar" }, back, next, numbers),
    make("div", { class: "wb-step-texts" }, ...texts),
    spoken,
  );
}
