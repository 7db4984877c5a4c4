// The launch form: fields of a training, the plan with its costs, and the buttons.

import { createFrame } from "./controls.js";
import { make, themeOf, watchTheme } from "./dom.js";
import { copyText } from "./saving.js";
import { createStore } from "./store.js";

// The form: one control per field, in groups; fields and values come from the kernel.

const FOLDED = "More of the method";

function fieldControl({ key, label, values, texts }, onChange) {
  const attributes = { "data-key": key, "aria-label": label };
  const send = () => onChange(key, control.value);
  const control = values
    ? make("select", { ...attributes, onchange: send })
    : make("input", { ...attributes, type: "text", onchange: send });
  (values ?? []).forEach((value, index) => control.append(make("option", { value }, texts[index])));
  control.addEventListener("keydown", (event) => event.stopPropagation());
  return control;
}

// Elements are reused if only their values change.
const shapeOf = (fields) => JSON.stringify(fields.map(({ text, ...rest }) => rest));

function createForm(onChange) {
  const element = make("form", { class: "wb-wizard-form", "aria-label": "training" });
  element.addEventListener("submit", (event) => event.preventDefault());
  const controls = new Map();
  let shape = "";

  function build(fields) {
    const focused = document.activeElement?.dataset?.key;
    const open = element.querySelector("details")?.open;
    const groups = new Map();
    controls.clear();
    fields.forEach((field) => {
      const control = fieldControl(field, onChange);
      controls.set(field.key, control);
      const line = make("label", { class: "wb-field" }, make("span", { class: "wb-name" }, field.label), control);
      groups.set(field.group, [...(groups.get(field.group) ?? []), line]);
    });
    element.replaceChildren(
      ...[...groups].map(([name, lines]) =>
        name === FOLDED
          ? make("details", { class: "wb-group", open }, make("summary", {}, name), ...lines)
          : make("fieldset", { class: "wb-group" }, make("legend", {}, name), ...lines),
      ),
    );
    controls.get(focused)?.focus();
  }

  return {
    element,
    update(fields) {
      const now = shapeOf(fields);
      if (now !== shape) {
        // An open list, or a text being typed, is replaced only if the fields change.
        build(fields);
        shape = now;
      }
      fields.forEach(({ key, text }) => {
        const control = controls.get(key);
        if (control.value !== text && control !== typed(element)) control.value = text;
      });
    },
  };
}

// The focused text field, if its text has been edited.
function typed(form) {
  const active = document.activeElement;
  return active?.tagName === "INPUT" &&
    form.contains(active) &&
    active.dataset.entered !== undefined &&
    active.value !== active.dataset.entered
    ? active
    : null;
}

// The plan of a training: a table of stages, a time bar for each, and notes.

function planTable([head, ...rows]) {
  const top = head.map((text, at) => (at ? make("th", { scope: "col" }, text) : make("td", {})));
  const body = rows.map(([name, ...cells]) =>
    make("tr", {}, make("th", { scope: "row" }, name), ...cells.map((text) => make("td", {}, text))),
  );
  return make(
    "div",
    { class: "wb-plan-frame", role: "region", "aria-label": "plan", tabindex: 0 },
    make("table", { class: "wb-plan" }, make("thead", {}, make("tr", {}, ...top)), make("tbody", {}, ...body)),
  );
}

// Remaining time is filled, time trained before is hatched; all bars share one scale.
function planBars(bars) {
  const known = bars.filter(({ whole }) => whole);
  if (!known.length) return "";
  const longest = Math.max(...known.map(({ whole }) => whole));
  return make(
    "div",
    { class: "wb-bars" },
    ...known.map(({ role, whole, left, text }) => {
      const share = (part) => `width:${((100 * part) / longest).toFixed(2)}%`;
      const bar = make(
        "span",
        { class: "wb-time" },
        make("i", { class: "wb-time-done", style: share(whole - left) }),
        make("i", { class: "wb-time-left", style: share(left) }),
      );
      return make(
        "div",
        { class: "wb-time-line", role: "img", "aria-label": `${role}: ${text}` },
        make("span", { class: "wb-name" }, role),
        bar,
        make("span", { class: "wb-value" }, text),
      );
    }),
  );
}

function createPlan() {
  const element = make("div", { class: "wb-wizard-plan", "aria-live": "polite" });
  return {
    element,
    update(plan, problem) {
      if (problem) {
        element.replaceChildren(make("p", { class: "wb-problem", role: "alert" }, problem));
        return;
      }
      if (!plan.rows) return;
      const total = plan.left
        ? `To train: ${plan.total}${plan.measured ? "" : ", press Measure"}`
        : "Everything is trained already.";
      const warned = new Set(plan.warnings);
      element.replaceChildren(
        make("h3", {}, total),
        planBars(plan.bars),
        planTable(plan.rows),
        make(
          "ul",
          { class: "wb-plan-notes" },
          ...plan.notes.map((note) => make("li", { class: warned.has(note) ? "wb-warned" : null }, note)),
        ),
      );
    },
  };
}

// Mounts the form on one side, the plan on the other, and the buttons.

function render({ model, el }) {
  const store = createStore({ axes: {}, options: {} }, {});
  const { root, status, say, fail, ui } = createFrame(store, "wb-wizard");
  root.addEventListener("focusin", ({ target }) => {
    if (target.tagName === "INPUT") target.dataset.entered = target.value;
  });
  const form = createForm((key, text) => {
    say("");
    model.send({ type: "change", key, text });
  });
  const plan = createPlan();
  const measure = ui.button({
    label: "Measure",
    title: "Measure the time of a few steps on this machine",
    onclick: () => model.send({ type: "measure", again: model.get("plan").measured }),
  });
  const launch = ui.button({
    label: "Launch",
    title: "Queue teacher and student; training continues when this notebook is closed",
    onclick: () => model.send({ type: "launch" }),
  });
  launch.classList.add("wb-first");
  const copy = ui.button({
    label: "Copy code",
    title: "Python that launches the same runs",
    onclick: async () => {
      await copyText(model.get("code"));
      ui.status("Copied the code of this training.");
    },
  });
  const bar = make("div", { class: "wb-bar", role: "group", "aria-label": "actions" }, measure, launch, copy);
  root.append(
    make("h2", {}, "New training"),
    make("div", { class: "wb-wizard-columns" }, form.element, make("div", {}, plan.element, bar, status)),
  );
  el.replaceChildren(root);

  const update = () => {
    try {
      const [planned, problem, busy] = ["plan", "problem", "busy"].map((name) => model.get(name));
      form.update(model.get("fields"));
      plan.update(planned, problem);
      measure.textContent = planned.measured && planned.left ? "Measure again" : "Measure";
      measure.disabled = Boolean(busy) || !planned.left;
      launch.disabled = Boolean(busy) || !planned.left;
      copy.disabled = !model.get("code");
      root.setAttribute("aria-busy", String(Boolean(busy)));
      if (busy) say(busy);
      else if (status.textContent.endsWith("…")) say("");
    } catch (error) {
      fail(error, "wizard");
    }
  };
  const onMessage = (message) => message.type === "status" && say(message.text, message.wrong);
  const names = ["fields", "plan", "problem", "busy", "code"];
  // They arrive one after the other; draw once.
  let waiting = false;
  const changed = () => {
    if (waiting) return;
    waiting = true;
    queueMicrotask(() => {
      waiting = false;
      update();
    });
  };
  names.forEach((name) => model.on(`change:${name}`, changed));
  model.on("msg:custom", onMessage);
  const unwatch = watchTheme(() => {
    root.dataset.theme = themeOf();
  });
  update();
  model.send({ type: "refresh" }); // after a reload the runs have progressed
  return () => {
    unwatch();
    names.forEach((name) => model.off(`change:${name}`, changed));
    model.off("msg:custom", onMessage);
  };
}

export default { render };
