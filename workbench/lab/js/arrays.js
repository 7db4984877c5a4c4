// Typed arrays, and positions in them.

const TYPES = { int8: Int8Array, uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array, float32: Float32Array };

// Typed arrays over the bytes of a view, which Python aligns to 8 bytes.
export function unpack(meta, data, index) {
  let view = ArrayBuffer.isView(data) ? data : new Uint8Array(data);
  if (view.byteOffset % 8) view = new Uint8Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
  const made = {};
  for (const [key, { dtype, shape, offset, pane }] of Object.entries(meta.arrays)) {
    if (pane !== index) continue;
    const count = shape.reduce((product, size) => product * size, 1);
    const array = new TYPES[dtype](view.buffer, view.byteOffset + offset, count);
    made[key.slice(key.indexOf("/") + 1)] = { data: array, shape };
  }
  const arrays = (name) => {
    if (!made[name]) throw new Error(`there is no array "${name}"; there are ${Object.keys(made).join(", ")}`);
    return made[name];
  };
  arrays.has = (name) => name in made;
  return arrays;
}

// Offset of the block given by leading indices, in a row-major array.
export function blockStart({ shape }, indices) {
  let offset = 0;
  shape.forEach((size, axis) => {
    offset = offset * size + (indices[axis] ?? 0);
  });
  return offset;
}
