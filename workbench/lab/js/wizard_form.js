// The wizard's form: a control a field, in groups; the kernel says which fields there are and what stands in them.
const FOLDED = "More of the method";

function fieldControl({ key, label, values, texts }, tell) {
  const attributes = { "data-key": key, "aria-label": label };
  const send = () => tell(key, control.value);
  const control = values
    ? make("select", { ...attributes, onchange: send })
    : make("input", { ...attributes, type: "text", onchange: send });
  (values ?? []).forEach((value, index) => control.append(make("option", { value }, texts[index])));
  control.addEventListener("keydown", (event) => event.stopPropagation());
  return control;
}

// What decides whether the elements can stay: everything but the texts in them.
const shapeOf = (fields) => JSON.stringify(fields.map(({ text, ...rest }) => rest));

function createForm(tell) {
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
      const control = fieldControl(field, tell);
      controls.set(field.key, control);
      const line = make("label", { class: "wb-field" }, make("span", { class: "wb-name" }, field.label), control);
      groups.set(field.group, [...(groups.get(field.group) ?? []), line]);
    });
    element.replaceChildren(...[...groups].map(([name, lines]) => (name === FOLDED
      ? make("details", { class: "wb-group", open }, make("summary", {}, name), ...lines)
      : make("fieldset", { class: "wb-group" }, make("legend", {}, name), ...lines))));
    controls.get(focused)?.focus();
  }

  return {
    element,
    update(fields) {
      const now = shapeOf(fields);
      if (now !== shape) {
        // A list that is open, or a text that is being typed, is put aside only by a change of what there is to fill in.
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

// The text field with the focus whose text differs from what it had when it was entered.
function typed(form) {
  const active = document.activeElement;
  return active?.tagName === "INPUT" && form.contains(active) && active.dataset.entered !== undefined
    && active.value !== active.dataset.entered ? active : null;
}
