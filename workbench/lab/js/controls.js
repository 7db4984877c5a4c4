// Controls shared by all panes: native elements with an accessible name and value that follow the state.

import { classMarker, seriesAt } from "./colours.js";
import { make, themeOf, watchTheme } from "./dom.js";

// `say(text, isError)` writes the status line, `fail(error, where)` an error and the name of the control or pane.
function createUi(store, say, fail) {
  const refreshers = new Set();
  let serial = 0;
  const register = (element, refresh) => {
    refreshers.add(refresh);
    refresh();
    return element;
  };
  const guarded =
    (where, action) =>
    (...given) => {
      try {
        const result = action(...given);
        result?.catch?.((error) => fail(error, where));
      } catch (error) {
        fail(error, where);
      }
    };

  // A slider over an axis, or over `values` (indices, or [min, max, step] of a continuous axis).
  function slider({ axis, label, values, format, get, set }) {
    const of = axis ? store.axes[axis] : { values };
    const name = label ?? of.label;
    const title = of.hint || null;
    const [low, high, step] = of.continuous ? of.values : [0, of.values.length - 1, 1];
    const read = get ?? ((state) => state[axis]);
    const write = set ?? ((value) => store.set({ [axis]: value }));
    const text = format ?? ((at) => (axis ? store.text(axis, at) : String(values[at])));
    const shown = make("output", { class: "wb-value", "aria-hidden": "true" });
    const input = make("input", {
      type: "range",
      min: low,
      max: high,
      step,
      title,
      "aria-label": name,
      oninput: guarded(name, () => write(Number(input.value))),
    });
    input.dataset.axis = axis ?? name;
    const element = make(
      "label",
      { class: "wb-slider", title },
      make("span", { class: "wb-name" }, name),
      input,
      shown,
    );
    return register(element, () => {
      const at = read(store.get());
      if (Number(input.value) !== at) input.value = at;
      const value = text(at);
      if (shown.textContent !== value) {
        shown.textContent = value;
        shown.title = value; // where it is cut off
        input.setAttribute("aria-valuetext", value);
      }
    });
  }

  const access = ({ option, get, set }) => [
    get ?? ((state) => state[option]),
    set ?? ((value) => store.set({ [option]: value })),
  ];

  // The name, the explanation and the values of an axis or an option, as `meta.controls` has them, and their texts.
  function named({ axis, option, label, values, texts }) {
    const of = (axis ? store.axes[axis] : store.controls?.[option]) ?? {};
    const all = values ?? store.options[option];
    const shown = all.map((value, index) => texts?.[index] ?? of.texts?.[value] ?? String(value));
    return { name: label ?? of.label ?? option, title: of.hint || null, all, shown };
  }

  // A drop-down list; `option` names a key of the state, `texts` what is shown for its values.
  function select({ get, set, ...of }) {
    const { axis, option } = of;
    const { name, title, all, shown } = named(of);
    const [read, write] = access({ option, get, set });
    const choose = guarded(name, () => write(all[list.selectedIndex]));
    const list = make("select", {
      "aria-label": name,
      onchange: choose,
      "data-axis": axis,
      "data-option": option,
      title,
    });
    shown.forEach((text, index) => list.append(make("option", { value: index }, text)));
    const element = make("label", { class: "wb-select", title }, make("span", { class: "wb-name" }, name), list);
    return register(element, () => {
      list.selectedIndex = all.indexOf(read(store.get()));
    });
  }

  // A few values side by side, one of them chosen: a group of radio buttons.
  function toggle({ get, set, ...of }) {
    const { option } = of;
    const { name, title, all, shown } = named(of);
    const [read, write] = access({ option, get, set });
    serial += 1;
    const group = `wb-${Math.random().toString(36).slice(2)}-${serial}`;
    const element = make("div", { class: "wb-toggle", role: "radiogroup", "aria-label": name, "data-option": option });
    const buttons = all.map((value, index) => {
      const button = make("input", { type: "radio", name: group, onchange: guarded(name, () => write(value)) });
      element.append(make("label", {}, button, make("span", {}, shown[index])));
      return button;
    });
    const outer = make("div", { class: "wb-choice", title }, make("span", { class: "wb-name" }, name), element);
    return register(outer, () => {
      const at = all.indexOf(read(store.get()));
      buttons.forEach((button, index) => {
        button.checked = index === at;
      });
    });
  }

  function button({ label, title, onclick }) {
    return make("button", { type: "button", class: "wb-button", title, onclick: guarded(label, onclick) }, label);
  }

  return {
    slider,
    select,
    toggle,
    button,
    fail,
    status: say,
    theme: themeOf,
    palette: (index, theme = themeOf()) => seriesAt(index)[theme],
    marker: classMarker,
    refresh: () => refreshers.forEach((refresh) => refresh()),
  };
}

// The frame of every widget, its status line, and controls that report errors there.
export function createFrame(store, kind = "") {
  const status = make("div", { class: "wb-status", role: "status" });
  const say = (text, isError = false) => {
    status.textContent = text;
    status.classList.toggle("wb-error", isError);
    status.setAttribute("role", isError ? "alert" : "status");
  };
  const fail = (error, where) => {
    console.error(error);
    say(`${where}: ${error.message ?? error}`, true);
  };
  const root = make("div", { class: `wb ${kind}`.trim(), "data-theme": themeOf() });
  // JupyterLab's shortcuts take the keys of a focused element unless it opts out.
  root.addEventListener("focusin", ({ target }) => target.setAttribute("data-lm-suppress-shortcuts", "true"));
  return { root, status, say, fail, ui: createUi(store, say, fail) };
}

// Touches "theme" and "size" in the store when the theme around a widget or its width changes; returns a function that
// stops it.
export function followSurroundings(root, store) {
  const theme = () => {
    if (root.dataset.theme === themeOf()) return;
    root.dataset.theme = themeOf();
    store.touch("theme");
  };
  let width = root.clientWidth;
  const observer = new ResizeObserver(() => {
    if (root.clientWidth === width) return;
    width = root.clientWidth;
    store.touch("size");
  });
  observer.observe(root);
  const unwatch = watchTheme(theme);
  return () => {
    unwatch();
    observer.disconnect();
  };
}
