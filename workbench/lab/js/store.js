// The state of a view or a panel, with change listeners.

import { plain } from "./numbers.js";

// State: an index for each discrete axis, the value itself for a continuous one, and the options of the panes. Keys
// that begin with "_" are not sent to the kernel. Changes of one event reach the panes together: at once if the last
// update was more than a frame ago, else with the next frame.
export function createStore(meta, initial) {
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
    controls: meta.controls, // by option: {label, hint, texts}
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
    // The value itself, such as t = 0.4, where the state has its index.
    value(name, from = state) {
      const axis = meta.axes[name];
      if (!axis) return undefined;
      return axis.continuous ? from[name] : axis.values[from[name]];
    },
    // The value as text, with its unit. `at` is the entry of the state.
    text(name, at = state[name]) {
      const axis = meta.axes[name];
      return axis.continuous ? axis.format.replace("{}", plain(at)) : axis.texts[at];
    },
    // The longest text of an axis, whose room is kept so that nothing moves with the slider.
    longest(name) {
      const { continuous, values, texts } = meta.axes[name];
      const all = continuous ? [values[0], values[1], values[1] - values[2]].map((at) => this.text(name, at)) : texts;
      return all.reduce((one, other) => (other.length > one.length ? other : one));
    },
    // Number of values of an axis; 1 for a missing axis.
    count: (name) => (meta.axes[name] ? meta.axes[name].values.length : 1),
    index: (name, from = state) => (meta.axes[name] ? from[name] : 0),
  };
}
