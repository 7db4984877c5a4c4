// Live panel: applies updates from the kernel and shows each run beside the charts.

import { createCharts, KEEPS, swatch } from "./charts.js";
import { createFrame, followSurroundings } from "./controls.js";
import { inView, make, setText } from "./dom.js";
import { durationText, numberText } from "./numbers.js";
import { copyText, download, rasterised, stacked } from "./saving.js";
import { createStore } from "./store.js";

// The card of one run beside its curves: state, speed, time left, commands, samples, log.

const WORSE = ["lost", "failed"];
const ASK = { pause: "Pause", resume: "Resume", checkpoint: "Checkpoint", stop: "Stop" };

const HELP = {
  pause: "Pause after this step and keep everything in memory",
  resume: "Continue: a paused run at once, an ended one from its newest checkpoint",
  checkpoint: "Save a checkpoint after this step and continue",
  stop: "Save a checkpoint after this step and end",
};

function speedText({ step, steps, images_per_second: images, seconds_a_step: each, left, seconds }) {
  const parts = [`step ${numberText(step)} of ${numberText(steps)}`];
  if (images)
    parts.push(
      `${numberText(Math.round(images * 10) / 10)} images/s, ${numberText(Math.round(1000 * each))} ms a step`,
    );
  if (left !== null && left !== undefined) parts.push(`${durationText(left)} left`);
  if (seconds) parts.push(`${durationText(seconds)} trained`);
  return parts.join(" · ");
}

// `ask(what, value)` sends a command. The parts stay the same elements, so that the focus stays where it is.
function createRun(run, index, ui, ask) {
  const state = make("span", { class: "wb-state" });
  const progress = make("progress", { "aria-label": `progress of ${run.name}` });
  const speed = make("div", { class: "wb-speed" });
  const remark = make("div", { class: "wb-remark" });
  const answer = make("div", { class: "wb-answer" });
  const buttons = Object.entries(ASK).map(([what, label]) => {
    const button = ui.button({ label, title: HELP[what], onclick: () => ask(what) });
    button.setAttribute("aria-label", `${label} ${run.name}`);
    button.dataset.what = what;
    return button;
  });
  const rate = createRate(run, ui, ask);
  const samples = make("img", { class: "wb-strip" });
  const caption = make("figcaption", {});
  const figure = make("figure", { class: "wb-newest" }, samples, caption);
  const log = make("pre", { class: "wb-log", tabindex: 0, "aria-label": `log of ${run.name}` });
  const details = make("details", {}, make("summary", {}, "Log"), log);
  const toEnd = () => {
    log.scrollTop = log.scrollHeight;
  };
  details.addEventListener("toggle", toEnd); // a closed one has no height
  const head = make("div", { class: "wb-run-head" }, swatch(index), make("h3", {}, run.name), state);
  const bar = make(
    "div",
    { class: "wb-bar", role: "group", "aria-label": `commands for ${run.name}` },
    ...buttons,
    rate.element,
  );
  const element = make(
    "section",
    { class: "wb-run", "aria-label": run.name },
    head,
    progress,
    speed,
    remark,
    bar,
    answer,
    figure,
    details,
  );
  let worse = false;

  function update() {
    const status = run.status ?? { state: "unreadable", can: {}, step: 0, steps: 1, remark: "" };
    const bad = WORSE.includes(status.state) || !run.status;
    setText(state, status.state === "starting" && status.step > 0 ? "resuming" : status.state);
    element.classList.toggle("wb-worse", bad);
    element.dataset.state = status.state;
    Object.assign(progress, { max: Math.max(1, status.steps), value: status.step });
    progress.setAttribute("aria-valuetext", speedText(status));
    setText(speed, speedText(status));
    setText(remark, [run.error, status.remark].filter(Boolean).join("; "));
    const reply = status.answer;
    setText(answer, reply ? `${reply.what} at step ${numberText(reply.step)}: ${reply.result}` : "");
    buttons.forEach((button) => {
      button.disabled = !status.can[button.dataset.what];
    });
    const label = ["created", "paused"].indexOf(status.state) === 0 ? "Start" : "Resume";
    setText(buttons[1], label);
    buttons[1].setAttribute("aria-label", `${label} ${run.name}`);
    rate.update(status.can.set, run.settings?.learning_rate);
    figure.hidden = !run.samples;
    if (run.samples) showSamples(samples, caption, run.samples);
    details.hidden = !run.log?.length;
    const text = (run.log ?? []).join("\n");
    const follows = log.scrollTop + log.clientHeight >= log.scrollHeight - 4; // not while earlier lines are read
    setText(log, text);
    if (follows) toEnd();
    if (bad && !worse && text) details.open = true;
    worse = bad;
  }

  return { element, update };
}

function showSamples(image, caption, { step, names, count, png }) {
  const source = `data:image/png;base64,${png}`;
  if (image.getAttribute("src") !== source) image.src = source;
  image.alt = `samples at step ${numberText(step)}: ${names.join(", ")}`;
  image.title = names.join(", ");
  setText(caption, `newest ${count} samples, step ${numberText(step)}`);
}

// The learning rate: updates of the panel do not replace text that is being typed.
function createRate(run, ui, ask) {
  const input = make("input", {
    type: "text",
    inputmode: "decimal",
    size: 8,
    "aria-label": `learning rate of ${run.name}`,
  });
  let now;
  const send = () => {
    const value = Number(input.value);
    if (!(value > 0)) throw new Error(`learning rate must be a number above 0; got ${JSON.stringify(input.value)}`);
    ask("set", value);
  };
  const button = ui.button({ label: "Set", title: "Continue with this learning rate", onclick: send });
  button.setAttribute("aria-label", `set learning rate of ${run.name}`);
  input.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Enter") button.click();
  });
  const element = make(
    "span",
    { class: "wb-rate" },
    make("span", { class: "wb-name", "aria-hidden": "true" }, "learning rate"),
    input,
    button,
  );
  const update = (can, value) => {
    input.disabled = !can;
    button.disabled = !can;
    const untouched = now === undefined || input.value === String(now) || input.value === "";
    if (value !== undefined && value !== now && untouched) input.value = String(value);
    if (value !== undefined) now = value;
  };
  return { element, update };
}

// Tells the kernel whether the panel is visible, so that it reads the runs of a hidden one less often.
function reportVisibility(model, root) {
  const view = Math.random().toString(36).slice(2);
  let [inside, sent] = [true, null];
  const report = () => {
    const value = inside && !document.hidden;
    try {
      if (value !== sent) model.send({ type: "visible", view, value });
      sent = value;
    } catch {
      // The kernel is gone.
    }
  };
  const observer = new IntersectionObserver((entries) => {
    inside = entries[entries.length - 1].isIntersecting;
    report();
  });
  observer.observe(root);
  document.addEventListener("visibilitychange", report);
  return () => {
    observer.disconnect();
    document.removeEventListener("visibilitychange", report);
    inside = false;
    report();
  };
}

// Mounts a live panel. Updates arrive as messages; after a reload of the page the full state is requested.

const CHOICES = { smoothing: 0, scale: "linear", range: null };

// Appends new points; false if a curve now has too many.
export function extend(curves, more, most) {
  let fits = true;
  for (const [name, [steps, values]] of Object.entries(more)) {
    curves[name] ??= [[], []];
    const curve = curves[name];
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

// Applies the points of a zoomed range; false if another range is shown by now.
function applyFiner(runs, { range, runs: curves }, shown) {
  if (!shown || range.some((end, at) => end !== shown[at])) return false;
  Object.entries(curves).forEach(([index, byName]) => {
    runs[index].finer = { range, curves: byName };
  });
  return true;
}

// Applies updates of the runs; false if the full state has to be requested.
export function applyNews(runs, news, most) {
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
  const panels = runs.map((run, index) =>
    createRun(run, index, ui, (what, value) => {
      say(`${run.name}: asked to ${what === "set" ? `set the learning rate to ${value}` : what} …`);
      model.send({ type: "command", run: index, what, value });
    }),
  );
  cards.append(...panels.map(({ element }) => element));
  const charts = createCharts(stage, runs, store);
  root.append(
    make("h2", {}, `Training: ${runs.map((run) => run.name).join(", ")}`),
    make("div", { class: "wb-watching" }, cards, make("div", {}, toolbar(store, ui), stage)),
    make("div", { class: "wb-foot" }, savers(model, runs, charts, ui), status),
  );
  el.replaceChildren(root);

  const showRuns = inView(
    cards,
    () => panels.forEach((panel) => panel.update()),
    () => store.touch("data"),
  );
  const update = (_, changed) => {
    try {
      ui.refresh();
      if (changed.has("data")) showRuns();
      charts.update(changed);
    } catch (error) {
      fail(error, "panel");
    }
  };
  const stops = [
    store.subscribe(update),
    remember(model, store),
    listen(model, { runs, store, say }),
    reportVisibility(model, root),
    followSurroundings(root, store),
  ];
  update(store.get(), new Set(["data"]));
  // The frame has no width until it is in the page.
  store.touch("size");
  return () => stops.forEach((stop) => stop());
}

function toolbar(store, ui) {
  const smoothing = ui.slider({
    label: "smoothing",
    values: KEEPS,
    format: (at) => (at ? String(KEEPS[at]) : "none"),
    get: (state) => state.smoothing,
    set: (at) => store.set({ smoothing: at }),
  });
  const scale = ui.toggle({ option: "scale", label: "scale", values: ["linear", "log"] });
  const all = ui.button({
    label: "All steps",
    title: "Or double click a chart. Drag over steps to zoom in; keys + and - zoom too",
    onclick: () => store.set({ range: null }),
  });
  store.subscribe((state) => {
    all.disabled = !state.range;
  });
  all.disabled = !store.get().range;
  return make(
    "div",
    { class: "wb-bar wb-tools", role: "group", "aria-label": "How the curves are drawn" },
    smoothing,
    scale,
    all,
  );
}

function savers(model, runs, charts, ui) {
  const name = (ending) =>
    `${runs
      .map((run) => run.name)
      .join("-")
      .slice(0, 80)}.${ending}`;
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
  return make(
    "div",
    { class: "wb-bar wb-actions", role: "group", "aria-label": "Copy and save" },
    ui.button({ label: "Copy code", title: "Python that opens this panel", onclick: copy }),
    ui.button({ label: "Save PNG", onclick: save("png", "image/png", rasterised) }),
    ui.button({ label: "Save SVG", onclick: save("svg", "image/svg+xml", ({ svg }) => svg) }),
  );
}

// Smoothing, scale and range are stored in the model; a new range requests finer points.
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
  const onMessage = (message) => {
    if (message.type === "status") say(message.text, message.wrong);
    if (message.type === "finer" && applyFiner(runs, message, store.get().range)) store.touch("data");
    if (message.type !== "news") return;
    const before = runs.map((run) => run.status?.answer?.number);
    if (Object.values(message.runs).some((changed) => changed.whole)) {
      asked = false;
      const { range } = store.get();
      if (range) model.send({ type: "range", range });
    }
    if (!applyNews(runs, message.runs, model.get("points"))) ask();
    runs.forEach((run, index) => {
      const answer = run.status?.answer;
      if (answer && answer.number !== before[index] && !message.runs[index]?.whole) {
        say(
          `${run.name}: ${answer.what} at step ${numberText(answer.step)}: ${answer.result}`,
          answer.result.startsWith("refused"),
        );
      }
    });
    store.touch("data");
  };
  model.on("msg:custom", onMessage);
  ask();
  return () => model.off("msg:custom", onMessage);
}

export default { render };
