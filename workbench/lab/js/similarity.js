// Cosine similarity of tokens to chosen ones, as lab/unit_tokens.py computes it for figures. Up to its length, f_g is
// u + w r s (Eq. 3): u and s are unit vectors in the stored directions, r is the ratio of the lengths of d and f_u.

import { blockStart } from "./arrays.js";
import { VIRIDIS, viridisOffset } from "./colours.js";

const STEPS = 127; // coordinates of unit vectors are stored as multiples of 1 / 127

const COMBINED = {
  mean: (values) => values.reduce((sum, value) => sum + value, 0) / values.length,
  maximum: (values) => Math.max(...values),
};

// Similarities ("n m", row-major) of all tokens at `at` = [source, step, t, layer] and w to `tokens`, pairs of an index
// of an image and a number of a token. A token of length zero has similarity 0.
export function similarities(arrays, at, w, tokens, several) {
  const rows = guidedTokens(arrays, at, w);
  const { count, directions, m } = rows;
  const unit = rows.values;
  for (let token = 0; token < count; token += 1) {
    let squared = 0;
    for (let k = 0; k < directions; k += 1) squared += unit[token * directions + k] ** 2;
    const length = Math.sqrt(squared);
    if (length > 0) for (let k = 0; k < directions; k += 1) unit[token * directions + k] /= length;
  }
  const chosen = tokens.map(([image, token]) => (image * m + token) * directions);
  const made = new Float64Array(count);
  const each = new Array(chosen.length);
  for (let token = 0, from = 0; token < count; token += 1, from += directions) {
    for (let c = 0; c < chosen.length; c += 1) {
      let sum = 0;
      for (let k = 0; k < directions; k += 1) sum += unit[from + k] * unit[chosen[c] + k];
      each[c] = Math.min(1, Math.max(-1, sum));
    }
    made[token] = COMBINED[several](each);
  }
  return made;
}

// f_g / |f_u| of all tokens in the stored directions, row by row.
function guidedTokens(arrays, at, w) {
  const [u, d, ratio, ratioScale] = ["unit_u", "unit_d", "ratio", "ratio_scale"].map(arrays);
  const [n, m] = ratio.shape.slice(-2);
  const [count, directions] = [n * m, u.shape[0]];
  const ratios = blockStart(ratio, at);
  const scale = (w * ratioScale.data[blockStart(ratioScale, at)]) / STEPS;
  const factors = Float64Array.from({ length: count }, (_, token) => scale * ratio.data[ratios + token]);
  const values = new Float64Array(count * directions);
  for (let k = 0; k < directions; k += 1) {
    const from = blockStart(u, [k, ...at]);
    for (let token = 0; token < count; token += 1) {
      values[token * directions + k] = u.data[from + token] / STEPS + factors[token] * d.data[from + token];
    }
  }
  return { values, count, directions, m };
}

// Share of |f_g|^2 that the stored coordinates leave out.
export function leftOut(arrays, at, w) {
  const lengths = arrays("lengths");
  const from = blockStart(lengths, at);
  const [whole, out] = [0, 3].map((first) => {
    const [uu, ud, dd] = lengths.data.subarray(from + first, from + first + 3);
    return uu + 2 * w * ud + w * w * dd;
  });
  return whole > 0 ? Math.max(0, out / whole) : 0;
}

// A small share, such as "0.02 %".
export function leftOutText(share) {
  return `${(100 * share).toFixed(share < 0.01 ? 2 : 0)} %`;
}

// Red, green, blue and alpha of one image's similarities, in viridis from `low` to `high`.
export function similarityPixels(values, image, m, [low, high]) {
  const pixels = new Uint8ClampedArray(m * 4);
  for (let token = 0; token < m; token += 1) {
    const offset = viridisOffset((values[image * m + token] - low) / (high - low));
    pixels.set(VIRIDIS.subarray(offset, offset + 3), 4 * token);
    pixels[4 * token + 3] = 255;
  }
  return pixels;
}

// Where a mask is 1, as the path of its outline in a square of `side` units: edges between pixels that differ.
export function outlinePath(mask, tall, wide, side) {
  const inside = (y, x) => y >= 0 && y < tall && x >= 0 && x < wide && mask[y * wide + x] > 0;
  const at = (value, size) => Number(((value * side) / size).toFixed(4));
  const parts = [];
  for (let y = 0; y <= tall; y += 1) {
    for (let x = 0; x <= wide; x += 1) {
      if (inside(y, x) !== inside(y - 1, x)) parts.push(`M${at(x, wide)},${at(y, tall)}H${at(x + 1, wide)}`);
      if (inside(y, x) !== inside(y, x - 1)) parts.push(`M${at(x, wide)},${at(y, tall)}V${at(y + 1, tall)}`);
    }
  }
  return parts.join("");
}
