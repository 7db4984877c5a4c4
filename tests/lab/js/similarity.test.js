import { expect, test } from "vitest";
import {
  leftOut,
  leftOutText,
  outlinePath,
  similarities,
  similarityPixels,
} from "../../../workbench/lab/js/similarity.js";

// One image of two tokens in two directions: u = (1, 0) and (0, 1), s = (0, 1) and (1, 0), |d| / |f_u| = 2 and 1.
const shape = [2, 1, 1, 1, 1, 1, 2];
const all = {
  unit_u: { data: [127, 0, 0, 127], shape },
  unit_d: { data: [0, 127, 127, 0], shape },
  ratio: { data: [2, 1], shape: shape.slice(1) },
  lengths: { data: Float32Array.from([10, 2, 4, 1, 0.5, 0.25]), shape: [1, 1, 1, 1, 6] },
};
const arrays = (name) => all[name];
const at = [0, 0, 0, 0];

test("f_g is u + w r s, up to its length", () => {
  expect([...similarities(arrays, at, 0, [[0, 0]], "mean")]).toEqual([1, 0]);
  // At w = 1 the tokens are (1, 2) and (1, 1): their cosine is 3 / sqrt(10).
  const [own, other] = similarities(arrays, at, 1, [[0, 0]], "mean");
  expect(own).toBeCloseTo(1, 12);
  expect(other).toBeCloseTo(3 / Math.sqrt(10), 12);
});

test("several tokens are combined by their mean or maximum", () => {
  const tokens = [
    [0, 0],
    [0, 1],
  ];
  expect([...similarities(arrays, at, 0, tokens, "mean")]).toEqual([0.5, 0.5]);
  expect([...similarities(arrays, at, 0, tokens, "maximum")]).toEqual([1, 1]);
});

test("what is left out is a quotient of quadratics in w", () => {
  expect(leftOut(arrays, at, 0)).toBeCloseTo(0.1, 12);
  expect(leftOut(arrays, at, 2)).toBeCloseTo((1 + 2 + 1) / (10 + 8 + 16), 6);
  expect([leftOutText(0.0003), leftOutText(0.12)]).toEqual(["0.03 %", "12 %"]);
});

test("colours go from the lowest to the highest, and stay within", () => {
  const pixels = similarityPixels([-0.5, 0, 1, 2], 0, 4, [0, 1]);
  const colour = (token) => [...pixels.subarray(4 * token, 4 * token + 4)];
  expect(colour(0)).toEqual(colour(1));
  expect(colour(1)).toEqual([0x44, 0x01, 0x54, 255]);
  expect(colour(2)).toEqual(colour(3));
  expect(colour(3)).toEqual([0xfd, 0xe7, 0x25, 255]);
});

test("an outline has the edges between inside and outside, also at the border", () => {
  expect(outlinePath([1, 0, 0, 0], 2, 2, 4).match(/[HV]/g)).toHaveLength(4);
  expect(outlinePath([1, 1, 1, 1], 2, 2, 4).match(/[HV]/g)).toHaveLength(8);
  expect(outlinePath([0, 0, 0, 0], 2, 2, 4)).toBe("");
});
