// A view in a standalone page, without a kernel.
import { make } from "./dom.js";

// Draws the view embedded in the page, if this module runs in an exported page.
export function openPage(render) {
  const el = document.getElementById("workbench-view");
  if (!el) return;
  start(el, render).catch((error) => {
    console.error(error);
    el.append(make("p", { role: "alert" }, `This view could not be opened: ${error.message}`));
  });
}

async function start(el, render) {
  const textOf = (name) => document.getElementById(`workbench-view-${name}`).textContent;
  const packed = Uint8Array.from(atob(textOf("data")), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const data = await new Response(stream).arrayBuffer();
  const model = staticModel(JSON.parse(textOf("meta")), new DataView(data), JSON.parse(textOf("state")));
  await render({ model, el });
}

// Stand-in for a widget model in a page without a kernel.
function staticModel(meta, data, state) {
  const values = { meta, data, state, error: "" };
  const listeners = {};
  return {
    get: (name) => values[name],
    set(name, value) {
      values[name] = value;
      (listeners[`change:${name}`] ?? []).forEach((callback) => callback());
    },
    save_changes() {},
    on: (event, callback) => {
      listeners[event] = [...(listeners[event] ?? []), callback];
    },
    off: (event, callback) => {
      listeners[event] = (listeners[event] ?? []).filter((other) => other !== callback);
    },
    send() {},
  };
}
