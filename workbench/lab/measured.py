"""Heat maps of feature measures over layer, time and guidance scale."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8

from workbench.evaluation.measures import MeasureGrid, Record
from workbench.evaluation.statistics import wilson
from workbench.features.grid import real_numbers
from workbench.lab.panes import Pane
from workbench.lab.panes.heat import HeatPane

MEASURES = {
    "knn": "kNN",
    "probe": "linear probe",
    "probe_shuffled": "linear probe, shuffled labels",
    "lda": "LDA",
    "silhouette": "silhouette",
    "davies_bouldin": "Davies-Bouldin (lower is better)",
    "fisher": "Fisher ratio",
    "lds": "LDS",
    "rank_me": "RankMe",
    "uniformity": "uniformity (less is more even)",
    "cka": "CKA with the deepest layer",
    "cknna": "CKNNA with the deepest layer",
    "condition_share": "condition share",
    "object_auc_same_place": "object: area under ROC at the same place, best of three components",
    "object_probe_same_place": "object: linear probe of tokens, at the same place",
    "object_auc_same_class": "object: area under ROC at the same place, same class",
    "object_probe_same_class": "object: linear probe of tokens, same place and class",
    "object_auc": "object: area under ROC, first component",
    "object_auc_best": "object: area under ROC, best of three components",
    "object_auc_in_image": "object: area under ROC in each image, best of three",
    "object_probe": "object: area under ROC, linear probe of tokens",
    "object_probe_shuffled": "object: linear probe, masks of other images",
    "object_auc_same_place_gain": "object: same place, gain over f_u",
    "object_auc_same_class_gain": "object: same place and class, gain over f_u",
    "object_probe_same_place_gain": "object: linear probe, same place, gain over f_u",
    "object_probe_same_class_gain": "object: linear probe, same place and class, gain over f_u",
    "object_auc_same_place_gain_over_f_c": "object: same place, gain over f_c",
    "object_auc_same_class_gain_over_f_c": "object: same place and class, gain over f_c",
    "object_probe_same_place_gain_over_f_c": "object: linear probe, same place, gain over f_c",
    "object_probe_same_class_gain_over_f_c": "object: linear probe, same place and class, gain over f_c",
    "object_iou": "object: intersection over union",
    "object_silhouette": "object: silhouette of tokens",
    "difference_share": "object: share of |f_c - f_u|",
    "difference_ratio": "object: |f_c - f_u| on it over beside it",
    "difference_ratio_same_place": "object: the same ratio at the same place",
}
VERSIONS = {
    "null": "null label",
    "true": "true label",
    "wrong_by_true": "wrong label, by the true classes",
    "wrong_by_given": "wrong label, by the given classes",
    "label_only": "label only",
}
_SHARES = ("knn", "probe", "probe_shuffled", "lda")
_FIXED_CHANCE = {f"object_{of}_same_{alike}": 0.5 for of in ("auc", "probe") for alike in ("place", "class")}
_FIXED_CHANCE |= dict.fromkeys(("difference_ratio", "difference_ratio_same_place"), 1.0)
_OF_PLACE = ("object_auc", "object_auc_best", "object_probe", "object_probe_shuffled")
_MEASURED_CHANCE = dict.fromkeys(_OF_PLACE, "object_auc_chance")
_MEASURED_CHANCE |= {"object_auc_in_image": "object_auc_in_image_chance"}
_MEASURED_CHANCE |= {"cknna": "cknna_chance", "object_iou": "object_iou_chance", "difference_share": "difference_area"}
_CENTRES = {"silhouette": 0.0, "object_silhouette": 0.0, "difference_ratio": 1.0, "difference_ratio_same_place": 1.0}
_CENTRES |= {name: 0.0 for name in MEASURES if "_gain" in name}
_UNSCALED = {"null": 0.0, "true": 1.0}  # f_u is f_g at w = 0, f_c is f_g at w = 1
_UNSCALED_AGAINST_WEAK = {"null": 1.0, "true": 1.0}  # both are the run's own


Right = Mapping[str, np.ndarray]  # by version "times layers scales n": 1 where kNN classifies an image correctly


def heat_pane(
    measured: MeasureGrid,
    title: str = "Separability",
    *,
    right: Right | None = None,
    follows: Sequence[tuple[str, str]] = (),
) -> Pane:
    """Pane of all measures, with 95 % intervals where there are any; missing cells are NaN.

    f_u is at w = 0, and at w = 1 if guidance is against a weak model. The chance level of an accuracy is one over the
    number of classes. Beside a scatter plot, `right` are its images that kNN classifies correctly, by version: then kNN
    is the share of these, so that a view has one kNN, and versions are those of `right`. `follows` as in `HeatPane`.
    """
    weak = "weak" in measured.about
    records = [_named(record, _UNSCALED_AGAINST_WEAK if weak else _UNSCALED) for record in measured.records]
    measures = [name for name in MEASURES if any(record["measure"] == name for record in records)]
    versions = [name for name in VERSIONS if any(_is_of(record, name) for record in records)]
    versions = versions if right is None else [name for name in versions if name in right]
    filled = "null" not in versions and not weak  # f_u is f_g at w = 0
    known = [record for record in records if filled or any(_is_of(record, name) for name in versions)]
    measures = [name for name in measures if any(record["measure"] == name for record in known)]
    scales = scales_of(measured.scales)
    shape = (len(measures), len(versions), len(measured.layers), len(measured.times), len(scales))
    arrays = {name: np.full(shape, np.nan, np.float32) for name in ("values", "low", "high")}
    for record in records:
        if record["measure"] not in measures or record["scale"] not in scales:
            continue
        where = (
            measured.layers.index(record["layer"]),
            measured.times.index(record["t"]),
            scales.index(record["scale"]),
        )
        for number, name in enumerate(versions):
            if _is_of(record, name):
                for array, value in zip(arrays, ("value", "low", "high"), strict=True):
                    cell = (measures.index(record["measure"]), number, *where)
                    arrays[array][cell] = np.nan if record[value] is None else record[value]
    if filled and "true" in versions:
        _fill_unguided(arrays, records, measured, measures, versions.index("true"))
    labels = {**MEASURES, **VERSIONS}
    if right is not None and "knn" in measures:
        for number, name in enumerate(versions):
            for of, values in zip(arrays, _accuracies(right[name]), strict=True):
                arrays[of][measures.index("knn"), number] = values
        labels["knn"] = "kNN, leave one out"
    meta = {
        "measures": measures,
        "versions": versions,
        "scales": scales,
        "labels": {name: text.replace("f_c - f_u", "f - f_weak") if weak else text for name, text in labels.items()},
        "chance": chance_levels(measured, measures),
        "centre": {name: centre for name, centre in _CENTRES.items() if name in measures},
    }
    return HeatPane(title, arrays, {**meta, "follows": list(map(list, follows))} if follows else meta)


def _accuracies(right: UInt8[np.ndarray, "times layers scales n"]) -> Float64[np.ndarray, "3 layers times scales"]:
    """Share of the images that are right, and the ends of its 95 % Wilson interval."""
    count = right.shape[-1]
    found = np.empty((3, *right.shape[:-1]))
    for at in np.ndindex(right.shape[:-1]):
        successes = int(right[at].sum())
        interval = wilson(successes, count)
        found[(slice(None), *at)] = successes / count, interval.low, interval.high
    return found.swapaxes(1, 2)


def _fill_unguided(
    arrays: Mapping[str, np.ndarray],
    records: Sequence[Mapping[str, Any]],
    measured: MeasureGrid,
    measures: Sequence[str],
    version: int,
) -> None:
    """Measures of f_u alone, which is f_g at w = 0, among those of the true label."""
    for record in records:
        if record["version"] != "null" or record["measure"] not in measures:
            continue
        layer, time = measured.layers.index(record["layer"]), measured.times.index(record["t"])
        cell = (measures.index(record["measure"]), version, layer, time, scales_of(measured.scales).index(0.0))
        if np.isnan(arrays["values"][cell]):
            for array, of in zip(arrays.values(), ("value", "low", "high"), strict=True):
                array[cell] = np.nan if record[of] is None else record[of]


def scales_of(scales: Sequence[float], name: str = "scales") -> list[float]:
    """The guidance scales of the heat maps: `scales` with 0 (f_u) and 1 (f_c); ValueError unless they are finite."""
    return sorted({*real_numbers(name, scales), 0.0, 1.0})


def _named(record: Record, unscaled: Mapping[str, float]) -> dict[str, Any]:
    scale = record["scale"]
    return {**record, "scale": unscaled.get(record["version"], 0.0) if scale is None else float(scale)}


def _is_of(record: Mapping[str, Any], version: str) -> bool:
    """Whether a record belongs to a version; "wrong" belongs to both versions of the wrong label."""
    return record["version"] == version or (record["version"] == "wrong" and version.startswith("wrong"))


def chance_levels(measured: MeasureGrid, measures: Sequence[str]) -> dict[str, float]:
    """Chance levels of the measures that have one; those that were measured in each cell are averaged."""
    chance = {name: 1 / measured.about["classes"] for name in measures if name in _SHARES}
    chance |= {name: _FIXED_CHANCE[name] for name in measures if name in _FIXED_CHANCE}
    for name, level in _MEASURED_CHANCE.items():
        values = [r["value"] for r in measured.records if r["measure"] == level and r["value"] is not None]
        if name in measures and values:
            chance[name] = float(np.mean(values))
    return chance
