import { expect, test } from "vitest";
import { eigen, moments, nearestRotation, quantile, signed } from "../../../workbench/lab/js/linear.js";

const near = (found, wanted) => {
  expect(found.length).toBe(wanted.length);
  [...found].forEach((value, at) => {
    if (wanted[at].length) near(value, wanted[at]);
    else expect(value).toBeCloseTo(wanted[at], 12);
  });
};

test("a quantile is linear between its neighbours", () => {
  expect(quantile([3, 1, 2, 4], 0.5)).toBe(2.5);
  expect(quantile([5, 1, 4, 2, 3], 0.25)).toBe(2);
  expect(quantile([10, 0], 0.02)).toBeCloseTo(0.2, 12);
  expect(quantile([7], 0.98)).toBe(7);
});

test("moments of two rows", () => {
  // Mean (2, 4); deviations (-1, -2) and (1, 2): each entry of the covariance is their product, divided by 2 rows.
  const { mean, covariance } = moments(Float64Array.from([1, 2, 3, 6]), 2);
  near(mean, [2, 4]);
  near(covariance, [
    [1, 2],
    [2, 4],
  ]);
});

test("eigenvalues come largest first, with unit eigenvectors", () => {
  const { values, vectors } = eigen([
    [2, 1],
    [1, 2],
  ]);
  near(values, [3, 1]);
  near(signed(vectors[0]), [Math.SQRT1_2, Math.SQRT1_2]);
  expect(vectors[0][0] * vectors[1][0] + vectors[0][1] * vectors[1][1]).toBeCloseTo(0, 12);
  near(
    eigen([
      [1, 2],
      [2, 4],
    ]).values,
    [5, 0],
  );
});

test("the loading of largest size is positive", () => {
  expect(signed([0.6, -0.8])).toEqual([-0.6, 0.8]);
  expect(signed([0.8, -0.6])).toEqual([0.8, -0.6]);
});

test("the nearest rotation of a scaled rotation is that rotation", () => {
  const [c, s] = [Math.sqrt(3) / 2, 0.5]; // 30 degrees
  near(
    nearestRotation([
      [2 * c, -2 * s],
      [2 * s, 2 * c],
    ]),
    [
      [c, -s],
      [s, c],
    ],
  );
});

test("the nearest rotation of a matrix of rank 1 is orthogonal and keeps its direction", () => {
  const found = nearestRotation([
    [0, 0, 0],
    [3, 0, 0],
    [0, 0, 0],
  ]);
  near(
    [found[0][0], found[1][0], found[2][0]], // the first axis goes to the second
    [0, 1, 0],
  );
  for (let i = 0; i < 3; i += 1) {
    for (let j = 0; j < 3; j += 1) {
      const product = found.reduce((sum, row) => sum + row[i] * row[j], 0);
      expect(product).toBeCloseTo(Number(i === j), 12);
    }
  }
});
