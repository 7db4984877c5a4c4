import { expect, test } from "vitest";
import { blockStart, unpack } from "../../../workbench/lab/js/arrays.js";

test("a block begins where the leading indices say, in row-major order", () => {
  // (1 * 3 + 2) * 4 = 20: the last axis is inside the block.
  expect(blockStart({ shape: [2, 3, 4] }, [1, 2])).toBe(20);
  expect(blockStart({ shape: [2, 3, 4] }, [])).toBe(0);
});

test("arrays of one pane are read at any alignment of their bytes", () => {
  const bytes = new Uint8Array(21);
  bytes.set(new Uint8Array(new Float32Array([1.5, -2]).buffer), 1);
  bytes.set(new Uint8Array(new Int16Array([7, 8, 9]).buffer), 9);
  const arrays = {
    "0/u": { dtype: "float32", shape: [1, 2], offset: 0, pane: 0 },
    "0/d": { dtype: "int16", shape: [3], offset: 8, pane: 0 },
    "1/u": { dtype: "uint8", shape: [1], offset: 0, pane: 1 },
  };
  const read = unpack({ arrays }, new DataView(bytes.buffer, 1), 0);
  expect([...read("u").data]).toEqual([1.5, -2]);
  expect([...read("d").data]).toEqual([7, 8, 9]);
  expect(read.has("d")).toBe(true);
  expect(() => read("v")).toThrow('there is no array "v"; there are u, d');
});
