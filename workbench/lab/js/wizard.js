// Mounts the wizard: the form on one side, what it would take on the other, and the buttons.
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
  const measure = ui.button({ label: "Measure", title: "Time a few real steps on this machine", onclick: () => model.send({ type: "measure", again: model.get("plan").measured }) });
  const launch = ui.button({ label: "Launch", title: "Into the queue, teacher first; both outlive this notebook", onclick: () => model.send({ type: "launch" }) });
  launch.classList.add("wb-first");
  const copy = ui.button({ label: "Copy code", title: "Python that plans and launches the same", onclick: async () => {
    await copyText(model.get("code"));
    ui.status("Copied the code of this training.");
  } });
  const bar = make("div", { class: "wb-bar", role: "group", "aria-label": "what to do" }, measure, launch, copy);
  root.append(make("style", {}, STYLE), make("h2", {}, "New training"),
    make("div", { class: "wb-wizard-columns" }, form.element, make("div", {}, plan.element, bar, status)));
  el.replaceChildren(root);

  const update = () => {
    try {
      const [found, problem, busy] = ["plan", "problem", "busy"].map((name) => model.get(name));
      form.update(model.get("fields"));
      plan.update(found, problem);
      measure.textContent = found.measured && found.left ? "Measure again" : "Measure";
      measure.disabled = Boolean(busy) || !found.left;
      launch.disabled = Boolean(busy) || !found.left;
      copy.disabled = !model.get("code");
      root.setAttribute("aria-busy", String(Boolean(busy)));
      if (busy) say(busy);
      else if (status.textContent.endsWith("…")) say("");
    } catch (error) {
      fail(error, "wizard");
    }
  };
  const heard = (message) => message.type === "said" && say(message.text, message.wrong);
  const names = ["fields", "plan", "problem", "busy", "code"];
  // They come one after the other: drawn once.
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
  model.on("msg:custom", heard);
  const unwatch = watchTheme(() => { root.dataset.theme = themeOf(); });
  update();
  model.send({ type: "refresh" }); // after a reload the runs are further than they were
  return () => {
    unwatch();
    names.forEach((name) => model.off(`change:${name}`, changed));
    model.off("msg:custom", heard);
  };
}

export default { render };
