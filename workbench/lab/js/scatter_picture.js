// The plot and its table as a picture for a paper, on white.
function scatterPicture(points, { view }, table, state, ui) {
  const { width, height, radius } = view;
  const top = 40;
  const labels = points.labels[points.by(state)];
  const any = view.selected.includes(1);
  const marks = [...new Set(labels)].map((label) => `<path id="wb-m${label}" d="${markerPath(ui.marker(label), radius)}"`
    + ` fill="${ui.palette(label)}"/>`).join("");
  const uses = (pass) => {
    const drawn = [];
    for (const i of points.order) {
      const [x, y] = [view.x(i), view.y(i)];
      if (view.selected[i] !== pass || x < 0 || y < 0 || x > width || y > height) continue;
      drawn.push(`<use href="#wb-m${labels[i]}" x="${x.toFixed(1)}" y="${y.toFixed(1)}"/>`);
    }
    return drawn.join("");
  };
  const bar = scaleBar(view);
  const measure = bar ? `<rect x="10" y="${height - 11}" width="${bar.length}" height="1.5" fill="#444" stroke="none"/>`
    + svgText(bar.text, 10, height - 17).replace("<text", '<text stroke="none"') : "";
  const plotted = `<g transform="translate(0,${top})" stroke="#000" stroke-opacity=".4" stroke-width=".5">`
    + `<g opacity="${any ? 0.25 : 0.9}">${uses(0)}</g><g stroke-opacity="1" stroke-width="1">${any ? uses(1) : ""}</g>`
    + `${measure}</g>`;
  const legend = classPicture(points, table.numbers(), ui, width + 24, top + 14);
  return svgDocument(width + 24 + legend.width, Math.max(top + height, legend.bottom) + 10, `<defs>${marks}</defs>`
    + svgText(points.title(state), 10, 24, { size: 13, weight: 600 }) + plotted + legend.body);
}

// The table of the classes with its left upper corner at (x, y).
function classPicture(points, { byClass, total }, ui, x, y) {
  const places = [[x + 14, "start"], [x + 200, "end"], [x + 262, "end"], [x + 322, "end"]];
  const line = (texts, at, weight = 400) => texts.map((text, i) => svgText(text, places[i][0], at,
    { anchor: places[i][1], weight })).join("");
  const told = (name, { selected, all, right, rightAll }) => [
    name, `${counted(selected)} of ${counted(all)}`, shareText(right, selected), shareText(rightAll, all),
  ];
  // A picture has room for 40: those selected before the others, and the last line says of how many.
  const listed = byClass.length > 40 ? byClass.filter((one) => one.selected)
    .concat(byClass.filter((one) => !one.selected)).slice(0, 40) : byClass;
  const name = byClass.length > 40 ? `All ${counted(byClass.length)} classes` : "All classes";
  const rows = listed.map((one, i) => `<path transform="translate(${x + 2},${y + 16 + 20 * i})" fill="${ui.palette(one.label)}"`
    + ` d="${markerPath(ui.marker(one.label), 5)}"/>${line(told(points.classes[one.label], one), y + 20 + 20 * i)}`);
  const bottom = y + 20 + 20 * listed.length;
  const body = line(["Class", "selected", "kNN, sel.", "kNN, all"], y, 600) + rows.join("")
    + line(told(name, total), bottom + 4, 600);
  return { body, bottom: bottom + 4, width: 336 };
}
