// Loads the function that draws each kind of pane, from a module of this package or from the text of another module.
//
// A module's default export is a function of (root, pane, arrays, store, ui, tools) that fills `root` and returns
// {update(state, changed), picture()}. `pane` is `meta` of the Python pane, with kind and title.
// `arrays(name)` is {data, shape}, `arrays.has(name)` says whether there is one. `changed` is a Set of keys of the
// state, and "theme" and "size" if these changed; at the first update it has every key.
// picture() returns {svg: text} or {canvas}, always on white. `tools` is the module tools.js.

// Returns {kind: function, or an Error if it could not be loaded}.
export async function loadPanes(meta) {
  const kinds = [...new Set(meta.panes.map(({ kind }) => kind))];
  const loaded = kinds.map(async (kind) => {
    try {
      const { default: draw } = await (meta.scripts?.[kind] ? evaluated(meta.scripts[kind]) : ours(kind));
      if (typeof draw !== "function") throw new Error("its module has no default export that is a function");
      return [kind, draw];
    } catch (error) {
      return [kind, new Error(`pane "${kind}" cannot be drawn: ${error.message ?? error}`, { cause: error })];
    }
  });
  return Object.fromEntries(await Promise.all(loaded));
}

// esbuild puts every file of this folder into the bundle.
const ours = (kind) => import(`./panes/${kind}.js`);

// Imports a module from its text, as anywidget does.
async function evaluated(text) {
  const address = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
  try {
    return await import(address);
  } finally {
    URL.revokeObjectURL(address);
  }
}
