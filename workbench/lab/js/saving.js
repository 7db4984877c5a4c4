// Copy the code of a picture, and save the picture.

import { escapeXml, make } from "./dom.js";
import { plain } from "./numbers.js";

const SCALE = 3; // pixels of a saved PNG per unit of the picture

// The code with the values of the state as Python literals.
export function codeOf(template, store) {
  const literal = (value) => {
    if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
    if (typeof value === "string") return JSON.stringify(value);
    return Number.isInteger(value) ? String(value) : plain(value);
  };
  return template.replace(/\{(\w+)\}/g, (whole, name) => {
    if (store.axes[name]) return literal(store.value(name));
    return name in store.get() ? literal(store.get()[name]) : whole;
  });
}

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Some browsers have no clipboard for pages from a file; copying a selection works in all.
    const area = make("textarea", { style: "position:fixed;opacity:0" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (!done) throw new Error(`the browser does not let this page copy. The code: ${text}`);
  }
}

export function download(content, type, name) {
  const address = URL.createObjectURL(new Blob([content], { type }));
  const link = make("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

// A canvas as an SVG <image>, with enlarged pixels so that viewers do not smooth them.
export function svgImage(canvas, x, y, width, height) {
  const times = Math.max(1, Math.ceil(256 / Math.max(canvas.width, canvas.height)));
  const large = make("canvas", { width: canvas.width * times, height: canvas.height * times });
  const context = large.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(canvas, 0, 0, large.width, large.height);
  return (
    `<image x="${x}" y="${y}" width="${width}" height="${height}" preserveAspectRatio="none"` +
    ` style="image-rendering:pixelated" href="${large.toDataURL("image/png")}"/>`
  );
}

// A map with the outline of its object and the frames of tokens.
export function svgTile({ canvas, over }, x, y, size) {
  const lines = [...over.querySelectorAll("path")].filter((path) => path.getAttribute("d"));
  const drawn = lines.map((path) => {
    const { stroke, strokeWidth } = getComputedStyle(path);
    const width = (parseFloat(strokeWidth) * over.viewBox.baseVal.width) / (1.5 * size);
    return `<path d="${path.getAttribute("d")}" fill="none" stroke="${stroke}" stroke-width="${width}"/>`;
  });
  const scale = size / over.viewBox.baseVal.width;
  const outlines = `<g transform="translate(${x},${y}) scale(${scale})">${drawn.join("")}</g>`;
  return svgImage(canvas, x, y, size, size) + (drawn.length ? outlines : "");
}

export function svgText(text, x, y, { size = 11, anchor = "start", weight = 400, fill = "#1c1e21" } = {}) {
  return (
    `<text x="${x}" y="${y}" font-size="${size}" text-anchor="${anchor}" font-weight="${weight}" fill="${fill}">` +
    `${escapeXml(text)}</text>`
  );
}

// A text in lines of at most `letters`, where its words allow that.
export function wrapped(text, letters) {
  const lines = [];
  for (const word of text.split(" ")) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + 1 + word.length <= letters) lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(word);
  }
  return lines;
}

export function svgDocument(width, height, body) {
  const size = `width="${width}" height="${height}"`;
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" ${size} viewBox="0 0 ${width} ${height}"` +
    ` font-family="Helvetica, Arial, sans-serif"><rect ${size} fill="#fff"/>${body}</svg>`
  );
}

// Pictures stacked in one SVG.
export function stacked(pictures) {
  let y = 0;
  let widest = 0;
  const parts = pictures.map(({ svg, canvas }) => {
    if (canvas) {
      const [width, height] = [canvas.width / devicePixelRatio, canvas.height / devicePixelRatio];
      svg = svgDocument(width, height, svgImage(canvas, 0, 0, width, height));
    }
    const root = new DOMParser().parseFromString(svg, "image/svg+xml").documentElement;
    const [width, height] = ["width", "height"].map((name) => parseFloat(root.getAttribute(name)));
    if (root.nodeName !== "svg" || !(width > 0 && height > 0)) throw new Error("a pane gave no picture with a size");
    root.setAttribute("y", y);
    y += height;
    widest = Math.max(widest, width);
    return new XMLSerializer().serializeToString(root);
  });
  return { svg: svgDocument(widest, y, parts.join("")), width: widest, height: y };
}

export async function rasterised({ svg, width, height }) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`;
  await image.decode();
  const canvas = make("canvas", { width: Math.round(width * SCALE), height: Math.round(height * SCALE) });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("the browser made no PNG"))), "image/png");
  });
}
