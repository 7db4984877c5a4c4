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
  const held = (name) => document.getElementById(`workbench-view-${name}`).textContent;
  const packed = Uint8Array.from(atob(held("data")), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const data = await new Response(stream).arrayBuffer();
  const model = staticModel(JSON.parse(held("meta")), new DataView(data), JSON.parse(held("state")));
  await render({ model, el });
}

// Stand-in for a widget model in a page without a kernel.
function staticModel(meta, data, state) {
  const values = { meta, data, state, error: "" };
  const heard = {};
  return {
    get: (name) => values[name],
    set(name, value) {
      values[name] = value;
      (heard[`change:${name}`] ?? []).forEach((callback) => callback());
    },
    save_changes() {},
    on: (event, callback) => {
      heard[event] = [...(heard[event] ?? []), callback];
    },
    off: (event, callback) => {
      heard[event] = (heard[event] ?? []).filter((other) => other !== callback);
    },
    send() {},
  };
}
