// What a scatter shows: classes, places in the plane, who has the right neighbours, and how that is said.
const METHOD_NAMES = { pca: "PCA", tsne: "t-SNE", umap: "UMAP" };

// The stop of the w axis that is nearest to w; arrays without such an axis have one stop.
function nearestStop(store, state, count) {
  const stops = store.axes.w?.stops ?? [];
  const w = store.value("w", state);
  let best = 0;
  for (let i = 1; i < Math.min(count, stops.length); i += 1) {
    if (Math.abs(stops[i] - w) < Math.abs(stops[best] - w)) best = i;
  }
  return { index: best, value: stops[best], exact: stops[best] === undefined || Math.abs(stops[best] - w) < 1e-6 };
}

function createPoints(pane, arrays, store) {
  const labels = { true: arrays("labels").data, given: arrays.has("given") ? arrays("given").data : null };
  const count = labels.true.length;
  const methods = ["pca", "tsne", "umap"].filter((name) => arrays.has(name === "pca" ? "u" : name));
  const where = (state) => ["source", "step", "t", "layer"].map((name) => store.index(name, state));
  const method = (state) => (methods.includes(state.method) ? state.method : methods[0]);
  const by = (state) => (labels.given && state.labels === "given" ? "given" : "true");
  const stops = arrays("correct").shape[4];
  return {
    count, methods, method, by, labels,
    classes: pane.names.map(String),
    sprite: arrays("sprite"),
    order: shuffled(count),
    // Places of the state's frame, in the units of the embedding.
    places(state, out) {
      if (method(state) === "pca") return principalPlaces(arrays, where(state), store.value("w", state) ?? 0, out);
      const stop = nearestStop(store, state, arrays(method(state)).shape[4]).index;
      return framePlaces(arrays, method(state), [...where(state), stop], out);
    },
    // Who has the right neighbours, by the labels that the classes are told apart by.
    correct(state) {
      const found = arrays(by(state) === "given" ? "correct_given" : "correct");
      const from = blockStart(found, [...where(state), nearestStop(store, state, stops).index]);
      return found.data.subarray(from, from + count);
    },
    title: (state) => scatterTitle(store, state, method(state), stops),
    note: (state) => scatterNote(pane.neighbours, method(state), by(state)),
  };
}

// Coordinates of f_g are u + w d (Eq. 3).
function principalPlaces(arrays, at, w, out) {
  const [u, d] = [arrays("u"), arrays("d")];
  const [from, scale] = [blockStart(u, at), blockStart(arrays("u_scale"), at)];
  const a = arrays("u_scale").data[scale];
  const b = arrays("d_scale").data[scale] * w;
  for (let i = 0; i < out.length; i += 1) out[i] = a * u.data[from + i] + b * d.data[from + i];
  return out;
}

function framePlaces(arrays, method, at, out) {
  const [frames, scale] = [arrays(method), arrays(`${method}_scale`)];
  const from = blockStart(frames, at);
  const a = scale.data[blockStart(scale, at.slice(0, scale.shape.length))];
  for (let i = 0; i < out.length; i += 1) out[i] = a * frames.data[from + i];
  return out;
}

// "PCA · layer 8 · t = 0.3 · w = 2.4 · kNN at w = 2.5, the nearest stop"
function scatterTitle(store, state, method, stops) {
  const stop = nearestStop(store, state, stops);
  const said = ["source", "step", "layer", "t", "w"].filter((name) => store.axes[name])
    .map((name) => namedValue(store, name, state));
  if (!stop.exact) said.push(`${method === "pca" ? "kNN" : "shown"} at w = ${plain(stop.value)}, the nearest stop`);
  return [METHOD_NAMES[method], ...said].join(" · ");
}

function scatterNote(neighbours, method, by) {
  const own = by === "given" ? "the label that they were given" : "their own class";
  const knn = `kNN: share of images whose ${neighbours ? `${neighbours} ` : ""}nearest others, in the original space, `
    + `vote for ${own}.`;
  if (method === "pca") return `The bar is a length in the features' own units; the plot always fits. ${knn}`;
  return `Distances between clusters, and their sizes, mean nothing in ${METHOD_NAMES[method]}. ${knn}`;
}

// "layer 8", "t = 0.3"; a source goes by its own name.
function namedValue(store, name, state) {
  const text = store.text(name, state[name]);
  if (name === "source") return text;
  return name.length === 1 ? `${name} = ${text}` : `${store.axes[name].label} ${text}`;
}

// Rows in an order that is always the same and mixes the classes, so that none hides the others.
function shuffled(count) {
  const order = Uint32Array.from({ length: count }, (_, i) => i);
  let seed = 1;
  for (let i = count - 1; i > 0; i -= 1) {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    const j = Math.floor((seed / 4294967296) * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

function describePlot(points, state, selected) {
  const chosen = selected.reduce((sum, one) => sum + one, 0);
  return `${points.title(state)}: ${points.count} images of ${points.classes.length} classes, `
    + `${chosen ? `${chosen} selected` : "none selected"}`;
}

// What a point is: ["coat, given label bag", "row 17", "kNN right"].
function describePoint(points, state, row) {
  const { labels, classes } = points;
  const given = labels.given ? labels.given[row] : labels.true[row];
  const name = classes[labels.true[row]] + (given === labels.true[row] ? "" : `, given label ${classes[given]}`);
  return [name, `row ${row}`, `kNN ${points.correct(state)[row] ? "right" : "wrong"}`];
}
