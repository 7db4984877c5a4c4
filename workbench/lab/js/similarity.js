// Cosine similarity of tokens to chosen ones, as lab/unit_tokens.py computes it for figures. Up to its length, f_g is
// u + w r s (Eq. 3): u and s are unit vectors in the stored directions, r is the ratio of the lengths of d and f_u.

import { blockStart } from "./arrays.js";
import { VIRIDIS, viridisOffset } from "./colours.js";

// Similarities ("n m", row-major) of all tokens at `at` = [source, step, t, layer] and w to `tokens`, pairs of an index
// of an image and a number of a token: the "mean" or "maximum" over these. A token of length zero has similarity 0.
export function similarities(arrays, at, w, tokens, several) {
  const [u, d, ratio] = ["unit_u", "unit_d", "ratio"].map(arrays);
  const [n, m] = ratio.shape.slice(-2);
  const count = n * m;
  const ratios = blockStart(ratio, at);
  const factors = Float64Array.from({ length: count }, (_, token) => w * ratio.data[ratios + token]);
  const chosen = tokens.map(([image, token]) => image * m + token);
  const products = chosen.map(() => new Float64Array(count));
  const squares = new Float64Array(count);
  const row = new Float64Array(count); // of u + w r s in one direction; the unit of the coordinates cancels out
  for (let k = 0; k < u.shape[0]; k += 1) {
    const from = blockStart(u, [k, ...at]);
    for (let token = 0; token < count; token += 1) {
      const x = u.data[from + token] + factors[token] * d.data[from + token];
      row[token] = x;
      squares[token] += x * x;
    }
    chosen.forEach((one, c) => {
      const [own, sums] = [row[one], products[c]];
      for (let token = 0; token < count; token += 1) sums[token] += own * row[token];
    });
  }
  const made = new Float64Array(count).fill(several === "maximum" ? -1 : 0);
  chosen.forEach((one, c) => {
    for (let token = 0; token < count; token += 1) {
      const size = Math.sqrt(squares[token] * squares[one]);
      const cosine = size > 0 ? Math.min(1, Math.max(-1, products[c][token] / size)) : 0;
      if (several === "maximum") made[token] = Math.max(made[token], cosine);
      else made[token] += cosine / chosen.length;
    }
  });
  return made;
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
