// Finds the function that draws each kind of pane: a module of this package, or the text of another package's.
//
// A module's default export is a function of (root, pane, arrays, store, ui, tools) that fills `root` and gives
// {update(state, changed), picture()}. `pane` is what Python calls `meta`, with kind and title.
// `arrays(name)` is {data, shape}, `arrays.has(name)` says whether there is one. `changed` is a Set of keys of the
// state, with "theme" and "size" for what happened around the view; it has every key at the first update.
// picture() gives {svg: text} or {canvas}, always on white. `tools` is the module tools.js.

// {kind: function, or the Error that says why there is none}
export async function loadPanes(meta) {
  const kinds = [...new Set(meta.panes.map(({ kind }) => kind))];
  const found = kinds.map(async (kind) => {
    try {
      const { default: draw } = await (meta.scripts?.[kind] ? evaluated(meta.scripts[kind]) : ours(kind));
      if (typeof draw !== "function") throw new Error("its module has no default export that is a function");
      return [kind, draw];
    } catch (error) {
      return [kind, new Error(`pane "${kind}" cannot be drawn: ${error.message ?? error}`, { cause: error })];
    }
  });
  return Object.fromEntries(await Promise.all(found));
}

// esbuild puts every file of this folder into the bundle.
const ours = (kind) => import(`./panes/${kind}.js`);

// As anywidget does with a module of its own.
async function evaluated(text) {
  const address = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
  try {
    return await import(address);
  } finally {
    URL.revokeObjectURL(address);
  }
}
