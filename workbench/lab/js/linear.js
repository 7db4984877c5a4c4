// Numbers: percentiles, eigenvectors of small symmetric matrices, turning one basis onto another, viridis.

// The value at a share q of the sorted numbers, linear between neighbours (numpy's percentile). Reorders `values`.
function quantile(values, q) {
  const place = q * (values.length - 1);
  const low = Math.floor(place);
  const first = nth(values, low);
  if (low === place) return first;
  let next = Infinity; // after nth, what is larger stands behind
  for (let i = low + 1; i < values.length; i += 1) if (values[i] < next) next = values[i];
  return first + (place - low) * (next - first);
}

// The k-th smallest by Hoare's selection: far less work than sorting.
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
function moments(rows, k) {
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
function eigen(symmetric) {
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

// A direction and its opposite are the same; this one has its loading of largest size positive.
function signed(direction) {
  const largest = direction.reduce((best, x) => (Math.abs(x) > Math.abs(best) ? x : best), 0);
  return largest < 0 ? direction.map((x) => -x) : direction;
}

// The orthogonal R that makes the trace of R^T M largest: M (M^T M)^(-1/2), U V^T of its singular vectors.
function nearestRotation(m) {
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

// A unit vector at right angles to those given: the best of the axes, what lies along the others taken off.
function missing(directions, n) {
  let best = null;
  for (let axis = 0; axis < n; axis += 1) {
    const found = Array.from({ length: n }, (_, i) => Number(i === axis));
    for (const other of directions) {
      const along = other[axis];
      other.forEach((x, i) => { found[i] -= along * x; });
    }
    const size = Math.hypot(...found);
    if (!best || size > best.size + 1e-9) best = { size, unit: found.map((x) => x / size) };
  }
  return best.unit;
}

// matplotlib's viridis: 256 colours, red, green and blue in hexadecimal.
const VIRIDIS = Uint8Array.from((
  "44015444025645045745055946075a46085c460a5d460b5e470d60470e6147106347116447136548146748166848176948186a481a6c"
  + "481b6d481c6e481d6f481f70482071482173482374482475482576482677482878482979472a7a472c7a472d7b472e7c472f7d46307e"
  + "46327e46337f463480453581453781453882443983443a83443b84433d84433e85423f85424086424186414287414487404588404688"
  + "3f47883f48893e49893e4a893e4c8a3d4d8a3d4e8a3c4f8a3c508b3b518b3b528b3a538b3a548c39558c39568c38588c38598c375a8c"
  + "375b8d365c8d365d8d355e8d355f8d34608d34618d33628d33638d32648e32658e31668e31678e31688e30698e306a8e2f6b8e2f6c8e"
  + "2e6d8e2e6e8e2e6f8e2d708e2d718e2c718e2c728e2c738e2b748e2b758e2a768e2a778e2a788e29798e297a8e297b8e287c8e287d8e"
  + "277e8e277f8e27808e26818e26828e26828e25838e25848e25858e24868e24878e23888e23898e238a8d228b8d228c8d228d8d218e8d"
  + "218f8d21908d21918c20928c20928c20938c1f948c1f958b1f968b1f978b1f988b1f998a1f9a8a1e9b8a1e9c891e9d891f9e891f9f88"
  + "1fa0881fa1881fa1871fa28720a38620a48621a58521a68522a78522a88423a98324aa8325ab8225ac8226ad8127ad8128ae8029af7f"
  + "2ab07f2cb17e2db27d2eb37c2fb47c31b57b32b67a34b67935b77937b87838b9773aba763bbb753dbc743fbc7340bd7242be7144bf70"
  + "46c06f48c16e4ac16d4cc26c4ec36b50c46a52c56954c56856c66758c7655ac8645cc8635ec96260ca6063cb5f65cb5e67cc5c69cd5b"
  + "6ccd5a6ece5870cf5773d05675d05477d1537ad1517cd2507fd34e81d34d84d44b86d54989d5488bd6468ed64590d74393d74195d840"
  + "98d83e9bd93c9dd93ba0da39a2da37a5db36a8db34aadc32addc30b0dd2fb2dd2db5de2bb8de29bade28bddf26c0df25c2df23c5e021"
  + "c8e020cae11fcde11dd0e11cd2e21bd5e21ad8e219dae319dde318dfe318e2e418e5e419e7e419eae51aece51befe51cf1e51df4e61e"
  + "f6e620f8e621fbe723fde725"
).match(/../g), (pair) => parseInt(pair, 16));

// Where in VIRIDIS the colour of a value in 0..1 begins.
function viridisPlace(value) {
  return 3 * Math.min(255, Math.max(0, Math.floor(value * 256)));
}
