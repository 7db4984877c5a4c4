"""What the words of a view mean: names and hints of its controls, and in a page its sliders, tokens and colours."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Definition(NamedTuple):
    """A word of a page: its `key` in the state, or for what is no control the word itself; the `term` shown; `text`."""

    key: str
    term: str
    text: str


class Control(NamedTuple):
    """An option as the page shows it: its name, a hint in a sentence, and texts for values that do not say enough."""

    label: str
    hint: str
    texts: Mapping[str, str] = {}


# Names of the axes in all views and figures, and what a hint says about each.
NOISE, GUIDANCE = "noise t", "guidance w"
# Hints of w where guidance is against a weak model.
WEAK_FEATURE = "Guidance scale w of the feature against a weak model, f_g = f_weak + w (f - f_weak)"
WEAK_SAMPLING = "Guidance scale w of sampling against a weak model, v_g = v_weak + w (v - v_weak)"
_HINTS = {
    "t": "Noise level t: 0 is the image, 1 is noise alone",
    "w": "Guidance scale w of the feature, f_g = f_u + w (f_c - f_u), Eq. 3",
    "layer": "Block of the network after which the features are taken; 0 is the patch embedding",
    "step": "Training step of the weights",
    "image": "Image that is shown",
    "source": "Run or target that is shown",
    "guidance": "Guidance scale w of sampling, v_g = v_u + w (v_c - v_u), Eq. 2; 1 is no guidance",
}
_CONTROLS = {
    "basis": Control("basis", "Where the three directions of the colours come from"),
    "colour": Control("colours", "Three components as red, green and blue, or one by one"),
    "show": Control("show", "One image or all of them"),
    "pictures": Control("pictures", "What stands beside the maps"),
    "several": Control("several tokens", "How the similarities to several tokens are combined"),
    "rows": Control("compare", "What differs from row to row", {"sources": "runs", "steps": "steps"}),
    "method": Control(
        "method", "How the features are brought into two dimensions", {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
    ),
    "labels": Control(
        "classes", "Classes of the colours and of kNN", {"true": "true classes", "given": "given labels"}
    ),
    "measure": Control("measure", "What the numbers measure"),
    "version": Control("label", "Label that the network was given with the image"),
    "head": Control("head", "Attention head", {"mean": "mean of all"}),
}
FEATURE_GUIDANCE = (
    r"the guidance scale of the feature, $f_g = f_u + w\,(f_c - f_u)$ (Eq. 3). $f_u$ is computed without a class, "
    "$f_c$ with one. w = 0 shows $f_u$, w = 1 shows $f_c$, and a larger w exaggerates what the class changes."
)
_AXES = {
    "t": "the noise level. The network is given a mixture of the image and noise: the image alone at t = 0, noise "
    "alone at t = 1.",
    "w": FEATURE_GUIDANCE,
    "layer": "the block of the network after which the features are taken; 0 is the patch embedding, before the first "
    "block.",
    "step": "the training step of the weights that are used; small ones show the network early in its training.",
    "image": "which of the images is shown. Code names it by its row in the data set.",
    "source": "which one of those listed is shown.",
    "guidance": r"the guidance scale of sampling, $v_g = v_u + w\,(v_c - v_u)$ (Eq. 2). $v_u$ is the prediction "
    "without a class, $v_c$ the one with the class. 1 is no guidance; a larger scale exaggerates what the class "
    "changes.",
}
_PANES = {
    "maps": {
        "token": "a patch of the image, and a square of a map. The network cuts the image into {side} × {side} tokens. "
        "At each layer it has a vector of numbers for each of them, the feature.",
        "colour": "similar colours are similar features. The three main directions of the features (principal "
        "components) are shown as red, green and blue, or one by one from dark to bright; a map's share of variance is "
        "how much of the features they hold. A colour has no meaning of its own.{similar}",
    },
    "scatter": {
        "point": "an image. Its feature is the mean of its tokens, and near points have similar features, as far as "
        "two dimensions can show that.",
        "colour of a point": "the class of the image, which its marker shows too.",
    },
    "heat": {
        "cell": "a measure of the features of one layer, at one noise level or one w. A click moves the sliders there.",
        "colour of a cell": "its number, from low to high along the bar below.",
    },
    "lens": {
        "lens": "what the network would draw if it stopped at a layer. The raw lens applies the final layer to the "
        "tokens of each layer, although it was trained on the last one's. The tuned lens first maps them to the last "
        "layer's, by an affine map fitted on other images.",
        "error": "the mean squared error of the clean latent that a layer predicts; latents have variance 1 or so.",
    },
    "samples": {
        "sample": "an image that a network generated. All images of a column start from the same noise and are of the "
        "same class.",
    },
}
_SIMILAR = (
    " After a click on a token, or Enter, the colours are the cosine similarity of its feature to those of all tokens."
)
_OPTIONS = {
    "basis": "where the three directions of the colours come from: found once for each layer (fixed), again at each t "
    "and w (refit), for each map, or so that the object stands out from a black background (foreground).",
    "show": "one image or all of them.",
    "pictures": "whether two pictures stand beside each image: what the network was given, the image with the noise of "
    r"this t ($x_t$), and the clean image that it predicts from it ($\hat z = x_t - t\,v$); both are decoded.",
    "several": "how the similarities to several tokens are combined.",
    "rows": "what differs from row to row.",
    "method": "how the features are brought into two dimensions.",
    "labels": "the true classes, or those that the network was given.",
    "measure": "what the numbers measure.",
    "version": "which class the network was given with the image, and by which classes the numbers are computed.",
}


def hint_of(axis: str) -> str:
    """The hint of an axis by its name; "" for one of other packages."""
    return _HINTS.get(axis, "")


def controls_of(options: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """Name, hint and texts of each option of a view, ready for JSON; those of other packages have their own name."""
    return {
        name: {"label": of.label, "hint": of.hint, "texts": dict(of.texts)}
        for name in options
        for of in [_CONTROLS.get(name, Control(name, ""))]
    }


def definitions(meta: Mapping[str, Any]) -> list[Definition]:
    """What the words of a view mean, from its `meta`. Of an axis with one value it is said which."""
    found = [
        Definition(name, axis["label"], f"{axis.get('about') or _AXES[name]}{_only(axis)}")
        for name, axis in meta["axes"].items()
        if name in _AXES or axis.get("about")
    ]
    similar = any(name.endswith("/ratio") for name in meta["arrays"])
    for pane in meta["panes"]:
        for word, text in _PANES.get(pane["kind"], {}).items():
            text = text.replace("{side}", str(pane.get("side", ""))).replace("{similar}", _SIMILAR if similar else "")
            found.append(Definition(word, word, text))
    known = {one.key for one in found}
    for name, values in meta["options"].items():
        if name in _OPTIONS and name not in known and len(values) > 1:
            found.append(Definition(name, meta["controls"][name]["label"], _OPTIONS[name]))
    return found


def _only(axis: Mapping[str, Any]) -> str:
    return f" Here it is {axis['texts'][0]}." if len(axis["texts"]) == 1 else ""
