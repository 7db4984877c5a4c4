// Numbers as colours and as text.
const DIVERGING = [[11, 79, 138], [111, 168, 214], [245, 245, 242], [240, 163, 94], [168, 72, 10]];
const UNMEASURED = "#d9dce0";

// Red, green and blue of a value in 0..1: viridis, or blue to brown about a pale middle.
function heatColour(value, diverging) {
  const part = Math.min(1, Math.max(0, value));
  if (!diverging) {
    const place = viridisPlace(part);
    return [...VIRIDIS.subarray(place, place + 3)];
  }
  const place = part * (DIVERGING.length - 1);
  const from = Math.min(DIVERGING.length - 2, Math.floor(place));
  return DIVERGING[from].map((x, i) => Math.floor(x + (DIVERGING[from + 1][i] - x) * (place - from) + 0.5));
}

// Digits by the size of the largest value: ".83", "3.2", "412". `digits` where it is at most 1.
function heatNumber(value, [least, most], digits = 2) {
  const size = Math.max(Math.abs(least), Math.abs(most));
  const kept = size <= 1 ? digits : size < 10 ? digits - 1 : size < 100 ? digits - 2 : 0;
  return value.toFixed(kept).replace(/^(-?)0\./, "$1.").replace(/^-(\.?0+)$/, "$1");
}

const inkOn = ([r, g, b]) => (0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#111" : "#fff");
