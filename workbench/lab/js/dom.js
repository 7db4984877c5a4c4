// Elements, canvases, the theme around them, and whether they are in view.

import { blockStart } from "./arrays.js";

// The theme around an element: Jupyter's, Visual Studio Code's, else the system's.
export function themeOf() {
  const jupyter = document.body.dataset.jpThemeLight;
  if (jupyter !== undefined) return jupyter === "false" ? "dark" : "light";
  if (document.body.classList.contains("vscode-dark")) return "dark";
  if (document.body.classList.contains("vscode-light")) return "light";
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

// Calls `changed` whenever the theme changes; returns a function that stops it.
export function watchTheme(changed) {
  const query = matchMedia("(prefers-color-scheme: dark)");
  const observer = new MutationObserver(changed);
  query.addEventListener("change", changed);
  observer.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "class"] });
  return () => {
    query.removeEventListener("change", changed);
    observer.disconnect();
  };
}

// Lets the sliders of a view stick to the top of what scrolls: outputs of JupyterLab clip, and an element that is sticky
// sticks to the nearest ancestor that does. Those that scroll are left. Returns a function that stops waiting for `root`
// to be in the page.
export function unclip(root) {
  const observer = new ResizeObserver(() => {
    if (!root.isConnected || !root.clientWidth) return;
    observer.disconnect();
    for (let of = root.parentElement; of && of !== document.body; of = of.parentElement) {
      const scrolls = /auto|scroll/.test(getComputedStyle(of).overflowY) && of.scrollHeight > of.clientHeight + 1;
      if (scrolls || of.matches(".jp-WindowedPanel-outer, .jp-Notebook")) break;
      if (getComputedStyle(of).overflow !== "visible") of.classList.add("wb-unclipped");
    }
  });
  observer.observe(root);
  return () => observer.disconnect();
}

// Create an element: make("div", {class: "wb-bar", onclick: f}, child, "text").
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// The lines of a caption; the first is emphasised.
export function captionLines(...texts) {
  return texts.filter(Boolean).map((text) => make("span", { class: "wb-line" }, text));
}

// Fills `element` with lines: pairs of a text and the longest one that the line has room for, so that nothing below moves.
export function sizedLines(element, ...pairs) {
  const wanted = pairs.filter(([text]) => text);
  const rooms = wanted.map(([text, most]) => most ?? text);
  if (rooms.join("\n") !== element.dataset.rooms) {
    element.dataset.rooms = rooms.join("\n");
    element.replaceChildren(
      ...rooms.map((most) => make("span", { class: "wb-line", "data-most": most }, make("span", {}))),
    );
  }
  wanted.forEach(([text], at) => setText(element.children[at].firstChild, text));
}

// Only if it differs: setting a text triggers a layout.
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function svgElement(tag, attributes = {}) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

export function escapeXml(text) {
  const names = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
  return String(text).replace(/[&<>"]/g, (character) => names[character]);
}

// Red, green, blue and alpha on a canvas of `wide` pixels a row.
export function paintPixels(canvas, pixels, wide) {
  const tall = pixels.length / 4 / wide;
  if (canvas.width !== wide || canvas.height !== tall) {
    canvas.width = wide;
    canvas.height = tall;
  }
  canvas.getContext("2d").putImageData(new ImageData(pixels, wide, tall), 0, 0);
}

// One image of an array "... h w c" of uint8, grey or in colour; a hidden one leaves its cell empty.
export function paintImage(canvas, array, indices, hidden = false) {
  canvas.hidden = hidden;
  const [tall, wide, channels] = array.shape.slice(-3);
  const start = blockStart(array, indices);
  const pixels = new Uint8ClampedArray(tall * wide * 4).fill(255);
  for (let i = 0; i < tall * wide; i += 1) {
    for (let c = 0; c < 3; c += 1) pixels[4 * i + c] = array.data[start + i * channels + (channels === 1 ? 0 : c)];
  }
  paintPixels(canvas, pixels, wide);
  canvas.classList.toggle("wb-smooth", tall > 64);
}

const OFF_SCREEN = 20000; // ms between two drawings of an element out of view

// Calls `draw` at once while the element is in view, else only every few seconds: drawing off-screen charts slows the
// training, but a screen reader may still read them. `again` requests a redraw by the caller, which reports errors.
export function inView(element, draw, again) {
  let [visible, last, later] = [true, -Infinity, 0];
  new IntersectionObserver(
    ([entry]) => {
      visible = entry.isIntersecting;
      if (visible && later) again();
    },
    { rootMargin: "100px" },
  ).observe(element);
  const wake = () => {
    later = 0;
    again();
  };
  return () => {
    const rest = last + OFF_SCREEN - performance.now();
    if (!visible && rest > 0) {
      later ||= setTimeout(wake, rest);
      return;
    }
    clearTimeout(later);
    [later, last] = [0, performance.now()];
    draw();
  };
}
