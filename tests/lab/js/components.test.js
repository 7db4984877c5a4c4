import { expect, test } from "vitest";
import { mapColumn, mapPixels } from "../../../workbench/lab/js/components.js";

// One image of 2 x 2 tokens with 4 coordinates each, at one place of the grid. f_g = u + w d (Eq. 3), with the scales
// 2 of u and 0.5 of d.
function features(u, d) {
  const shape = [1, 1, 1, 1, 1, 4, 4];
  const scale = (value) => ({ data: [value], shape: [1, 1, 1, 1] });
  const total = { data: Float64Array.from([70, 0, 0]), shape: [1, 1, 1, 1, 3] };
  const all = { u: { data: u, shape }, d: { data: d, shape }, u_scale: scale(2), d_scale: scale(0.5), total };
  return (name) => all[name];
}

// Coordinates with the standard deviations 1, 3 and 2, which go up and down independently of each other.
const U = [
  [1, 3, 2, 0],
  [-1, -3, 2, 0],
  [1, -3, -2, 0],
  [-1, 3, -2, 0],
].flat();
const D = Array.from({ length: 16 }, (_, at) => Number(at % 4 === 3)); // the fourth coordinate of every token

test("in the fixed basis, scores are the first three coordinates of u + w d", () => {
  const { scores, shares, limits } = mapColumn(features(U, D), { side: 2 }, [0, 0, 0, 0], 3, "fixed");
  expect([...scores]).toEqual([2, 6, 4, -2, -6, 4, 2, -6, -4, -2, 6, -4]);
  // Variances 4, 36 and 16 of a total of 70; a constant fourth coordinate adds none.
  expect(shares).toEqual([4 / 70, 36 / 70, 16 / 70]);
  expect(limits[0][2]).toEqual([-4, 4]);
});

test("guidance moves coordinates by w times the scaled difference", () => {
  const difference = D.map((_, at) => Number(at % 4 === 0) * [1, 1, -1, -1][Math.floor(at / 4)]);
  const { scores } = mapColumn(features(U, difference), { side: 2 }, [0, 0, 0, 0], 2, "fixed");
  // First coordinates 2 u + 2 * 0.5 d: 2 + 1, -2 + 1, 2 - 1, -2 - 1.
  expect([0, 3, 6, 9].map((at) => scores[at])).toEqual([3, -1, 1, -3]);
});

test("refitted components are turned onto the fixed ones", () => {
  const { scores, outside } = mapColumn(features(U, D), { side: 2 }, [0, 0, 0, 0], 0, "refit");
  // Largest variance along the second axis, then the third, then the first: each is turned back to its place.
  [2, 6, 4, -2, -6, 4, 2, -6, -4, -2, 6, -4].forEach((value, at) => expect(scores[at]).toBeCloseTo(value, 9));
  expect(outside).toBeCloseTo(0.2, 12);
});

test("colours go linearly from the lower to the upper limit, and stay within", () => {
  const made = { scores: [0, 5, 10, -1, 11, 5], limits: [[0, 1, 2].map(() => [0, 10])] };
  const pixels = mapPixels(made, 0, 2, null);
  expect([...pixels]).toEqual([0, 128, 255, 255, 0, 255, 128, 255]);
  const single = mapPixels(made, 0, 2, 0);
  expect([...single.subarray(0, 4)]).toEqual([0x44, 0x01, 0x54, 255]); // viridis begins there
});
