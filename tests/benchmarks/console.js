// Drawing times of live panels: each newest step with the time of the frame that shows it, and the time to open a
// panel. Evaluated in the page before its first panel opens.
() => {
  // A message posted while a frame is being made arrives once it is done.
  const painted = (then) =>
    requestAnimationFrame(() => {
      const { port1, port2 } = new MessageChannel();
      port1.onmessage = then;
      port2.postMessage(null);
    });
  window.benchDrawn = [];
  window.benchFollow = () => {
    const frame = document.querySelector(".wb-chart-frame");
    let last = null;
    new MutationObserver(() => {
      const step = Number(frame.getAttribute("aria-valuenow"));
      if (step === last) return;
      last = step;
      painted(() => window.benchDrawn.push([step, Date.now() / 1000]));
    }).observe(frame, { attributes: true, attributeFilter: ["aria-valuenow"] });
  };
  // Seconds from running a cell to the frame that shows the first curve of its panel.
  window.benchOpened = (index) =>
    new Promise((done, failed) => {
      const { content } = window.jupyterapp.shell.currentWidget;
      const panels = () => [...content.widgets[index].node.querySelectorAll(".wb-live")];
      const before = new Set(panels());
      content.activeCellIndex = index;
      content.deselectAll();
      const since = performance.now();
      const look = () => {
        const there = panels().some((panel) => !before.has(panel) && panel.querySelector(".wb-curve"));
        if (there) painted(() => done((performance.now() - since) / 1000));
        else if (performance.now() - since > 120000) failed(new Error("no curve was drawn in 120 s"));
        else requestAnimationFrame(look);
      };
      window.jupyterapp.commands.execute("notebook:run-cell");
      look();
    });
};
