// What a training would take: a table of its stages, a bar of time for each, and what else is to know.
function planTable([head, ...rows]) {
  const top = head.map((text, at) => (at ? make("th", { scope: "col" }, text) : make("td", {})));
  const body = rows.map(([name, ...cells]) => make("tr", {},
    make("th", { scope: "row" }, name), ...cells.map((text) => make("td", {}, text))));
  return make("div", { class: "wb-plan-frame", role: "region", "aria-label": "what it takes", tabindex: 0 },
    make("table", { class: "wb-plan" }, make("thead", {}, make("tr", {}, ...top)), make("tbody", {}, ...body)));
}

// Time to go is filled, what was trained before is hatched; all bars have one scale.
function planBars(bars) {
  const known = bars.filter(({ whole }) => whole);
  if (!known.length) return "";
  const longest = Math.max(...known.map(({ whole }) => whole));
  return make("div", { class: "wb-bars" }, ...known.map(({ role, whole, left, text }) => {
    const share = (part) => `width:${((100 * part) / longest).toFixed(2)}%`;
    const bar = make("span", { class: "wb-time" },
      make("i", { class: "wb-time-done", style: share(whole - left) }), make("i", { class: "wb-time-left", style: share(left) }));
    return make("div", { class: "wb-time-line", role: "img", "aria-label": `${role}: ${text}` },
      make("span", { class: "wb-name" }, role), bar, make("span", { class: "wb-value" }, text));
  }));
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
      const total = plan.left ? `To train: ${plan.total}${plan.measured ? "" : ", press Measure"}` : "Everything is trained already.";
      const warned = new Set(plan.warnings);
      element.replaceChildren(make("h3", {}, total), planBars(plan.bars), planTable(plan.rows),
        make("ul", { class: "wb-plan-notes" }, ...plan.notes.map((note) => make("li", { class: warned.has(note) ? "wb-warned" : null }, note))));
    },
  };
}
