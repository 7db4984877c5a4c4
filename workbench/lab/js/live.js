// Mounts a live panel. What is new comes as messages; after a reload of the page it asks for everything.
const KEEPS = [0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99];
const CHOICES = { smoothing: 0, scale: "linear", range: null };

// Points that were logged since, after those there are; false if there are now more than a curve may have.
function extend(curves, more, most) {
  let fits = true;
  for (const [name, [steps, values]] of Object.entries(more)) {
    const curve = (curves[name] ??= [[], []]);
    const last = curve[0][curve[0].length - 1] ?? -Infinity;
    steps.forEach((step, at) => {
      if (step <= last) return;
      curve[0].push(step);
      curve[1].push(values[at]);
    });
    fits = fits && curve[0].length <= most;
  }
  return fits;
}

// Takes the points of a stretch; false if the reader looks at another one by now.
function takeFiner(runs, { range, runs: curves }, shown) {
  if (!shown || range.some((end, at) => end !== shown[at])) return false;
  Object.entries(curves).forEach(([index, found]) => { runs[index].finer = { range, curves: found }; });
  return true;
}

// Takes what the kernel sent of the runs; false if everything has to be asked for.
function takeNews(runs, news, most) {
  let fits = true;
  for (const [index, changed] of Object.entries(news)) {
    const run = runs[index];
    if (changed.whole) {
      Object.keys(run).forEach((key) => delete run[key]);
      Object.assign(run, changed);
    } else {
      const { curves, ...parts } = changed;
      Object.assign(run, parts);
      if (curves) fits = extend(run.curves, curves, most) && fits;
      if (curves && run.finer) extend(run.finer.curves, curves, Infinity);
    }
  }
  return fits;
}

function render({ model, el }) {
  const runs = structuredClone(model.get("opening"));
  const store = createStore({ axes: {}, options: {} }, { ...CHOICES, ...model.get("choices"), _cursor: null });
  const { root, status, say, fail, ui } = createFrame(store, "wb-live");
  const cards = make("div", { class: "wb-runs" });
  const stage = make("div", { class: "wb-charts" });
  const panels = runs.map((run, index) => createRun(run, index, ui, (what, value) => {
    say(`${run.name}: asked to ${what === "set" ? `train on with learning rate ${value}` : what} …`);
    model.send({ type: "command", run: index, what, value });
  }));
  cards.append(...panels.map(({ element }) => element));
  const charts = createCharts(stage, runs, store);
  root.append(make("style", {}, STYLE), make("h2", {}, `Training: ${runs.map((run) => run.name).join(", ")}`),
    make("div", { class: "wb-watching" }, cards, make("div", {}, toolbar(store, ui), stage)),
    make("div", { class: "wb-foot" }, savers(model, runs, charts, ui), status));
  el.replaceChildren(root);

  const showRuns = inView(cards, () => panels.forEach((panel) => panel.update()), () => store.touch("data"));
  const update = (_, changed) => {
    try {
      ui.refresh();
      if (changed.has("data")) showRuns();
      charts.update(changed);
    } catch (error) {
      fail(error, "panel");
    }
  };
  const stops = [store.subscribe(update), remember(model, store), listen(model, { runs, store, say }),
    sayWhetherSeen(model, root), ...around(root, store)];
  update(store.get(), new Set(["data"]));
  // The frame has no width before it is in the page.
  store.touch("size");
  return () => stops.forEach((stop) => stop());
}

function toolbar(store, ui) {
  const smoothing = ui.slider({
    label: "smoothing", values: KEEPS, format: (at) => (at ? String(KEEPS[at]) : "none"),
    get: (state) => state.smoothing, set: (at) => store.set({ smoothing: at }),
  });
  const scale = ui.toggle({ option: "scale", label: "scale", values: ["linear", "log"] });
  const all = ui.button({
    label: "All steps", title: "Or double click a chart. Drag over steps to see only those; keys + and -",
    onclick: () => store.set({ range: null }),
  });
  store.subscribe((state) => { all.disabled = !state.range; });
  all.disabled = !store.get().range;
  return make("div", { class: "wb-bar wb-tools", role: "group", "aria-label": "How the curves are drawn" }, smoothing, scale, all);
}

function savers(model, runs, charts, ui) {
  const name = (ending) => `${runs.map((run) => run.name).join("-").slice(0, 80)}.${ending}`;
  const save = (ending, type, content) => async () => {
    const pictures = charts.picture();
    if (!pictures.length) throw new Error("there is no curve to save yet");
    download(await content(stacked(pictures)), type, name(ending));
    ui.status(`Saved ${name(ending)}.`);
  };
  const copy = async () => {
    await copyText(model.get("code"));
    ui.status("Copied the code of this panel.");
  };
  return make("div", { class: "wb-bar wb-actions", role: "group", "aria-label": "Copy and save" },
    ui.button({ label: "Copy code", title: "Python that opens this panel", onclick: copy }),
    ui.button({ label: "Save PNG", onclick: save("png", "image/png", rasterised) }),
    ui.button({ label: "Save SVG", onclick: save("svg", "image/svg+xml", ({ svg }) => svg) }));
}

// Smoothing, scale and range outlive the page; of a new range the finer points are asked for.
function remember(model, store) {
  let timer = 0;
  let asked = "";
  const leave = store.subscribe((state, changed) => {
    if (!["smoothing", "scale", "range"].some((key) => changed.has(key))) return;
    clearTimeout(timer);
    timer = setTimeout(() => {
      model.set("choices", { smoothing: state.smoothing, scale: state.scale, range: state.range });
      model.save_changes();
      if (state.range && String(state.range) !== asked) model.send({ type: "range", range: state.range });
      asked = String(state.range);
    }, 60);
  });
  return () => {
    clearTimeout(timer);
    leave();
  };
}

function listen(model, { runs, store, say }) {
  let asked = false;
  const ask = () => {
    if (!asked) model.send({ type: "ready" });
    asked = true;
  };
  const heard = (message) => {
    if (message.type === "said") say(message.text, message.wrong);
    if (message.type === "finer" && takeFiner(runs, message, store.get().range)) store.touch("data");
    if (message.type !== "news") return;
    const before = runs.map((run) => run.status?.answer?.number);
    if (Object.values(message.runs).some((changed) => changed.whole)) {
      asked = false;
      const { range } = store.get();
      if (range) model.send({ type: "range", range });
    }
    if (!takeNews(runs, message.runs, model.get("points"))) ask();
    runs.forEach((run, index) => {
      const answer = run.status?.answer;
      if (answer && answer.number !== before[index] && !message.runs[index]?.whole) {
        say(`${run.name}: ${answer.what} at step ${numberText(answer.step)}: ${answer.result}`, answer.result.startsWith("refused"));
      }
    });
    store.touch("data");
  };
  model.on("msg:custom", heard);
  ask();
  return () => model.off("msg:custom", heard);
}

function around(root, store) {
  const theme = () => {
    root.dataset.theme = themeOf();
    store.touch("theme");
  };
  let width = 0;
  const observer = new ResizeObserver(() => {
    if (root.clientWidth === width) return;
    width = root.clientWidth;
    store.touch("size");
  });
  observer.observe(root);
  return [watchTheme(theme), () => observer.disconnect()];
}

export default { render };
