// What a live panel says of one run beside its curves: state, speed, time left, commands, samples, log.
const WORSE = ["lost", "failed"];
const ASK = { pause: "Pause", resume: "Resume", checkpoint: "Checkpoint", stop: "Stop" };
const HELP = {
  pause: "Wait after this step, with everything kept in memory",
  resume: "Go on: a paused run at once, one that ended from its newest checkpoint",
  checkpoint: "Save after this step and go on",
  stop: "Save after this step and end",
};

function durationText(seconds) {
  const [minutes, hours, days] = [seconds / 60, seconds / 3600, seconds / 86400];
  if (days >= 2) return `${days.toFixed(1)} days`;
  if (hours >= 2) return `${hours.toFixed(1)} h`;
  return minutes >= 2 ? `${Math.round(minutes)} min` : `${Math.round(seconds)} s`;
}

function speedText({ step, steps, images_per_second: images, seconds_a_step: each, left, seconds }) {
  const parts = [`step ${numberText(step)} of ${numberText(steps)}`];
  if (images) parts.push(`${numberText(Math.round(images * 10) / 10)} images/s, ${numberText(Math.round(1000 * each))} ms a step`);
  if (left !== null && left !== undefined) parts.push(`${durationText(left)} left`);
  if (seconds) parts.push(`${durationText(seconds)} trained`);
  return parts.join(" · ");
}

function swatch(index) {
  const { colour, dash } = lineStyle(index);
  const holder = make("span", { class: "wb-swatch", "aria-hidden": "true" });
  holder.innerHTML = `<svg width="26" height="10"><line x1="0" x2="26" y1="5" y2="5" stroke="${colour}"`
    + ` stroke-width="3" stroke-dasharray="${dash}"/></svg>`;
  return holder;
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
  const head = make("div", { class: "wb-run-head" }, swatch(index), make("h3", {}, run.name), state);
  const bar = make("div", { class: "wb-bar", role: "group", "aria-label": `commands for ${run.name}` }, ...buttons, rate.element);
  const element = make("section", { class: "wb-run", "aria-label": run.name }, head, progress, speed, remark, bar, answer, figure, details);
  let worse = false;

  function update() {
    const status = run.status ?? { state: "unreadable", can: {}, step: 0, steps: 1, remark: "" };
    const bad = WORSE.includes(status.state) || !run.status;
    setText(state, status.state);
    element.classList.toggle("wb-worse", bad);
    element.dataset.state = status.state;
    Object.assign(progress, { max: Math.max(1, status.steps), value: status.step });
    progress.setAttribute("aria-valuetext", speedText(status));
    setText(speed, speedText(status));
    setText(remark, [run.error, status.remark].filter(Boolean).join("; "));
    const said = status.answer;
    setText(answer, said ? `${said.what} at step ${numberText(said.step)}: ${said.result}` : "");
    buttons.forEach((button) => { button.disabled = !status.can[button.dataset.what]; });
    const named = ["created", "paused"].indexOf(status.state) === 0 ? "Start" : "Resume";
    setText(buttons[1], named);
    buttons[1].setAttribute("aria-label", `${named} ${run.name}`);
    rate.update(status.can.set, run.settings?.learning_rate);
    figure.hidden = !run.samples;
    if (run.samples) showSamples(samples, caption, run.samples);
    details.hidden = !run.log?.length;
    const text = (run.log ?? []).join("\n");
    setText(log, text);
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

// The learning rate: what is typed stays until it is set, however often the panel is drawn meanwhile.
function createRate(run, ui, ask) {
  const input = make("input", { type: "text", inputmode: "decimal", size: 8, "aria-label": `learning rate of ${run.name}` });
  let now;
  const send = () => {
    const value = Number(input.value);
    if (!(value > 0)) throw new Error(`a learning rate is a number above 0; got ${JSON.stringify(input.value)}`);
    ask("set", value);
  };
  const button = ui.button({ label: "Set", title: "Train on with this learning rate", onclick: send });
  button.setAttribute("aria-label", `set learning rate of ${run.name}`);
  input.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Enter") button.click();
  });
  const element = make("span", { class: "wb-rate" }, make("span", { class: "wb-name", "aria-hidden": "true" }, "learning rate"), input, button);
  const update = (can, value) => {
    input.disabled = !can;
    button.disabled = !can;
    const untouched = now === undefined || input.value === String(now) || input.value === "";
    if (value !== undefined && value !== now && untouched) input.value = String(value);
    if (value !== undefined) now = value;
  };
  return { element, update };
}
