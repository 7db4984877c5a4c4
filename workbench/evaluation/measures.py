"""Compute all measures of a feature grid, cached beside the features."""

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from workbench.diffusion.devices import one_core
from workbench.evaluation.leakage import VERSIONS, condition_share, version
from workbench.evaluation.objects import (
    Masks,
    ObjectSeparation,
    object_difference,
    object_probe,
    object_separation,
    split_masks,
)
from workbench.evaluation.probe import Probe, linear_probe
from workbench.evaluation.separability import Separability, separability
from workbench.evaluation.similarity import alignment, cknna, linear_cka, rank_me, uniformity
from workbench.evaluation.statistics import Estimate, Share, t_interval
from workbench.features.grid import FeatureGrid, real_numbers
from workbench.files import append_jsonl, hold_lock, read_json, read_jsonl, write_json

_REVISION = 1  # version of the measures: cached records of other versions are ignored
_WORTH_A_PROCESS = 6  # number of cells that take as long as starting a process
_OBJECTS_REVISION = 1  # the same for the measures of objects
_PATIENCE = 60.0  # seconds to wait for the lock; a line is written in a fraction of one

ENDS: Final = ("value", "low", "high")  # of a record: its value and 95 % interval
Part = tuple[int, float, float | None]  # layer, time, scale
Record = dict[str, Any]
# The label modes that each version takes.
_NEEDS = {
    "null": {"null"},
    "true": {"null", "true"},
    "wrong_by_true": {"null", "wrong"},
    "wrong_by_given": {"null", "wrong"},
    "label_only": {"noise-null", "noise-true"},
}
# Label controls of the measures of objects: the pair of `FeatureGrid.guided`, and the mode of its f_u. There is one
# version of the wrong label, as a mask has no label to be measured by.
_GAINS = (
    "auc_same_place",
    "auc_same_class",
    "probe_same_place",
    "probe_same_class",
)  # measures whose difference to f_u and f_c is measured
OBJECTS = ("object_", "difference_")  # what the names of the measures of objects begin with
_OBJECT_VERSIONS = {"true": ("true", "null"), "wrong": ("wrong", "null"), "label_only": ("noise", "noise-null")}


@dataclass(frozen=True)
class MeasureGrid:
    """Measures over layer x time x scale. A record has layer, t, scale, version, measure, value, low, high and count.

    Versions are those of `leakage`, and "wrong" for measures that use both labels. The scale is None for measures
    without one, and value is None if it is infinite (Fisher ratio of single points) or undefined. low and high are a
    95 % interval. `about` describes what was measured and how.
    """

    layers: list[int]
    times: list[float]
    scales: list[float]
    records: list[Record]
    about: dict[str, Any]

    def array(
        self, measure: str, version: str = "null", of: Literal["value", "low", "high"] = "value"
    ) -> Float64[np.ndarray, "layers times scales"]:
        """Values of a measure, or an end of their intervals; the last axis is `scales`, or has length 1 without them.

        NaN where there is none. Raises ValueError, listing the available measures, if it was not measured.
        """
        chosen = [r for r in self.records if (r["measure"], r["version"]) == (measure, version)]
        if not chosen:
            available = sorted({f"{r['measure']} of {r['version']}" for r in self.records})
            hint = "; those of objects are of wb.measure_objects and need images with masks" * measure.startswith(
                OBJECTS
            )
            raise ValueError(f"{measure!r} of {version!r} was not measured; there are {', '.join(available)}{hint}")
        by_cell = {(r["layer"], r["t"], r["scale"]): r[of] for r in chosen}
        # None (no scale) first, then the requested order; some measures of f_c only exist at scale 1.
        scales = [scale for scale in (None, *self.scales, 1.0) if any(key[2] == scale for key in by_cell)]
        values = [
            [[by_cell[layer, t, scale] for scale in dict.fromkeys(scales)] for t in self.times] for layer in self.layers
        ]
        return np.array(values, dtype=np.float64)

    def joined(self, other: "MeasureGrid", name: str) -> "MeasureGrid":
        """These measures and those of another grid of the same axes, whose `about` is kept under `name`.

        Raises ValueError for other layers, times or scales.
        """
        axes = ("layers", "times", "scales")
        if any(getattr(self, axis) != getattr(other, axis) for axis in axes):
            raise ValueError(f"{name} were measured at other layers, times or scales; both must have the same")
        return replace(self, records=[*self.records, *other.records], about={**self.about, name: other.about})

    def save(self, path: Path) -> None:
        """Write the measures as JSON, atomically."""
        write_json(Path(path), asdict(self))

    @classmethod
    def load(cls, path: Path) -> "MeasureGrid":
        """Read a file written by `save`; ValueError naming the file if it is missing or damaged."""
        tree = read_json(Path(path))
        missing = cls.__dataclass_fields__.keys() - tree.keys()
        if missing:
            raise ValueError(f"{path} is damaged: it lacks {', '.join(sorted(missing))}")
        return cls(**{key: tree[key] for key in cls.__dataclass_fields__})


def measure_grid(
    features: FeatureGrid,
    *,
    scales: Sequence[float] = (0.0, 1.0, 5.0, 10.0, 30.0),
    neighbours: int = 20,
    seed: int = 0,
    reference: Float[Tensor, "n d"] | None = None,
    again: FeatureGrid | None = None,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> MeasureGrid:
    """Measure a grid of features over layer x time x guidance scale.

    At each layer and time, with the null label: linear probe (also with shuffled labels, which must be at chance) and
    separability (kNN, LDA, silhouette, Davies-Bouldin, Fisher ratio); RankMe, uniformity, LDS, and linear CKA and CKNNA
    with the deepest layer or with `reference`, of f_u and f_c. At each scale (0 is f_u): separability with the null,
    true and wrong label and with the label only, and the share of explained variance that is due to the label. Measures
    whose label modes were not extracted are left out. Finished cells are cached beside the features.

    Args:
        features: Result of `wb.extract`; with its option `weak`, w is that against the weak model.
        scales: Guidance scales w.
        neighbours: k of kNN.
        seed: Seed of splits and subsets.
        reference: Features ``n d`` of the same images to compare with, instead of the deepest layer.
        again: Features extracted with another seed, for the alignment of two noise draws of each image.
        processes: Number of processes; by default up to the number of CPU cores. With more than one, a script needs
            ``if __name__ == "__main__"``.
        progress: Called with (done, total) cells.

    Returns:
        A ``MeasureGrid``. Each of its ``records`` has layer, t, scale, version, measure, value, low, high and count;
        ``array(measure, version)`` gives values by layer x time x scale.

    Raises:
        ValueError: Naming the cell that cannot be measured.

    Examples:
        >>> features = wb.extract(wb.zoo("guided"), images=100, layers=[8], times=[0.5], pooling="mean")
        >>> grid = wb.measure_grid(features, scales=[0.0, 10.0], neighbours=5, processes=1)
        >>> grid.array("knn", "true").shape
        (1, 1, 2)
    """
    _check(features, reference, again)
    return _grid(Cells(features, neighbours, seed, reference, again), scales, processes, progress)


def measure_objects(
    features: FeatureGrid,
    shares: Float[Tensor, "_ _"] | Masks,
    *,
    scales: Sequence[float] = (0.0, 1.0, 5.0, 10.0, 30.0),
    seed: int = 0,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> MeasureGrid:
    """Measure how well tokens on an object separate from its background, over layer x time x guidance scale.

    At each layer and time with the null label and, at each scale, with the true and the wrong label and the label only:
    area under the ROC curve of the first principal component (object_auc), of the best of three (object_auc_best), of
    that one in each image (object_auc_in_image) and of a linear probe of tokens (object_probe; object_probe_shuffled
    has the masks of other images); the areas over tokens at the same place (object_auc_same_place,
    object_probe_same_place), also of images of the same class (object_auc_same_class, object_probe_same_class);
    intersection over union (object_iou); silhouette (object_silhouette). With _chance at the
    end (object_auc_chance, object_auc_in_image_chance, object_iou_chance) they are those of the place of a token alone.
    Gains are differences to f_u on the same images (such as object_auc_same_place_gain) and to f_c (with _over_f_c at
    the end). Of f_c - f_u: the share of its length that is on the object (difference_share; difference_area is chance)
    and its ratio to beside it (difference_ratio, difference_ratio_same_place). `wb.object_separation` explains how they
    are measured. Finished cells are cached beside the features.

    Args:
        features: Result of `wb.extract` with pooling "tokens", as of `wb.measure_grid`.
        shares: The share of each token that is object, `wb.object_shares(run, features)`; or these divided by
            `split_masks`.
        scales: Guidance scales w.
        seed: Seed of the two halves of the images and of the bootstrap over images.
        processes: As of `wb.measure_grid`.
        progress: Called with (done, total) cells.

    Returns:
        A ``MeasureGrid``, as of `wb.measure_grid`. Its versions are "null", "true", "wrong" and "label_only".

    Raises:
        ValueError: For pooled features, and naming the cell that cannot be measured.

    Examples:
        >>> small = ["data.name=scenes", "data.size=32", "data.limit=100", "vae.name=identity", "backbone.patch=4"]
        >>> small += ["backbone.size=pico", "training.batch=8", "training.steps=4"]
        >>> run = wb.trained(wb.load_config("demo/plain", small), progress=lambda stage, done, total: None)
        >>> features = wb.extract(run, images=20, layers=[8], times=[0.5])
        >>> shares = wb.object_shares(run, features)
        >>> grid = wb.measure_objects(features, shares, scales=[0.0, 10.0], processes=1)
        >>> grid.array("object_auc", "true").shape
        (1, 1, 2)
    """
    if features.pooling != "tokens":
        raise ValueError(f'features have pooling {features.pooling!r}; measures of objects need pooling "tokens"')
    _check(features)
    count = len(shares.shares if isinstance(shares, Masks) else shares)
    if count != len(features.rows):
        raise ValueError(f"got the shares of {count} images; the grid has {len(features.rows)} images")
    masks = shares if isinstance(shares, Masks) else split_masks(shares, seed=seed, labels=features.true)
    return _grid(ObjectCells(features, masks, seed), scales, processes, progress)


@dataclass(frozen=True, eq=False)
class Cells:
    """How the cells of a grid are measured.

    `reference` takes the deepest layer's place in CKA and CKNNA; `again` are features of the same images with another
    draw of noise, whose pairs alignment is of.
    """

    features: FeatureGrid
    neighbours: int
    seed: int
    reference: Float[Tensor, "n d"] | None = None
    again: FeatureGrid | None = None

    @property
    def about(self) -> dict[str, Any]:
        """What is measured and how; the name of the file depends on it."""
        features, reference = self.features, self.reference
        digest = None if reference is None else _digest(reference)
        return {
            **_about(features),
            "pooling": "mean token",
            "splits": "50 % fit, 20 % choose, 30 % report",
            "neighbours": self.neighbours,
            "seed": self.seed,
            "against": f"layer {max(features.layers)}" if digest is None else f"reference {digest[:16]}",
            "again": None if self.again is None else self.again.folder.name,
            "revision": _REVISION,
        }

    def measure(self, layer: int, t: float, scales: Iterable[float | None]) -> dict[float | None, list[Record]]:
        """Records of one layer and time at each guidance scale; those of None are the ones without a scale.

        ValueError naming the layer, the time, the scale and the version that cannot be measured.
        """
        cell = _Cell(self, layer, t)
        return {scale: list(cell.unguided() if scale is None else cell.guided(scale)) for scale in scales}


@dataclass(frozen=True, eq=False)
class ObjectCells:
    """How the cells of a grid are measured against masks; as `Cells`."""

    features: FeatureGrid
    masks: Masks
    seed: int

    @property
    def about(self) -> dict[str, Any]:
        return {
            **_about(self.features),
            "pooling": "tokens",
            "splits": "50 % fit, 50 % report, of the images",
            "masks": _digest(torch.from_numpy(self.masks.shares))[:16],
            "report": _digest(torch.from_numpy(self.masks.held))[:16],
            "by_class": self.masks.labels is not None,
            "seed": self.seed,
            "revision": _OBJECTS_REVISION,
        }

    def measure(self, layer: int, t: float, scales: Iterable[float | None]) -> dict[float | None, list[Record]]:
        cell = _ObjectCell(self, layer, t)
        return {scale: list(cell.unguided() if scale is None else cell.guided(scale)) for scale in scales}


@dataclass(eq=False)
class _Cell:
    of: Cells
    layer: int
    t: float

    def unguided(self) -> Iterator[Record]:
        """Probe and separability with the null label; ranks, spread and likeness of f_u and, at scale 1, of f_c."""
        of, features = self.of, self.of.features
        for scale, name in ((None, "null"), (1.0, "true")):
            if not {"null", name} <= set(features.labels):
                continue
            record = _recorder(features, self.layer, self.t, scale, name)
            with _named(self.layer, self.t, scale, name):
                rows, labels = version(features, name, self.layer, self.t, 1.0)
                if name == "null":
                    for measure, told in (("probe", labels), ("probe_shuffled", features.given)):
                        yield record(measure, linear_probe(rows, told, seed=of.seed))
                    yield from self._separate(self._null, record)
                yield record("rank_me", rank_me(rows))
                yield record("uniformity", uniformity(rows))
                if of.again is not None:
                    yield record("alignment", alignment(rows, version(of.again, name, self.layer, self.t, 1.0)[0]))
                yield from self._likeness(rows, self._against(name), record)
                if (spread := features.lds(self.layer, self.t, name)) is not None:
                    interval = t_interval(spread.tolist())
                    yield record("lds", Share(float(spread.mean()), interval.low, interval.high, len(spread)))

    def guided(self, scale: float) -> Iterator[Record]:
        """Separability of the versions that depend on the scale, and the share of the wrong label that leaked."""
        features = self.of.features
        for name in VERSIONS:
            if name == "null" or not _NEEDS[name] <= set(features.labels):
                continue
            record = _recorder(features, self.layer, self.t, scale, name)
            with _named(self.layer, self.t, scale, name):
                if scale == 0 and features.weak is None and name in ("true", "wrong_by_true"):
                    yield from self._separate(self._null, record)  # f_u itself, by the same labels
                    continue
                rows, labels = version(features, name, self.layer, self.t, scale)
                found = separability(rows, labels, seed=self.of.seed, neighbours=self.of.neighbours)
                yield from self._separate(found, record)
                if name == "wrong_by_given":
                    shares = condition_share(rows, features.true, features.given)
                    record = _recorder(features, self.layer, self.t, scale, "wrong")
                    yield record("condition_share", shares.share)
                    yield record("by_condition", shares.by_condition)
                    yield record("by_image", shares.by_image)

    @cached_property
    def _null(self) -> Separability:
        rows, labels = version(self.of.features, "null", self.layer, self.t, 0.0)
        return separability(rows, labels, seed=self.of.seed, neighbours=self.of.neighbours)

    def _against(self, name: str) -> Float[Tensor, "n d"]:
        features = self.of.features
        if self.of.reference is not None:
            return self.of.reference
        return version(features, name, max(features.layers), self.t, 1.0)[0]

    def _likeness(self, rows: Tensor, against: Tensor, record: Callable[..., Record]) -> Iterator[Record]:
        yield record("cka", linear_cka(rows, against))
        found = cknna(rows, against, seed=self.of.seed)
        yield record("cknna", found.value)
        yield record("cknna_chance", found.null_high)

    def _separate(self, found: Separability, record: Callable[..., Record]) -> Iterator[Record]:
        for name in ("knn", "lda"):
            held_out = getattr(found, name)
            yield record(name, held_out.report)
            yield record(f"{name}_choose", held_out.choose)
        for name in ("silhouette", "davies_bouldin", "fisher"):
            yield record(name, getattr(found, name))


@dataclass(eq=False)
class _ObjectCell:
    of: ObjectCells
    layer: int
    t: float

    def unguided(self) -> Iterator[Record]:
        """Separation of f_u, and where f_c - f_u is large."""
        of, features = self.of, self.of.features
        with _named(self.layer, self.t, None, "null"):
            record = _recorder(features, self.layer, self.t, None, "null")
            yield from self._separate(self._null, record)
            tokens = features.read(self.layer, self.t, "null").float()
            yield record("object_probe_shuffled", object_probe(tokens, of.masks.shuffled(of.seed)))
        for name, (pair, _) in self._versions():
            with _named(self.layer, self.t, 1.0, name):
                record = _recorder(features, self.layer, self.t, 1.0, name)
                found = object_difference(*features.pair(self.layer, self.t, pair), of.masks)
                yield record("difference_share", found.share)
                yield record("difference_area", found.area)
                yield record("difference_ratio", found.ratio)
                yield record("difference_ratio_same_place", found.ratio_same_place)

    def guided(self, scale: float) -> Iterator[Record]:
        """Separation of f_g with each version of the label, and its gain over f_u."""
        for name, (_, null) in self._versions():
            with _named(self.layer, self.t, scale, name):
                record = _recorder(self.of.features, self.layer, self.t, scale, name)
                same = scale == 0 and null == "null" and self.of.features.weak is None
                found = self._null if same else object_separation(self._guided(name, scale), self.of.masks)
                yield from self._separate(found, record)
                for measure in _GAINS if null == "null" else ():
                    yield record(f"object_{measure}_gain", found.less(self._null, measure))
                    if name == "true":
                        yield record(f"object_{measure}_gain_over_f_c", found.less(self._conditional, measure))

    @cached_property
    def _null(self) -> ObjectSeparation:
        return object_separation(self.of.features.read(self.layer, self.t, "null").float(), self.of.masks)

    @cached_property
    def _conditional(self) -> ObjectSeparation:
        return object_separation(self._guided("true", 1.0), self.of.masks)

    def _versions(self) -> Iterator[tuple[str, tuple[str, str]]]:
        """The versions whose label modes were extracted."""
        for name, (pair, null) in _OBJECT_VERSIONS.items():
            if {null, "noise-true" if pair == "noise" else pair} <= set(self.of.features.labels):
                yield name, (pair, null)

    def _guided(self, name: str, scale: float) -> Float[Tensor, "n m d"]:
        return self.of.features.guided(self.layer, self.t, scale, _OBJECT_VERSIONS[name][0])

    def _separate(self, found: ObjectSeparation, record: Callable[..., Record]) -> Iterator[Record]:
        for name in found.resampled:
            yield record(f"object_{name}", getattr(found, name))
        for name in ("auc", "auc_in_image", "iou"):
            yield record(f"object_{name}_chance", getattr(found.masks, f"{name}_of_place"))
        yield record("object_silhouette", found.silhouette)


def _recorder(features: FeatureGrid, layer: int, t: float, scale: float | None, name: str) -> Callable[..., Record]:
    """A function that makes the record of a measure of one cell and version."""
    where = {"layer": layer, "t": t, "scale": scale, "version": name}

    def record(measure: str, found: float | Share | Estimate | Probe | None) -> Record:
        how: Mapping[str, Any] = {"value": found, "low": None, "high": None, "count": len(features.rows)}
        if isinstance(found, (Share, Estimate, Probe)):
            how = {key: value for key, value in asdict(found).items() if key != "regularization"}
            how = {"value": how.pop("accuracy"), **how} if "accuracy" in how else how
        # JSON has no infinity.
        finite = {key: value if value is not None and np.isfinite(value) else None for key, value in how.items()}
        return {**where, "measure": measure, **finite}

    return record


@contextmanager
def _named(layer: int, t: float, scale: float | None, name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        guided = "" if scale is None else f", scale {scale:g}"
        raise ValueError(f"layer {layer}, t = {t:g}{guided}, {name}: {error}") from error


def _grid(
    cells: Cells | ObjectCells,
    scales: Sequence[float],
    processes: int | None,
    progress: Callable[[int, int], None] | None,
) -> MeasureGrid:
    """Measure what is not yet in the file of these cells; see `measure_grid`."""
    features, about = cells.features, cells.about
    layers, times = list(features.layers), list(features.times)
    scales = list(real_numbers("scales", scales))
    if processes is not None and processes < 1:
        raise ValueError(f"processes is {processes}; allowed are 1 and more")
    file = features.folder / f"measures-{_key(about)}.jsonl"
    wanted = [(layer, t, scale) for t in times for layer in layers for scale in (None, *scales)]
    known = _known(file)
    missing = [part for part in wanted if part not in known]
    for found in _compute(cells, missing, processes):
        with hold_lock(file.with_suffix(".lock"), _PATIENCE):
            for (layer, t, scale), records in found.items():
                append_jsonl(file, {"layer": layer, "t": t, "scale": scale, "records": records})
        known |= found
        if progress:
            progress(sum(part in known for part in wanted), len(wanted))
    return MeasureGrid(layers, times, scales, [record for part in wanted for record in known[part]], about)


def _compute(
    cells: Cells | ObjectCells, missing: list[Part], processes: int | None
) -> Iterator[dict[Part, list[Record]]]:
    """Compute the missing parts; yields the records of each layer and time when it is finished."""
    tasks: dict[tuple[int, float], list[float | None]] = {}
    for layer, t, scale in missing:
        tasks.setdefault((layer, t), []).append(scale)
    count = processes or max(1, min(os.cpu_count() or 1, len(tasks) // _WORTH_A_PROCESS))
    if count == 1:
        for task in tasks.items():
            yield _task(cells, task)
        return
    # A forked process would inherit locks of torch's and BLAS's threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, _begin, (cells,)) as pool:
        try:
            for future in as_completed([pool.submit(_work, task) for task in tasks.items()]):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _task(cells: Cells | ObjectCells, task: tuple[tuple[int, float], list[float | None]]) -> dict[Part, list[Record]]:
    (layer, t), scales = task
    return {(layer, t, scale): records for scale, records in cells.measure(layer, t, scales).items()}


_of_this_process: list[Cells | ObjectCells] = []


def _begin(cells: Cells | ObjectCells) -> None:
    """Initialize a worker: one thread each, as two processes with a thread per core slow each other down."""
    torch.set_num_threads(1)
    one_core()
    _of_this_process.append(cells)


def _work(task: tuple[tuple[int, float], list[float | None]]) -> dict[Part, list[Record]]:
    return _task(_of_this_process[0], task)


def _known(file: Path) -> dict[Part, list[Record]]:
    return {(line["layer"], line["t"], line["scale"]): line["records"] for line in read_jsonl(file)}


def _about(features: FeatureGrid) -> dict[str, Any]:
    """What is measured."""
    weak = features.weak
    against = {} if weak is None else {"weak": weak.run, "weak_step": weak.step, "weak_features": weak.folder.name}
    return {
        "run": features.run,
        "step": features.step,
        "count": len(features.rows),
        "classes": len(features.true.unique()),
        "labels": sorted(features.labels),
        **against,
    }


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.detach().cpu().double().numpy().tobytes()).hexdigest()


def _key(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def _check(features: FeatureGrid, reference: Tensor | None = None, again: FeatureGrid | None = None) -> None:
    if "null" not in features.labels:
        raise ValueError(f"the grid has label modes {', '.join(features.labels)}; all measures need null")
    if reference is not None and len(reference) != len(features.rows):
        raise ValueError(f"the reference has {len(reference)} rows; the grid has {len(features.rows)} images")
    if again is not None and (again.rows != features.rows or again.folder == features.folder):
        raise ValueError("again must be features of the same images, extracted with another seed")
