// Markers of the classes, each a colour and a shape, as outlines and as pixels.

import { DISTINCT, seriesStyle } from "./colours.js";
import { make, svgElement } from "./dom.js";

// Outline of a marker about (0, 0) that covers about as much as a circle of radius r.
export function markerPath(name, r) {
  const ring = (radii, turn) =>
    `M${radii
      .map((radius, i) => {
        const angle = turn + (2 * Math.PI * i) / radii.length;
        return [radius * r * Math.cos(angle), radius * r * Math.sin(angle)].map((x) => x.toFixed(2)).join(",");
      })
      .join("L")}Z`;
  const up = -Math.PI / 2;
  const [a, b] = [0.42, 1.25];
  const plus = [
    [-a, -b],
    [a, -b],
    [a, -a],
    [b, -a],
    [b, a],
    [a, a],
    [a, b],
    [-a, b],
    [-a, a],
    [-b, a],
    [-b, -a],
    [-a, -a],
  ];
  const turned = (angle) =>
    `M${plus
      .map(([x, y]) =>
        [x * Math.cos(angle) - y * Math.sin(angle), x * Math.sin(angle) + y * Math.cos(angle)]
          .map((z) => (z * r).toFixed(2))
          .join(","),
      )
      .join("L")}Z`;
  return {
    circle: `M${r},0A${r},${r} 0 1 1 ${-r},0A${r},${r} 0 1 1 ${r},0Z`,
    square: ring([1.25, 1.25, 1.25, 1.25], Math.PI / 4),
    diamond: ring([1.3, 1.3, 1.3, 1.3], 0),
    triangle: ring([1.4, 1.4, 1.4], up),
    down: ring([1.4, 1.4, 1.4], -up),
    left: ring([1.4, 1.4, 1.4], 2 * up),
    right: ring([1.4, 1.4, 1.4], 0),
    star: ring(
      Array.from({ length: 10 }, (_, i) => (i % 2 ? 0.65 : 1.5)),
      up,
    ),
    plus: turned(0),
    cross: turned(Math.PI / 4),
  }[name];
}

// Every marker, drawn once: a row each for normal, dimmed and selected points.
function drawMarkers(ui, kinds, radius, ratio, size) {
  const canvas = make("canvas", { width: size * kinds, height: size * 3 });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const dark = ui.theme() === "dark";
  for (let kind = 0; kind < kinds; kind += 1) {
    const path = new Path2D(markerPath(ui.marker(kind), radius));
    for (let look = 0; look < 3; look += 1) {
      context.setTransform(ratio, 0, 0, ratio, size * (kind + 0.5), size * (look + 0.5));
      context.globalAlpha = [0.9, 0.2, 1][look];
      context.fillStyle = ui.palette(kind);
      context.strokeStyle = look === 2 ? (dark ? "#fff" : "#000") : dark ? "rgba(0,0,0,.55)" : "rgba(0,0,0,.4)";
      context.lineWidth = look === 2 ? 2.2 : 0.6;
      if (look !== 1) context.stroke(path);
      context.fill(path);
    }
  }
  return context.getImageData(0, 0, canvas.width, canvas.height).data;
}

// The markers as lists of pixels: position, share of the background that remains (of 256), and the colour that is added,
// red and blue in one number and green in another. Ten times as fast as drawing 20,000 images on a canvas.
export function createStamps(ui, classes, radius, ratio, stride) {
  const size = 2 * Math.ceil((radius * 1.5 + 2) * ratio);
  const kinds = Math.min(classes, DISTINCT);
  const pixels = drawMarkers(ui, kinds, radius, ratio, size);
  const stamps = Array.from({ length: 3 * kinds }, (_, number) => {
    const [look, kind] = [Math.floor(number / kinds), number % kinds];
    const covered = [];
    for (let y = 0; y < size; y += 1) {
      for (let x = 0; x < size; x += 1) {
        const from = 4 * ((look * size + y) * size * kinds + kind * size + x);
        const [red, green, blue, alpha] = pixels.subarray(from, from + 4);
        const part = Math.round((alpha * 256) / 255);
        if (part) covered.push([y * stride + x, 256 - part, (red | (blue << 16)) * part, green * part]);
      }
    }
    const [offset, background, redBlue, green] = [0, 1, 2, 3].map((k) =>
      Int32Array.from(covered, (pixel) => pixel[k] | 0),
    );
    return { offset, background, redBlue, green };
  });
  return { size, of: (label, look) => stamps[look * kinds + (label % kinds)] };
}

export function putStamp(pixels, from, { offset, background, redBlue, green }) {
  for (let k = 0; k < offset.length; k += 1) {
    const to = from + offset[k];
    const was = pixels[to];
    const outer = ((Math.imul(was & 0xff00ff, background[k]) + redBlue[k]) >>> 8) & 0xff00ff;
    const inner = (Math.imul((was >>> 8) & 0xff, background[k]) + green[k]) & 0xff00;
    pixels[to] = 0xff000000 | outer | inner;
  }
}

export const radiusFor = (count) => Math.min(5, Math.max(2, 5 * (500 / Math.max(count, 1)) ** 0.28));

export function markerSvg(ui, label) {
  const svg = svgElement("svg", { viewBox: "-9 -9 18 18", width: 18, height: 18, "aria-hidden": "true" });
  const outline = { d: markerPath(ui.marker(label), 5), fill: "currentColor", style: seriesStyle(label) };
  svg.append(svgElement("path", { ...outline, class: "wb-sc-marker wb-series" }));
  return svg;
}
