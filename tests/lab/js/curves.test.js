import { expect, test } from "vitest";
import {
  createScales,
  lineStyle,
  logTicks,
  lowerBound,
  nearest,
  pathOf,
  smoothed,
  stepTicks,
  ticks,
  tickText,
  tickTexts,
} from "../../../workbench/lab/js/chart.js";
import { fullSpan, pressed } from "../../../workbench/lab/js/charts.js";
import { applyNews, extend } from "../../../workbench/lab/js/live.js";

test("ticks are round numbers", () => {
  expect(ticks(0, 8, 4)).toEqual([0, 2, 4, 6, 8]);
  expect(ticks(0, 1, 4)).toEqual([0, 0.5, 1]);
  expect(ticks(-3, 12, 3)).toEqual([0, 5, 10]);
  expect(ticks(4, 4, 3)).toEqual([4]);
  expect(logTicks(1, 1000)).toEqual([1, 10, 100, 1000]);
  expect(logTicks(1, 10)).toEqual([1, 2, 5, 10]);
  expect([0, 0.5, 1].map((value) => tickText(value, [0, 0.5, 1]))).toEqual(["0.0", "0.5", "1.0"]);
});

test("steps are whole, and labels are short and distinct", () => {
  expect(stepTicks(1, 2, 4)).toEqual([1, 2]);
  expect(stepTicks(0, 3, 8)).toEqual([0, 1, 2, 3]);
  expect(stepTicks(0, 6000, 4)).toEqual([0, 2000, 4000, 6000]);
  expect(stepTicks(2.2, 2.9, 4)).toEqual([]); // zoomed in between two steps
  const text = (values) => tickTexts(values, (value) => tickText(value, values));
  expect(text([0, 0.5, 1])).toEqual(["0.0", "0.5", "1.0"]);
  expect(text([0.00001, 0.0000102])).toEqual(["1.00e-5", "1.02e-5"]);
  expect(text([10000000, 20000000])).toEqual(["1e7", "2e7"]);
});

test("a run has the colour of the theme, and dashes in widths of its line", () => {
  expect(lineStyle(0, "light")).toEqual({ index: 0, colour: "#0072b2", dash: "" });
  expect(lineStyle(11, "dark").colour).toBe(lineStyle(1, "dark").colour);
  expect(lineStyle(1, "dark").colour).not.toBe(lineStyle(1, "light").colour);
  expect(lineStyle(1, "light").dash).toBe("6.7 2.9"); // 3.7 and 1.6 times 1.8 pixels
});

test("smoothing weighs what came before, without a start at zero", () => {
  // (0.5 * 4 + 2) / 1.5, then (0.25 * 4 + 0.5 * 2 + 7) / 1.75.
  expect(smoothed([4, 2, 7], 0.5)).toEqual([4, 4 / 1.5, 9 / 1.75]);
  expect(smoothed([4, 2], 0)).toEqual([4, 2]);
});

test("the step that is nearest", () => {
  const steps = [10, 20, 40];
  expect([5, 20, 21, 41].map((step) => lowerBound(steps, step))).toEqual([0, 1, 2, 3]);
  expect([5, 14, 31, 99].map((step) => nearest(steps, step))).toEqual([0, 0, 2, 2]);
});

test("curves are placed within the borders, and broken where a value is missing", () => {
  const [steps, drawn] = [
    [0, 50, 100],
    [0, null, 10],
  ];
  // 200 x 100 pixels within the borders; the values have 6 % of room: -0.6 to 10.6.
  const scales = createScales([{ steps, drawn }], { span: [0, 100], width: 266, height: 132, log: false });
  expect(scales.shown).toEqual([-0.6, 10.6]);
  expect([scales.x(50), scales.y(5), scales.y(10.6), scales.step(154)]).toEqual([154, 58, 8, 50]);
  expect(pathOf(steps, [5, null, 5], scales, false)).toBe("M54.0 58.0M254.0 58.0");
  expect(createScales([{ steps, drawn: [-1, 0, null] }], { span: [0, 100], width: 266, height: 132, log: true })).toBe(
    null,
  );
});

function keyboard(state) {
  let now = { range: null, _cursor: null, ...state };
  const store = {
    get: () => now,
    set(partial) {
      now = { ...now, ...partial };
    },
  };
  const chart = { lines: [{ steps: [] }, { steps: Array.from({ length: 21 }, (_, at) => 10 * at) }] }; // 0, 10 ... 200
  const span = () => now.range ?? [0, 200];
  return (key, shiftKey = false) => [pressed(store, chart, span, { key, shiftKey }), now._cursor, now.range];
}

test("arrow keys read off the steps of the first line that has some", () => {
  const press = keyboard({});
  expect(press("ArrowLeft")).toEqual([true, 190, null]); // from the newest
  expect(press("ArrowLeft", true)).toEqual([true, 90, null]);
  expect(press("PageDown")).toEqual([true, 0, null]); // not beyond the first
  expect(press("End")).toEqual([true, 200, null]);
  expect(press("x")).toEqual([false, 200, null]);
});

test("plus and minus zoom about the step that is read off, and 0 shows all steps", () => {
  const press = keyboard({ _cursor: 60 });
  expect(press("+")).toEqual([true, 60, [10, 110]]);
  expect(press("+")).toEqual([true, 60, [35, 85]]);
  expect(press("-")).toEqual([true, 60, [10, 110]]);
  expect(press("Home")).toEqual([true, 10, [10, 110]]);
  expect(press("0")).toEqual([true, 10, null]);
  expect(press("Escape")).toEqual([true, null, null]);
});

test("the span goes from the first to the last step of all curves and scores", () => {
  const run = { curves: { loss: [[5, 9], []], other: [[], []] }, scores: { points: [[2], [7]] } };
  expect(fullSpan([run])).toEqual([2, 9]);
  expect(fullSpan([{ curves: { loss: [[5], [1]] } }])).toEqual([4, 6]);
  expect(fullSpan([{ curves: {} }])).toEqual([0, 1]);
});

test("only points after the last one are added", () => {
  const curves = {
    loss: [
      [1, 2],
      [9, 8],
    ],
  };
  const more = {
    loss: [
      [2, 3],
      [0, 7],
    ],
    speed: [[3], [80]],
  };
  expect(extend(curves, more, 3)).toBe(true);
  expect(curves).toEqual({
    loss: [
      [1, 2, 3],
      [9, 8, 7],
    ],
    speed: [[3], [80]],
  });
  expect(extend(curves, { loss: [[4], [6]] }, 3)).toBe(false);
});

test("a whole run replaces what was known of it", () => {
  const runs = [{ name: "a", log: ["x"], curves: { loss: [[1], [1]] } }];
  expect(applyNews(runs, { 0: { whole: true, name: "a", curves: {} } }, 10)).toBe(true);
  expect(runs).toEqual([{ whole: true, name: "a", curves: {} }]);
});
