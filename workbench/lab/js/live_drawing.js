// A chart in the page, to which is added what its lines went on by: to draw all of it anew at every beat would take the
// cores from the training that it shows.
const PIECES = 100; // that a line is drawn in before it becomes one path again

// `draw(lines, how)` gives the placement, or null if there is nothing to place. `how` is that of `chartText`.
function createDrawing(host) {
  let there = null; // what is drawn: {place, key, end, counts, pieces}

  // What lies beyond the last step that is drawn has no height to fit.
  const fits = ({ steps, drawn }, first) => {
    const [low, high] = there.place.shown;
    return drawn.slice(first).every((value, at) => steps[first + at] > there.end || (value >= low && value <= high));
  };

  // Whether the lines are those that are drawn and went on within their borders, if at all.
  const goesOn = (lines, key) => there?.place && there.key === key && there.pieces < PIECES
    && lines.length === there.counts.length && lines.every((line, at) => {
      const { from, count } = there.counts[at];
      return line.from === from && (line.steps.length === count || (count > 1 && line.steps.length > count && fits(line, count)));
    });

  function add(lines, { log }) {
    const [curves, raws] = [".wb-curve", ".wb-raw"].map((kind) => host.querySelectorAll(kind));
    let added = 0;
    lines.forEach(({ steps, values, drawn }, at) => {
      const { count } = there.counts[at];
      if (steps.length === count) return;
      there.counts[at].count = steps.length;
      added = 1;
      [[curves[at], drawn], ...(drawn === values ? [] : [[raws[at], values]])].forEach(([path, heights]) => {
        const piece = path.cloneNode();
        piece.setAttribute("class", "wb-more");
        piece.setAttribute("d", pathOf(steps, heights, there.place, log, count - 1));
        path.after(piece);
      });
    });
    there.pieces += added;
  }

  function anew(lines, how, key) {
    const { place, text } = chartText(lines, how);
    const size = `width="${how.width}" height="${how.height}"`;
    host.innerHTML = `<svg ${size} viewBox="0 0 ${how.width} ${how.height}" aria-hidden="true">${text}</svg>`;
    const counts = lines.map(({ from, steps }) => ({ from, count: steps.length }));
    there = { place, key, counts, end: how.span[1], pieces: 0 };
  }

  function draw(lines, how) {
    const key = JSON.stringify(how);
    if (goesOn(lines, key)) add(lines, how);
    else anew(lines, how, key);
    return there.place;
  }

  return { draw };
}
