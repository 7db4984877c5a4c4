// Functions for panes of other packages, which cannot import from this bundle.

export { blockStart } from "./arrays.js";
export { ticks, tickText } from "./chart.js";
export { make, paintImage, paintPixels, setText, svgElement } from "./dom.js";
export { plain } from "./numbers.js";
export { svgDocument, svgImage, svgText } from "./saving.js";
