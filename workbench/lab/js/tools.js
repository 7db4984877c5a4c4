// What a pane of another package is given, as it cannot import from this bundle.

export { blockStart } from "./arrays.js";
export { make, paintImage, paintPixels, setText, svgElement } from "./dom.js";
export { plain } from "./numbers.js";
export { svgDocument, svgImage, svgText } from "./saving.js";
