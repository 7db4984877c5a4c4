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
}
VERSIONS = {
    "null": "null label",
    "true": "true label",
    "wrong_by_true": "wrong label, by the true classes",
    "wrong_by_given": "wrong label, by the given classes",
    "label_only": "label only (noise as image)",
}
_SHARES = ("knn", "probe", "probe_shuffled", "lda")
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
        "centre": {"silhouette": 0.0} if "silhouette" in measures else {},
    }
    return HeatPane(title, arrays, meta)


def scales_of(scales: Sequence[float]) -> list[float]:
    """The guidance scales of the heat maps: `scales` with 0 (f_u) and 1 (f_c)."""
    return sorted({0.0, 1.0, *map(float, scales)})


def _named(record: Record) -> dict[str, Any]:
    scale = record["scale"]
    return {**record, "scale": _UNSCALED.get(record["version"], 0.0) if scale is None else float(scale)}


def _is_of(record: Mapping[str, Any], version: str) -> bool:
    """Whether a record belongs to a version; "wrong" (the condition share) belongs to both wrong-label versions."""
    return record["version"] == version or (record["version"] == "wrong" and version.startswith("wrong"))


def _chance(measured: MeasureGrid, records: Sequence[Mapping[str, Any]], measures: Sequence[str]) -> dict[str, float]:
    chance = {name: 1 / measured.about["classes"] for name in measures if name in _SHARES}
    highs = [
        record["value"] for record in records if record["measure"] == "cknna_chance" and record["value"] is not None
    ]
    if "cknna" in measures and highs:
        chance["cknna"] = float(np.mean(highs))
    return chance
