// Colours of a token map: principal components of its tokens, as lab/components.py computes them for figures.
// Coordinates of f_g are u + w d (Eq. 3).

import { blockStart } from "./arrays.js";
import { VIRIDIS, viridisOffset } from "./colours.js";
import { eigen, moments, nearestRotation, quantile, signed } from "./linear.js";

const SHARES = [0.02, 0.98]; // the percentiles that limit the colours

// Coordinates ("n m k", row-major) of all images at `at` = [source, step, t, layer] and w.
function guidedCoordinates(arrays, at, w) {
  const [u, d, uScale, dScale] = ["u", "d", "u_scale", "d_scale"].map(arrays);
  const size = u.shape.slice(4).reduce((product, n) => product * n, 1);
  const start = blockStart(u, at);
  const scale = blockStart(uScale, at);
  const [us, ds] = [uScale.data[scale], w * dScale.data[scale]];
  const made = new Float64Array(size);
  for (let i = 0; i < size; i += 1) made[i] = us * u.data[start + i] + ds * d.data[start + i];
  return made;
}

// rows (k columns) times directions, about `mean`: three columns.
function along(rows, k, mean, directions) {
  const made = new Float64Array((rows.length / k) * directions.length);
  for (let r = 0, to = 0; r < rows.length; r += k) {
    for (const direction of directions) {
      let sum = 0;
      for (let i = 0; i < k; i += 1) sum += (rows[r + i] - mean[i]) * direction[i];
      made[to] = sum;
      to += 1;
    }
  }
  return made;
}

const sumOf = (values) => values.reduce((sum, value) => sum + value, 0);
const varianceAlong = (covariance, direction) =>
  sumOf(covariance.map((row, i) => direction[i] * sumOf(row.map((value, j) => value * direction[j]))));
const traceOf = (matrix) => sumOf(matrix.map((row, i) => row[i]));
const unitDirections = (k) => [0, 1, 2].map((c) => Array.from({ length: k }, (_, i) => Number(i === c)));

// The bases. Each gives scores ("n m 3"), the share of variance of each component and of which total, and the share
// outside the subspace.
const BASES = {
  fixed(rows, { k, total }) {
    const { covariance } = moments(rows, k);
    const shares = [0, 1, 2].map((c) => covariance[c][c] / total);
    return { scores: along(rows, k, new Float64Array(k), unitDirections(k)), shares };
  },

  // Principal components of f_g, Procrustes-aligned with the fixed ones so that colours keep their meaning.
  refit(rows, { k, total }) {
    const { mean, covariance } = moments(rows, k);
    const chosen = eigen(covariance).vectors.slice(0, 3);
    const cross = chosen.map((v) => [0, 1, 2].map((j) => v.reduce((sum, x, i) => sum + x * covariance[i][j], 0)));
    const rotation = nearestRotation(cross);
    const entry = (i, j) => chosen.reduce((sum, v, c) => sum + v[i] * rotation[c][j], 0);
    const rotated = [0, 1, 2].map((j) => chosen[0].map((_, i) => entry(i, j)));
    return {
      scores: along(rows, k, mean, rotated),
      shares: rotated.map((direction) => varianceAlong(covariance, direction) / total),
      outside: Math.max(0, 1 - traceOf(covariance) / total),
    };
  },

  // Separate components for each image: colours of two images cannot be compared.
  "per map"(rows, { k, m }) {
    const scores = new Float64Array((rows.length / k) * 3);
    const shares = [];
    for (let image = 0; image * m * k < rows.length; image += 1) {
      const own = rows.subarray(image * m * k, (image + 1) * m * k);
      const { mean, covariance } = moments(own, k);
      const { values, vectors } = eigen(covariance);
      scores.set(along(own, k, mean, vectors.slice(0, 3).map(signed)), image * m * 3);
      shares.push(values.slice(0, 3).map((value) => value / sumOf(values)));
    }
    return { scores, shares: [0, 1, 2].map((c) => sumOf(shares.map((own) => own[c])) / shares.length), of: "subspace" };
  },

  // The first component splits the tokens at 0; further components are fitted to the side nearer the centre of the
  // grid.
  foreground(rows, { k, m, side }) {
    const { mean, covariance } = moments(rows, k);
    const first = along(rows, k, mean, [signed(eigen(covariance).vectors[0])]);
    const shown = nearerTheMiddle(first, m, side);
    const count = sumOf(shown);
    if (count < 4) return { scores: new Float64Array(first.length * 3), shares: [0, 0, 0], of: "foreground", shown };
    const own = new Float64Array(count * k);
    for (let i = 0, to = 0; i < shown.length; i += 1) {
      if (!shown[i]) continue;
      own.set(rows.subarray(i * k, (i + 1) * k), to);
      to += k;
    }
    const part = moments(own, k);
    const { values, vectors } = eigen(part.covariance);
    const scores = along(rows, k, part.mean, vectors.slice(0, 3).map(signed));
    return { scores, shares: values.slice(0, 3).map((value) => value / sumOf(values)), of: "foreground", shown };
  },
};

// 1 for the tokens on the side of 0 with the smaller mean distance to the centre of the grid; in a tie, the smaller
// side.
function nearerTheMiddle(first, m, side) {
  const sides = [1, -1].map((sign) => {
    let sum = 0;
    let count = 0;
    first.forEach((value, i) => {
      if (!(sign * value > 0)) return;
      const token = i % m;
      sum += Math.hypot(Math.floor(token / side) - (side - 1) / 2, (token % side) - (side - 1) / 2);
      count += 1;
    });
    return { sign, count, distance: count ? Math.round((1e9 * sum) / count) : Infinity };
  });
  const [above, below] = sides;
  const chosen =
    below.distance < above.distance || (below.distance === above.distance && below.count < above.count) ? below : above;
  return Uint8Array.from(first, (value) => Number(chosen.sign * value > 0));
}

// [low, high] of each component, of all tokens or ("per map") of each image: limits[image][component].
function mapLimits(basis, { scores, shown }, n, m) {
  const column = (component, from, to) => {
    const values = [];
    for (let i = from; i < to; i += 1) if (!shown || shown[i]) values.push(scores[i * 3 + component]);
    return Float64Array.from(values);
  };
  if (basis === "per map") {
    return Array.from({ length: n }, (_, image) =>
      [0, 1, 2].map((component) => {
        const values = column(component, image * m, (image + 1) * m);
        return [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
      }),
    );
  }
  const joint = [0, 1, 2].map((component) => {
    const values = column(component, 0, n * m);
    return values.length ? SHARES.map((share) => quantile(values, share)) : [0, 0];
  });
  return Array.from({ length: n }, () => joint);
}

// Red, green, blue and alpha of one image's tokens: three components as colours, or one of them in viridis.
export function mapPixels({ scores, shown, limits }, image, m, component) {
  const pixels = new Uint8ClampedArray(m * 4);
  const scaled = (token, c) => {
    const [low, high] = limits[image][c];
    return Math.min(1, Math.max(0, (scores[(image * m + token) * 3 + c] - low) / Math.max(high - low, 1e-9)));
  };
  for (let token = 0; token < m; token += 1) {
    pixels[4 * token + 3] = 255;
    if (shown && !shown[image * m + token]) continue;
    if (component === null) {
      for (let c = 0; c < 3; c += 1) pixels[4 * token + c] = Math.floor(255 * scaled(token, c) + 0.5);
    } else {
      const offset = viridisOffset(scaled(token, component));
      pixels.set(VIRIDIS.subarray(offset, offset + 3), 4 * token);
    }
  }
  return pixels;
}

// Everything one column shows, for all images: at = [source, step, t, layer].
export function mapColumn(arrays, pane, at, w, basis) {
  const u = arrays("u");
  const [n, m, k] = u.shape.slice(4);
  const total = arrays("total");
  const [uu, ud, dd] = total.data.subarray(blockStart(total, at), blockStart(total, at) + 3);
  const rows = guidedCoordinates(arrays, at, w);
  const made = BASES[basis](rows, { n, m, k, side: pane.side, total: uu + 2 * w * ud + w * w * dd });
  return { ...made, limits: mapLimits(basis, made, n, m), n, m };
}
