// The colour bar, with its numbers and the level of chance.
function createHeatScale(table) {
  const width = 300;
  const element = svgElement("svg", { class: "wb-ht-scale", role: "img", width, height: 58, viewBox: `0 0 ${width} 58` });
  const [left, right] = [HEAT.left, width - 20];
  const update = (state) => {
    const [least, most] = table.limits(state);
    const middle = table.centre(state) ?? (least + most) / 2;
    const place = (value) => left + ((right - left) * (value - least)) / (most - least);
    const steps = 64;
    const parts = Array.from({ length: steps }, (_, i) => {
      const x = left + ((right - left) * i) / steps;
      const colour = heatColour((i + 0.5) / steps, table.centre(state) !== undefined);
      return `<rect x="${x}" y="20" width="${(right - left) / steps + 0.5}" height="10" fill="rgb(${colour})"/>`;
    });
    const ink = (text) => text.replace("<text", '<text class="wb-ht-ink"');
    const side = (value) => (place(value) < left + 30 ? "start" : place(value) > right - 30 ? "end" : "middle");
    const label = (value, y, said, anchor = "middle") => ink(svgText(said, place(value), y, { anchor }));
    const ticks = [least, middle, most].map((value) => label(value, 44, heatNumber(value, [least, most])));
    const chance = table.chance(state);
    const mark = chance === undefined ? "" : `<path class="wb-ht-chance" d="M${place(chance)},17V33" stroke="#1c1e21"`
      + ` stroke-width="2"/>${label(chance, 12, `chance ${heatNumber(chance, [least, most])}`, side(chance))}`;
    element.innerHTML = parts.join("") + ticks.join("") + mark;
    element.setAttribute("aria-label", `Colours from ${heatNumber(least, [least, most])} to ${heatNumber(most, [least, most])}`
      + `${chance === undefined ? "" : `, chance ${heatNumber(chance, [least, most])}`}`);
  };
  return { element, update, width, height: 58 };
}
