import { expect, test } from "vitest";
import { heatColour, inkOn, VIRIDIS, viridisOffset } from "../../../workbench/lab/js/colours.js";
import {
  durationText,
  heatNumber,
  hoursText,
  numberText,
  percent,
  plain,
  shareText,
} from "../../../workbench/lab/js/numbers.js";
import { codeOf, svgText, wrapped } from "../../../workbench/lab/js/saving.js";
import { createStore } from "../../../workbench/lab/js/store.js";

test("numbers without needless digits", () => {
  expect([plain(2.5), plain(2), plain(0.1 + 0.2)]).toEqual(["2.5", "2", "0.3"]);
  expect(percent(0.834)).toBe("83 %");
  expect([shareText(5, 6), shareText(3, 3), shareText(0, 0)]).toEqual([".83", "1.00", "–"]);
  expect([1234567, 1234.56, 0.0123456, null].map(numberText)).toEqual(["1,234,567", "1,235", "0.01235", "–"]);
});

test("digits of a heat map follow the largest value", () => {
  expect([heatNumber(0.834, [0, 1]), heatNumber(3.21, [0, 5]), heatNumber(412.3, [0, 900])]).toEqual([
    ".83",
    "3.2",
    "412",
  ]);
  expect(heatNumber(-0.001, [-1, 1])).toBe(".00"); // no minus before a zero
  expect(heatNumber(-0.5, [-1, 1], 3)).toBe("-.500");
});

test("durations take the unit that reads best", () => {
  expect([59, 120, 7200, 172800].map(durationText)).toEqual(["59 s", "2 min", "2.0 h", "2.0 days"]);
  expect([89, 90, 5400].map(hoursText)).toEqual(["89 s", "2 min", "1.5 h"]);
});

test("colours at the ends and in the middle", () => {
  expect([viridisOffset(-1), viridisOffset(0.5), viridisOffset(1)]).toEqual([0, 3 * 128, 3 * 255]);
  expect([...VIRIDIS.subarray(765)]).toEqual([0xfd, 0xe7, 0x25]);
  expect(heatColour(0, true)).toEqual([11, 79, 138]);
  expect(heatColour(0.5, true)).toEqual([245, 245, 242]);
  expect(heatColour(0.125, true)).toEqual([61, 124, 176]); // half way between the first two stops
  expect([inkOn([253, 231, 37]), inkOn([68, 1, 84])]).toEqual(["#111", "#fff"]);
});

test("copied code has the values of the state as Python writes them", () => {
  const axes = { w: { continuous: true }, layer: { values: [2, 8, 12] } };
  const store = createStore({ axes, options: {} }, { w: 2.5000000001, layer: 1, basis: "per map", selection: [1, 2] });
  const template = "view(w={w}, layer={layer}, basis={basis}, selection={selection}, {other})";
  expect(codeOf(template, store)).toBe('view(w=2.5, layer=8, basis="per map", selection=[1, 2], {other})');
});

test("text in an SVG is escaped", () => {
  expect(svgText('a < b & "c"', 1, 2)).toContain(">a &lt; b &amp; &quot;c&quot;</text>");
});

test("changes made in one event reach the listeners together", async () => {
  const store = createStore({ axes: {}, options: {} }, { a: 1, b: [1], c: 3 });
  const heard = [];
  store.subscribe((state, changed) => heard.push([state, [...changed]]));
  store.set({ a: 2, b: [1] }); // b is the same
  store.set({ c: 4 });
  await Promise.resolve();
  expect(heard).toEqual([[{ a: 2, b: [1], c: 4 }, ["a", "c"]]]);
});

test("a text is wrapped between its words", () => {
  expect(wrapped("what the model was given", 18)).toEqual(["what the model was", "given"]);
  expect(wrapped("t 0.5, w 1", 20)).toEqual(["t 0.5, w 1"]);
  expect(wrapped("trouser", 3)).toEqual(["trouser"]);
});
