// Tokens of maps under the pointer and the keyboard: which are chosen, and how similar others are to them.

import { viridisGradient } from "./colours.js";
import { make, setText, svgElement } from "./dom.js";
import { heatNumber } from "./numbers.js";

const HINT = "Click a token to see what is like it; “Hold several” or Shift adds more.";
const COSINE = [-1, 1]; // limits, which give two digits

// `bar` says what is pointed at and has the controls; `mount(canvas)` gives the element to show in place of a canvas.
// `nameOf(image)` and `titleOf(tile)` name image and column, `valueAt(tile, token)` is the similarity that a tile shows,
// undefined if it shows none.
export function createTokens(body, grid, { pane, store, ui, nameOf, titleOf, valueAt }) {
  const { side } = pane;
  let tiles = []; // rows of {map, frames, canvas, image, number}; `number` is -1 and less for pictures, then 0, 1, ...
  let here = null; // the token of the keyboard: {row, column, token}
  let over = null; // the token that is pointed at or has the focus
  let holding = false; // of the button, for touch screens, which have no Shift

  const read = make("p", { class: "wb-tk-read" });
  const spoken = make("div", { class: "wb-tk-spoken", "aria-live": "polite" });
  const tip = make("div", { class: "wb-tk-tip", "aria-hidden": "true", hidden: true });
  const cursor = make("button", { type: "button", class: "wb-tk-cursor" });
  const hold = ui.button({
    label: "Hold several",
    title: "While it is pressed, a click, a tap or Enter adds a token or takes it away, as with Shift",
    onclick: () => setHolding(!holding),
  });
  const clear = ui.button({ label: "Clear tokens", title: "Escape does the same", onclick: release });
  const several = ui.toggle({ option: "several" });
  const ramp = cosineRamp(pane.cosines);
  const bar = make(
    "div",
    { class: "wb-tk" },
    make("div", { class: "wb-tk-bar" }, read, ramp, hold, clear, several),
    spoken,
  );
  grid.style.setProperty("--wb-side", side);
  grid.setAttribute("role", "group");
  grid.setAttribute(
    "aria-label",
    "Token maps. Arrows move, Enter shows what is like a token, Shift with Enter adds one, Escape ends that.",
  );

  const numberOf = (image) => (store.axes.image ? store.axes.image.values[image] : image);
  const indexOf = (value) => (store.axes.image ? store.axes.image.values.indexOf(value) : value);
  const isHeld = (image, token) => store.get().tokens.some((pair) => pair[0] === numberOf(image) && pair[1] === token);
  const placeOf = (image, token) =>
    `row ${Math.floor(token / side) + 1}, column ${(token % side) + 1} of ${nameOf(image)}`;
  const tileAt = ({ row, column }) => tiles[row]?.[column];

  // What the colours show.
  function heldText(state) {
    if (state.tokens.length > 1) return `Cosine similarity to ${state.tokens.length} tokens, ${state.several}.`;
    const [[value, token]] = state.tokens;
    return `Cosine similarity to ${placeOf(indexOf(value), token)}.`;
  }

  function describe(at) {
    const tile = tileAt(at);
    const value = valueAt(tile, at.token);
    const number = value === undefined ? "" : `${heatNumber(value, COSINE)}: `;
    return `${number}${placeOf(tile.image, at.token)}${titleOf(tile) ? `, ${titleOf(tile)}` : ""}`;
  }

  function setHolding(now) {
    holding = now;
    hold.setAttribute("aria-pressed", now);
  }

  function choose({ row, column, token }, shift) {
    const more = shift || holding;
    const own = [numberOf(tileAt({ row, column }).image), token];
    const held = store.get().tokens;
    const others = held.filter((pair) => pair[0] !== own[0] || pair[1] !== own[1]);
    const had = others.length < held.length;
    if (more) store.set({ tokens: had ? others : [...held, own] });
    else store.set({ tokens: had && !others.length ? [] : [own] });
  }

  function release() {
    store.set({ tokens: [] });
    if (document.activeElement === clear) cursor.focus({ preventScroll: true }); // the button disappears
  }

  // The token below the pointer.
  function pointed(event) {
    const map = event.target.closest?.(".wb-tk-map");
    if (!map) return null;
    const box = map.getBoundingClientRect();
    const cell = (at, size) => Math.min(side - 1, Math.max(0, Math.floor((side * at) / size)));
    const token = side * cell(event.clientY - box.top, box.height) + cell(event.clientX - box.left, box.width);
    const row = tiles.findIndex((each) => each.some((tile) => tile.map === map));
    if (row < 0 || tiles[row][0].canvas.hidden) return null;
    return { row, column: tiles[row].findIndex((tile) => tile.map === map), token };
  }

  function point(at) {
    over = at;
    show(store.get());
  }

  // The bar, and the number beside the token.
  function show(state) {
    const tile = over && tileAt(over);
    const value = tile && valueAt(tile, over.token);
    tip.hidden = value === undefined || value === null;
    if (!tip.hidden) {
      const [y, x] = [Math.floor(over.token / side), over.token % side];
      setText(tip, heatNumber(value, COSINE));
      tip.style.left = `${(100 * (x + 0.5)) / side}%`;
      tip.style.top = `${(100 * (y ? y : y + 1)) / side}%`;
      tip.classList.toggle("wb-tk-below", !y);
      if (tip.parentNode !== tile.map) tile.map.append(tip);
    }
    setText(read, tile ? describe(over) : state.tokens.length ? heldText(state) : HINT);
  }

  // Moves the token of the keyboard; a focus stays on it.
  function place(at) {
    const tile = tileAt(at);
    const focused = document.activeElement === cursor;
    here = at;
    const [y, x] = [Math.floor(at.token / side), at.token % side];
    Object.assign(cursor.style, { left: `${(100 * x) / side}%`, top: `${(100 * y) / side}%` });
    if (cursor.parentNode !== tile.map) tile.map.append(cursor);
    if (focused && document.activeElement !== cursor) cursor.focus({ preventScroll: true });
    label();
  }

  function label() {
    cursor.setAttribute("aria-label", describe(here));
    cursor.setAttribute("aria-pressed", isHeld(tileAt(here).image, here.token));
  }

  // The neighbour of a token; beyond the edge of a map, the nearest one of the next map.
  function moved({ row, column, token }, down, right) {
    const [y, x] = [Math.floor(token / side) + down, (token % side) + right];
    const next = { row: row + Math.floor(y / side), column: column + Math.floor(x / side) };
    const tile = tileAt(next);
    if (!tile || tile.canvas.hidden) return null;
    return { ...next, token: ((y + side) % side) * side + ((x + side) % side) };
  }

  function pressed(event) {
    if (event.key === "Escape" && store.get().tokens.length) release();
    else if (event.target !== cursor || event.ctrlKey || event.metaKey || event.altKey) return;
    else if (event.key === "Enter" || event.key === " ") choose(here, event.shiftKey);
    else {
      const { row, column, token } = here;
      const first = token - (token % side);
      const next = {
        ArrowUp: () => moved(here, -1, 0),
        ArrowDown: () => moved(here, 1, 0),
        ArrowLeft: () => moved(here, 0, -1),
        ArrowRight: () => moved(here, 0, 1),
        Home: () => ({ row, column, token: first }),
        End: () => ({ row, column, token: first + side - 1 }),
      }[event.key];
      if (!next) return;
      const at = next();
      if (at) {
        cursor.classList.remove("wb-tk-clicked");
        place(at);
        point(at);
        setText(spoken, describe(at));
      }
    }
    event.preventDefault();
    event.stopPropagation(); // notebooks use these keys too
  }

  function listen() {
    grid.addEventListener("pointermove", (event) => point(pointed(event)));
    grid.addEventListener("pointerleave", () => point(null));
    grid.addEventListener("mousedown", (event) => {
      if (pointed(event)) event.preventDefault(); // no selection of text, and the focus is set by the click
    });
    grid.addEventListener("click", (event) => {
      if (event.target === cursor) {
        if (!event.detail) choose(here, false); // from a screen reader; keys are handled below
        return;
      }
      const at = pointed(event);
      if (!at) return;
      choose(at, event.shiftKey || event.ctrlKey || event.metaKey);
      // The focus, so that Escape and the arrows work, after the picture: in a notebook it costs a layout of the page.
      setTimeout(() => {
        place(at);
        point(at); // after a tap nothing else does, within one map
        cursor.classList.add("wb-tk-clicked"); // no ring
        cursor.focus({ preventScroll: true });
      });
    });
    cursor.addEventListener("focus", () => point(here));
    cursor.addEventListener("blur", () => {
      if (cursor.isConnected) cursor.classList.remove("wb-tk-clicked");
      point(null);
    });
    cursor.addEventListener("keyup", (event) => {
      if (event.key === " ") event.preventDefault(); // Firefox would click
    });
    body.addEventListener("keydown", pressed);
  }

  // The tiles that are shown now: rows of {canvas, map, image}.
  function build(shown) {
    tiles = shown;
    const first = shown[0].findIndex((tile) => tile.number === 0);
    const wanted = here ?? { row: 0, column: first, token: Math.floor(side / 2) * (side + 1) };
    const row = Math.min(wanted.row, tiles.length - 1);
    over = null;
    place({ ...wanted, row, column: Math.min(wanted.column, tiles[row].length - 1) });
  }

  // After the maps are painted.
  function update(state, changed) {
    const held = state.tokens.length > 0;
    tiles.flat().forEach((tile) => {
      const own = state.tokens.filter(([value]) => indexOf(value) === tile.image).map(([, token]) => token);
      const path = tile.canvas.hidden ? "" : own.map((token) => framePath(token, side)).join("");
      if (tile.path !== path) tile.frames.forEach((frame) => frame.setAttribute("d", path));
      tile.path = path;
    });
    for (const element of [ramp, clear]) element.classList.toggle("wb-tk-off", !held);
    several.classList.toggle("wb-tk-off", state.tokens.length < 2);
    label();
    show(state);
    if (changed.has("tokens") && !changed.has("theme")) setText(spoken, held ? heldText(state) : "Colours again.");
  }

  setHolding(false);
  listen();
  return { bar, build, update, heldText };
}

// The element around a canvas, with the outline of the object and the frames of chosen tokens over it.
export function mountMap(canvas, side, outline) {
  const lines = ["wb-tk-outer", "wb-tk-inner"];
  const over = svgElement("svg", { class: "wb-tk-over", viewBox: `0 0 ${side} ${side}`, "aria-hidden": "true" });
  over.append(...lines.map((name) => svgElement("path", { class: name, d: outline })));
  const frames = lines.map((name) => svgElement("path", { class: `wb-tk-frame ${name}` }));
  over.append(...frames);
  return { map: make("div", { class: "wb-tk-map" }, canvas, over), over, frames, path: "" };
}

export const framePath = (token, side) => `M${token % side},${Math.floor(token / side)}h1v1h-1z`;

// The colour bar of cosines.
export function cosineRamp([low, high]) {
  const named = `viridis: cosine similarity from ${low} or less to ${high}`;
  return make(
    "span",
    { class: "wb-ramp wb-tk-ramp", role: "img", "aria-label": named },
    make("i", { style: `background:${viridisGradient()}` }),
    make("span", {}, `≤ ${low}`),
    make("span", {}, String(high)),
  );
}
