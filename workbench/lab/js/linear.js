// Linear algebra: percentiles, eigenvectors of small symmetric matrices, Procrustes alignment of bases.

// The value at a share q of the sorted numbers, linear between neighbours (numpy's percentile). Reorders `values`.
export function quantile(values, q) {
  const position = q * (values.length - 1);
  const low = Math.floor(position);
  const first = nth(values, low);
  if (low === position) return first;
  let next = Infinity; // after `nth`, larger values are behind
  for (let i = low + 1; i < values.length; i += 1) if (values[i] < next) next = values[i];
  return first + (position - low) * (next - first);
}

// The k-th smallest value by Hoare's selection, much faster than sorting.
function nth(values, k) {
  let left = 0;
  let right = values.length - 1;
  while (left < right) {
    const pivot = values[(left + right) >> 1];
    let i = left;
    let j = right;
    while (i <= j) {
      while (values[i] < pivot) i += 1;
      while (values[j] > pivot) j -= 1;
      if (i <= j) {
        [values[i], values[j]] = [values[j], values[i]];
        i += 1;
        j -= 1;
      }
    }
    if (k <= j) right = j;
    else if (k >= i) left = i;
    else break;
  }
  return values[k];
}

// Mean of the rows of row-major `rows` (k columns), and their covariance divided by their number.
export function moments(rows, k) {
  const count = rows.length / k;
  const mean = new Float64Array(k);
  for (let r = 0; r < rows.length; r += k) for (let i = 0; i < k; i += 1) mean[i] += rows[r + i];
  for (let i = 0; i < k; i += 1) mean[i] /= count;
  const covariance = Array.from({ length: k }, () => new Float64Array(k));
  for (let r = 0; r < rows.length; r += k) {
    for (let i = 0; i < k; i += 1) {
      const left = rows[r + i] - mean[i];
      for (let j = i; j < k; j += 1) covariance[i][j] += left * (rows[r + j] - mean[j]);
    }
  }
  for (let i = 0; i < k; i += 1) {
    for (let j = i; j < k; j += 1) covariance[j][i] = covariance[i][j] /= count;
  }
  return { mean, covariance };
}

// Eigenvalues, largest first, and eigenvectors (vectors[i] belongs to values[i]) by Jacobi's rotations.
export function eigen(symmetric) {
  const k = symmetric.length;
  const a = symmetric.map((row) => Float64Array.from(row));
  const v = a.map((_, i) => Float64Array.from({ length: k }, (__, j) => Number(i === j)));
  const size = a.reduce((sum, row) => sum + row.reduce((part, x) => part + x * x, 0), 0);
  for (let sweep = 0; sweep < 60; sweep += 1) {
    let off = 0;
    for (let p = 0; p < k; p += 1) for (let q = p + 1; q < k; q += 1) off += a[p][q] * a[p][q];
    if (off <= 1e-30 * size) break;
    for (let p = 0; p < k; p += 1) for (let q = p + 1; q < k; q += 1) if (a[p][q] !== 0) rotate(a, v, p, q);
  }
  const order = [...a.keys()].sort((i, j) => a[j][j] - a[i][i]);
  return { values: order.map((i) => a[i][i]), vectors: order.map((i) => v.map((row) => row[i])) };
}

function rotate(a, v, p, q) {
  const angle = (a[q][q] - a[p][p]) / (2 * a[p][q]);
  const t = (angle < 0 ? -1 : 1) / (Math.abs(angle) + Math.hypot(angle, 1));
  const c = 1 / Math.hypot(t, 1);
  const s = t * c;
  for (const row of a) [row[p], row[q]] = [c * row[p] - s * row[q], s * row[p] + c * row[q]];
  for (let j = 0; j < a.length; j += 1) [a[p][j], a[q][j]] = [c * a[p][j] - s * a[q][j], s * a[p][j] + c * a[q][j]];
  for (const row of v) [row[p], row[q]] = [c * row[p] - s * row[q], s * row[p] + c * row[q]];
}

// Fixes the sign of a direction: its loading of largest magnitude is positive.
export function signed(direction) {
  const largest = direction.reduce((best, x) => (Math.abs(x) > Math.abs(best) ? x : best), 0);
  return largest < 0 ? direction.map((x) => -x) : direction;
}

// The orthogonal R that makes the trace of R^T M largest: M (M^T M)^(-1/2), U V^T of its singular vectors.
export function nearestRotation(m) {
  const n = m.length;
  const cross = (i, j) => m.reduce((sum, row) => sum + row[i] * row[j], 0);
  const { values, vectors } = eigen(m.map((_, i) => m.map((__, j) => cross(i, j))));
  const left = [];
  vectors.forEach((vector, index) => {
    const size = Math.sqrt(Math.max(values[index], 0));
    const image = m.map((row) => row.reduce((sum, x, j) => sum + x * vector[j], 0));
    left.push(size > 1e-12 * Math.sqrt(values[0] || 1) ? image.map((x) => x / size) : missing(left, n));
  });
  return m.map((_, i) => m.map((__, j) => left.reduce((sum, u, k) => sum + u[i] * vectors[k][j], 0)));
}

// A unit vector orthogonal to the given ones: the best axis, by Gram-Schmidt.
function missing(directions, n) {
  let best = null;
  for (let axis = 0; axis < n; axis += 1) {
    const residual = Array.from({ length: n }, (_, i) => Number(i === axis));
    for (const other of directions) {
      const along = other[axis];
      other.forEach((x, i) => {
        residual[i] -= along * x;
      });
    }
    const size = Math.hypot(...residual);
    if (!best || size > best.size + 1e-9) best = { size, unit: residual.map((x) => x / size) };
  }
  return best.unit;
}
