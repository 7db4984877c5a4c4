"""Heat maps of feature measures over layer, time and guidance scale."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workbench.evaluation.measures import MeasureGrid, Record
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
    "object_auc": "object: area under ROC, first component",
    "object_auc_best": "object: area under ROC, best of three components",
    "object_auc_in_image": "object: area under ROC in each image, best of three",
    "object_probe": "object: area under ROC, linear probe of tokens",
    "object_probe_shuffled": "object: linear probe, masks of other images",
    "object_auc_gain": "object: first component, gain over f_u",
    "object_auc_best_gain": "object: best of three, gain over f_u",
    "object_auc_in_image_gain": "object: in each image, gain over f_u",
    "object_probe_gain": "object: linear probe, gain over f_u",
    "object_auc_gain_over_f_c": "object: first component, gain over f_c",
    "object_auc_best_gain_over_f_c": "object: best of three, gain over f_c",
    "object_auc_in_image_gain_over_f_c": "object: in each image, gain over f_c",
    "object_probe_gain_over_f_c": "object: linear probe, gain over f_c",
    "object_iou": "object: intersection over union",
    "object_silhouette": "object: silhouette of tokens",
    "difference_share": "object: share of |f_c - f_u|",
    "difference_ratio": "object: |f_c - f_u| on it over beside it",
}
VERSIONS = {
    "null": "null label",
    "true": "true label",
    "wrong_by_true": "wrong label, by the true classes",
    "wrong_by_given": "wrong label, by the given classes",
    "label_only": "label only (noise as image)",
}
_SHARES = ("knn", "probe", "probe_shuffled", "lda")
_AREAS = ("object_auc", "object_auc_best", "object_auc_in_image", "object_probe")
CHANCE = dict.fromkeys((*_AREAS, "object_probe_shuffled"), 0.5) | {"difference_ratio": 1.0}
_MEASURED_CHANCE = {"cknna": "cknna_chance", "object_iou": "object_iou_chance", "difference_share": "difference_area"}
_CENTRES = {"silhouette": 0.0, "object_silhouette": 0.0, "difference_ratio": 1.0}
_CENTRES |= {f"{name}_{gain}": 0.0 for name in _AREAS for gain in ("gain", "gain_over_f_c")}
_UNSCALED = {"null": 0.0, "true": 1.0}  # f_u is f_g at w = 0, f_c is f_g at w = 1


def heat_pane(measured: MeasureGrid, title: str = "Separability") -> Pane:
    """Pane of all measures, with 95 % intervals where there are any. f_u is at w = 0; missing cells are NaN.

    The chance level of an accuracy is one over the number of classes.
    """
    records = [_named(record) for record in measured.records]
    measures = [name for name in MEASURES if any(record["measure"] == name for record in records)]
    versions = [name for name in VERSIONS if any(_is_of(record, name) for record in records)]
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
    meta = {
        "measures": measures,
        "versions": versions,
        "scales": scales,
        "labels": {**MEASURES, **VERSIONS},
        "chance": _chance(measured, records, measures),
        "centre": {name: centre for name, centre in _CENTRES.items() if name in measures},
    }
    return HeatPane(title, arrays, meta)


def scales_of(scales: Sequence[float]) -> list[float]:
    """The guidance scales of the heat maps: `scales` with 0 (f_u) and 1 (f_c)."""
    return sorted({0.0, 1.0, *map(float, scales)})


def _named(record: Record) -> dict[str, Any]:
    scale = record["scale"]
    return {**record, "scale": _UNSCALED.get(record["version"], 0.0) if scale is None else float(scale)}


def _is_of(record: Mapping[str, Any], version: str) -> bool:
    """Whether a record belongs to a version; "wrong" belongs to both versions of the wrong label."""
    return record["version"] == version or (record["version"] == "wrong" and version.startswith("wrong"))


def _chance(measured: MeasureGrid, records: Sequence[Mapping[str, Any]], measures: Sequence[str]) -> dict[str, float]:
    """Chance levels; those that were measured in each cell are averaged."""
    chance = {name: 1 / measured.about["classes"] for name in measures if name in _SHARES}
    chance |= {name: level for name, level in CHANCE.items() if name in measures}
    for name, level in _MEASURED_CHANCE.items():
        values = [r["value"] for r in records if r["measure"] == level and r["value"] is not None]
        if name in measures and values:
            chance[name] = float(np.mean(values))
    return chance
