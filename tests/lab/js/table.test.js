import { expect, test } from "vitest";
import { cellText, rowsShown, scoreNames } from "../../../workbench/lab/js/table.js";

const LOOK = { search: "", state: "all", method: "all", sort: null, down: false, score: "fid" };
const row = (name, more) => ({
  name,
  state: "finished",
  method: "none",
  scores: {},
  tags: [],
  notes: "",
  teacher: "",
  remark: "",
  ...more,
});
const ROWS = [
  row("run-10", { scores: { fid: 9.5 }, tags: ["a", "b"] }),
  row("run-2", { state: "failed", notes: "lost its disk" }),
  row("run-1", { scores: { fid: 30 }, method: "guided" }),
];
const names = (look) => rowsShown(ROWS, { ...LOOK, ...look }).map(({ name }) => name);

test("every word of the search has to be somewhere in a row", () => {
  expect(names({})).toEqual(["run-10", "run-2", "run-1"]);
  expect(names({ search: " Disk  RUN " })).toEqual(["run-2"]);
  expect(names({ search: "disk guided" })).toEqual([]);
  expect(names({ state: "failed" })).toEqual(["run-2"]);
  expect(names({ method: "guided" })).toEqual(["run-1"]);
});

test("numbers in names sort as numbers, and a missing value comes last in both directions", () => {
  expect(names({ sort: "name" })).toEqual(["run-1", "run-2", "run-10"]);
  expect(names({ sort: "score" })).toEqual(["run-10", "run-1", "run-2"]);
  expect(names({ sort: "score", down: true })).toEqual(["run-1", "run-10", "run-2"]);
});

test("cells", () => {
  const one = row("a", { step: 1500, steps: 20000, cost: 7200, loss: 0.123456, tags: ["x", "y"], w: null });
  expect(["step", "cost", "loss", "tags", "w", "score"].map((key) => cellText(one, key, "fid"))).toEqual([
    "1,500 / 20,000",
    "2.0 h",
    "0.1235",
    "x, y",
    "",
    "",
  ]);
});

test("metrics of samples come before those of layers", () => {
  const scores = { "knn of layer 8": 0.5, fid: 9, cmmd: 1, "fd-clf64": 2 };
  expect(scoreNames([row("a", { scores })])).toEqual(["fd-clf64", "fid", "cmmd", "knn of layer 8"]);
});
