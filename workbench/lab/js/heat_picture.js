// Both maps and the colour bar on white. The colours of a dark page are laid over these by its style alone.
function heatPicture(grids, scale, table, state) {
  let x = 0;
  const inner = grids.map((grid) => {
    const copy = grid.element.cloneNode(true);
    copy.querySelectorAll("[visibility=hidden], .wb-ht-over").forEach((one) => one.remove());
    const placed = `<g transform="translate(${x},26)">${copy.innerHTML}</g>`;
    x += grid.width + 20;
    return placed;
  });
  const tall = 26 + Math.max(...grids.map(({ height }) => height));
  const title = [table.chosen("measure", state), table.chosen("version", state)].map(table.named).join(" · ");
  return svgDocument(Math.max(x, scale.width), tall + scale.height + 6, svgText(title, HEAT.left, 18, { size: 13, weight: 600 })
    + `${inner.join("")}<g transform="translate(0,${tall})">${scale.element.innerHTML}</g>`);
}
