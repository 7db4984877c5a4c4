"""Measures of features as heat maps over layer, time and guidance scale."""

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
    "davies_bouldin": "Davies-Bouldin (less is better)",
    "fisher": "Fisher ratio",
    "lds": "LDS",
    "rank_me": "RankMe",
    "uniformity": "uniformity (less is more even)",
    "cka": "CKA with the deepest layer",
    "cknna": "CKNNA with the deepest layer",
    "condition_share": "condition share",
}
VERSIONS = {
    "null": "null label",
    "true": "true label (the class was told)",
    "wrong_by_true": "wrong label, by the true classes",
    "wrong_by_given": "wrong label, by the given classes",
    "label_only": "label only, noise for the image",
}
_SHARES = ("knn", "probe", "probe_shuffled", "lda")
_UNSCALED = {"null": 0.0, "true": 1.0}  # f_u is the guided feature at w = 0, f_c that at 1


def heat_pane(measured: MeasureGrid, title: str = "Separability") -> Pane:
    """The pane of all measures that were taken: f_u stands at w = 0, what is not measured is empty.

    An interval of 95 % stands beside each value that has one; chance is that of the largest class.
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
                    found = record[value]
                    arrays[array][(measures.index(record["measure"]), number, *where)] = (
                        np.nan if found is None else found
                    )
    meta = {
        "measures": measures,
        "versions": versions,
        "scales": scales,
        "labels": {**MEASURES, **VERSIONS},
        "chance": _chance(measured, records, measures),
        "centre": {"silhouette": 0.0} if "silhouette" in measures else {},
    }
    return HeatPane(title, arrays, meta)


def scales_of(scales: Sequence[float]) -> list[float]:
    """The stops of w: those asked for with 0 and 1, which f_u and f_c are."""
    return sorted({0.0, 1.0, *map(float, scales)})


def _named(record: Record) -> dict[str, Any]:
    scale = record["scale"]
    return {**record, "scale": _UNSCALED.get(record["version"], 0.0) if scale is None else float(scale)}


def _is_of(record: Mapping[str, Any], version: str) -> bool:
    """The share of the condition is of the wrong label by both."""
    return record["version"] == version or (record["version"] == "wrong" and version.startswith("wrong"))


def _chance(measured: MeasureGrid, records: Sequence[Mapping[str, Any]], measures: Sequence[str]) -> dict[str, float]:
    found = {name: 1 / measured.about["classes"] for name in measures if name in _SHARES}
    highs = [
        record["value"] for record in records if record["measure"] == "cknna_chance" and record["value"] is not None
    ]
    if "cknna" in measures and highs:
        found["cknna"] = float(np.mean(highs))
    return found
