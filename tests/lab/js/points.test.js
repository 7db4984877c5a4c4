import { expect, test } from "vitest";
import { classMarker, DISTINCT, SERIES, seriesAt } from "../../../workbench/lab/js/colours.js";
import { markerPath } from "../../../workbench/lab/js/markers.js";
import { classNumbers, fitPositions, nextRow, rowsInside } from "../../../workbench/lab/js/panes/scatter.js";

// Points of a plot at these positions in pixels.
function plot(positions) {
  return { points: { count: positions.length }, x: (row) => positions[row][0], y: (row) => positions[row][1] };
}

test("positions fit the plot about their middle, in one unit for both directions", () => {
  // Half of 4 over the aspect 2 is 1, as is half of 2: the unit is 1.
  const positions = [0, 0, 4, 2];
  expect(fitPositions(positions, 2)).toBe(1);
  expect(positions).toEqual([-2, -1, 2, 1]);
  const tall = [0, 0, 4, 8];
  expect(fitPositions(tall, 2)).toBe(0.25);
  expect(tall).toEqual([-0.5, -1, 0.5, 1]);
  expect(fitPositions([3, 3], 1)).toBe(1); // a single point has no extent
});

test("a lasso holds what is inside by the even-odd rule", () => {
  const notched = [
    [0, 0],
    [10, 0],
    [10, 10],
    [5, 4],
    [0, 10],
  ];
  const view = plot([
    [5, 2],
    [5, 8],
    [1, 7],
    [9, 7],
    [11, 5],
    [-1, 0],
  ]);
  expect(rowsInside(view, notched)).toEqual([0, 2, 3]);
});

test("an arrow goes to a near point, rather straight on than aside", () => {
  const view = plot([
    [0, 0],
    [10, 0],
    [4, 3],
    [-5, 0],
    [1, 20],
  ]);
  // To the right: (10, 0) costs 10, (4, 3) costs 4 + 2 * 3 = 10 and comes later; (1, 20) is too far aside.
  expect(nextRow(view, 0, [1, 0])).toBe(1);
  expect(nextRow(view, 0, [-1, 0])).toBe(3);
  expect(nextRow(view, 0, [0, 1])).toBe(2); // 3 + 2 * 4 = 11 before 20 + 2 * 1
  expect(nextRow(view, 0, [0, -1])).toBe(0); // nothing above: it stays
  const aside = [
    [0, 0],
    [1, 5],
  ];
  expect(nextRow(plot(aside), 0, [1, 0])).toBe(0); // 5 aside for 1 ahead is no way to the right
});

test("numbers by class", () => {
  const points = {
    count: 5,
    classes: ["coat", "bag", "boot"],
    labels: { true: [0, 0, 2, 2, 2] },
    by: () => "true",
    correct: () => [1, 0, 1, 1, 0],
  };
  const { byClass, total } = classNumbers(points, { selection: [0, 1, 4] });
  expect(byClass).toEqual([
    { label: 0, selected: 2, all: 2, right: 1, rightAll: 1 },
    { label: 2, selected: 1, all: 3, right: 0, rightAll: 2 },
  ]);
  expect(total).toEqual({ selected: 3, all: 5, right: 1, rightAll: 3 });
});

test("a hundred classes have each a colour and a marker of their own, and every marker an outline", () => {
  const looks = Array.from({ length: 101 }, (_, label) => `${seriesAt(label).light} ${classMarker(label)}`);
  expect(new Set(looks).size).toBe(DISTINCT);
  expect(looks[100]).toBe(looks[0]);
  expect(looks.slice(0, 10)).toEqual(SERIES.map(({ light, marker }) => `${light} ${marker}`));
  for (const { marker } of SERIES) expect(markerPath(marker, 5)).toMatch(/^M-?[\d.]+,-?[\d.]+[LA].*Z$/);
});
