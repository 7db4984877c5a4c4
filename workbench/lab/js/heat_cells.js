// The numbers of the heat maps: which are shown, and how they are said.
// The arrays of the pane as cells {layer, t, k}: indices of layer, time and scale.
function createHeatTable(pane, arrays, store) {
  const [values, low, high] = ["values", "low", "high"].map((name) => arrays(name));
  const [, , layers, times, scales] = values.shape;
  const stops = pane.scales;
  const chosen = (option, state) => (pane[`${option}s`].includes(state[option]) ? state[option] : pane[`${option}s`][0]);
  const index = (option, state) => pane[`${option}s`].indexOf(chosen(option, state));
  const at = (state, { layer, t, k }) => blockStart(values, [index("measure", state), index("version", state), layer, t, k]);
  const limits = pane.measures.map((name, measure) => heatLimits(pane, name, values, measure));
  const measured = (state) => measuredScales(values, at(state, { layer: 0, t: 0, k: 0 }));

  // The measured scale nearest to w.
  function scaleOf(state) {
    const w = store.value("w", state) ?? stops[0];
    return measured(state).reduce((best, k) => (Math.abs(stops[k] - w) < Math.abs(stops[best] - w) ? k : best));
  }

  const table = {
    layers, times, scales, stops, chosen, measured, scaleOf,
    named: (name) => pane.labels?.[name] ?? name,
    centre: (state) => pane.centre?.[chosen("measure", state)],
    chance: (state) => pane.chance?.[chosen("measure", state)],
    limits: (state) => limits[index("measure", state)],
    value: (state, cell) => values.data[at(state, cell)],
    here: (state) => ({ layer: store.index("layer", state), t: store.index("t", state), k: scaleOf(state) }),
    caption: (across, state) => heatCaption(table, store, across, state),
    sentence: (state, cell) => heatSentence(table, store, state, cell),
    interval: (state, cell) => [low.data[at(state, cell)], high.data[at(state, cell)]],
    colour(state, value) {
      const [least, most] = table.limits(state);
      return heatColour((value - least) / (most - least), table.centre(state) !== undefined);
    },
  };
  return table;
}

// Scales at which a measure was taken at all, whose cells begin at `from`: one without guidance has one only.
function measuredScales({ data, shape }, from) {
  const [, , layers, times, scales] = shape;
  const found = Array(scales).fill(false);
  for (let i = 0; i < layers * times * scales; i += 1) found[i % scales] ||= Number.isFinite(data[from + i]);
  const kept = found.flatMap((one, k) => (one ? [k] : []));
  return kept.length ? kept : [...found.keys()];
}

// Limits of the colours: of all versions of a measure, so that these can be compared; chance lies within.
function heatLimits(pane, name, { data, shape }, measure) {
  const size = shape.slice(1).reduce((product, count) => product * count);
  const own = [...data.subarray(measure * size, (measure + 1) * size).filter(Number.isFinite)];
  if (own.length && pane.chance?.[name] !== undefined) own.push(pane.chance[name]);
  const [least, most] = own.length ? [Math.min, Math.max].map((best) => own.reduce((a, b) => best(a, b))) : [0, 1];
  const centre = pane.centre?.[name];
  if (centre === undefined) return [least, most > least ? most : least + 1];
  const reach = Math.max(most - centre, centre - least) || 1;
  return [centre - reach, centre + reach];
}

// "at w = 2.5 (nearest to 2.4)", or of the other map "at t = 0.3 (w = 0 only)".
function heatCaption(table, store, across, state) {
  const { stops } = table;
  const [kept, w] = [table.measured(state), store.value("w", state)];
  if (across === "w") {
    const only = kept.length === 1 ? ` (w = ${plain(stops[kept[0]])} only)` : "";
    return `at t = ${plain(store.value("t", state) ?? 0)}${only}`;
  }
  const stop = stops[table.scaleOf(state)];
  if (w === undefined) return "";
  return `at w = ${plain(stop)}${Math.abs(stop - w) < 1e-6 ? "" : ` (nearest to ${plain(w)})`}`;
}

// "layer 8, t = 0.3, w = 2.5: kNN .834 (95 % interval .801 to .862), chance .10"
function heatSentence(table, store, state, cell) {
  const { layer, t, w } = store.axes;
  const where = [
    layer && `layer ${plain(layer.values[cell.layer])}`, t && `t = ${plain(t.values[cell.t])}`,
    w && `w = ${plain(table.stops[cell.k])}`,
  ].filter(Boolean).join(", ");
  const [value, name, limits] = [table.value(state, cell), table.named(table.chosen("measure", state)), table.limits(state)];
  if (!Number.isFinite(value)) return `${where}: ${name} not measured`;
  const ends = table.interval(state, cell);
  const said = ends.map((end) => heatNumber(end, limits, 3)).join(" to ");
  const interval = ends.every(Number.isFinite) ? ` (95 % interval ${said})` : "";
  const chance = table.chance(state) === undefined ? "" : `, chance ${heatNumber(table.chance(state), limits)}`;
  return `${where}: ${name} ${heatNumber(value, limits, 3)}${interval}${chance}`;
}
