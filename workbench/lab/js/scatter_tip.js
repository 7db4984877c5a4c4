// The picture of a point, its class and its row, beside it.
function createTip(parent, points, store) {
  const { sprite } = points;
  const [, h, w, c] = sprite.shape;
  const image = make("canvas", { width: w, height: h, class: "wb-sc-thumb" });
  const text = make("div");
  const element = make("div", { class: "wb-sc-tip", hidden: true, "aria-hidden": "true" }, image, text);
  parent.append(element);
  const context = image.getContext("2d");
  return {
    hide: () => { element.hidden = true; },
    show(row, x, y, width, height) {
      context.putImageData(new ImageData(spritePixels(sprite.data, row, h, w, c), w, h), 0, 0);
      const [name, ...rest] = describePoint(points, store.get(), row);
      text.replaceChildren(make("b", {}, name), ...rest.map((line) => make("div", {}, line)));
      element.hidden = false;
      const [tall, wide] = [element.offsetHeight, element.offsetWidth];
      element.style.left = `${x + 14 + wide > width ? Math.max(0, x - 14 - wide) : x + 14}px`;
      element.style.top = `${Math.max(0, Math.min(height - tall, y - tall / 2))}px`;
    },
  };
}

function spritePixels(data, row, h, w, c) {
  const pixels = new Uint8ClampedArray(h * w * 4);
  for (let i = 0; i < h * w; i += 1) {
    const from = (row * h * w + i) * c;
    for (let k = 0; k < 3; k += 1) pixels[4 * i + k] = data[from + (c >= 3 ? k : 0)];
    pixels[4 * i + 3] = 255;
  }
  return pixels;
}
