// The state of a view, its arrays and its theme. A pane registers itself as
//   PANES.kind = function (root, pane, arrays, store, ui) { ...; return { update(state, changed), picture() } }
// `arrays(name)` is {data, shape}, `arrays.has(name)` says whether there is one. `changed` is a Set of keys of the
// state, with "theme" and "size" for what happened around the view; it has every key at the first update.
// picture() gives {svg: text} or {canvas}, always on white.
const PANES = {};

const TYPES = { uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array, float32: Float32Array };

// Typed arrays over the bytes of a view, which Python aligned to 8.
function unpack(meta, data, index) {
  let view = ArrayBuffer.isView(data) ? data : new Uint8Array(data);
  if (view.byteOffset % 8) view = new Uint8Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
  const made = {};
  for (const [key, { dtype, shape, offset, pane }] of Object.entries(meta.arrays)) {
    if (pane !== index) continue;
    const count = shape.reduce((product, size) => product * size, 1);
    const array = new TYPES[dtype](view.buffer, view.byteOffset + offset, count);
    made[key.slice(key.indexOf("/") + 1)] = { data: array, shape };
  }
  const arrays = (name) => {
    if (!made[name]) throw new Error(`there is no array "${name}"; there are ${Object.keys(made).join(", ")}`);
    return made[name];
  };
  arrays.has = (name) => name in made;
  return arrays;
}

// Where in a row-major array the block begins that the leading indices name.
function blockStart({ shape }, indices) {
  let place = 0;
  shape.forEach((size, axis) => { place = place * size + (indices[axis] ?? 0); });
  return place;
}

// A number without needless zeros: 2.50 is 2.5, 2.00 is 2.
function plain(number, digits = 6) {
  return String(Number(number.toFixed(digits)));
}

function percent(share) {
  return `${Math.round(100 * share)} %`;
}

// State: an index for each discrete axis, the value itself for a continuous one, and the options of the panes.
// Keys that begin with "_" stay in the page. Changes made in one event reach the panes together, at once if the last
// ones are a frame ago, else with the next frame.
function createStore(meta, initial) {
  let state = { ...initial };
  let changed = new Set();
  let waiting = false;
  let last = -Infinity;
  const listeners = new Set();
  const same = (one, other) => one === other || JSON.stringify(one) === JSON.stringify(other);

  function flush() {
    waiting = false;
    last = performance.now();
    const now = changed;
    changed = new Set();
    for (const listener of [...listeners]) listener(state, now);
  }

  function touch(...keys) {
    keys.forEach((key) => changed.add(key));
    if (waiting || !keys.length) return;
    waiting = true;
    if (performance.now() - last > 16) queueMicrotask(flush);
    else requestAnimationFrame(flush);
  }

  return {
    axes: meta.axes,
    options: meta.options,
    get: () => state,
    set(partial) {
      const keys = Object.keys(partial).filter((key) => !same(state[key], partial[key]));
      state = { ...state, ...partial };
      touch(...keys);
    },
    touch,
    subscribe(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    // The value itself: t = 0.4 where the state has its index.
    value(name, from = state) {
      const axis = meta.axes[name];
      if (!axis) return undefined;
      return axis.continuous ? from[name] : axis.values[from[name]];
    },
    // The value as a reader sees it, with its unit. `at` is what the state would have.
    text(name, at = state[name]) {
      const axis = meta.axes[name];
      return axis.continuous ? axis.format.replace("{}", plain(at)) : axis.texts[at];
    },
    // How many indices an axis has; a missing axis has one.
    count: (name) => (meta.axes[name] ? meta.axes[name].values.length : 1),
    index: (name, from = state) => (meta.axes[name] ? from[name] : 0),
  };
}

// The theme around an element: Jupyter's, Visual Studio Code's, else the system's.
function themeOf() {
  const jupyter = document.body.dataset.jpThemeLight;
  if (jupyter !== undefined) return jupyter === "false" ? "dark" : "light";
  if (document.body.classList.contains("vscode-dark")) return "dark";
  if (document.body.classList.contains("vscode-light")) return "light";
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

// Calls `changed` whenever the theme does; gives what stops it.
function watchTheme(changed) {
  const query = matchMedia("(prefers-color-scheme: dark)");
  const observer = new MutationObserver(changed);
  query.addEventListener("change", changed);
  observer.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "class"] });
  return () => {
    query.removeEventListener("change", changed);
    observer.disconnect();
  };
}

// What stands in for a widget's model in a page without a kernel.
function staticModel(meta, data, state) {
  const values = { meta, data, state, error: "" };
  const heard = {};
  return {
    get: (name) => values[name],
    set(name, value) {
      values[name] = value;
      (heard[`change:${name}`] ?? []).forEach((callback) => callback());
    },
    save_changes() {},
    on: (event, callback) => (heard[event] ??= []).push(callback),
    off: (event, callback) => { heard[event] = (heard[event] ?? []).filter((other) => other !== callback); },
    send() {},
  };
}

// Elements in short: make("div", {class: "wb-bar", onclick: f}, child, "text").
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// Only if it differs: a text that is set again is laid out again.
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function svgElement(tag, attributes = {}) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function escapeXml(text) {
  const names = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
  return String(text).replace(/[&<>"]/g, (character) => names[character]);
}
