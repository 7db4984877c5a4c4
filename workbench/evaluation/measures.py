"""Compute all measures of a feature grid, cached beside the features."""

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from threadpoolctl import threadpool_limits
from torch import Tensor

from workbench.evaluation.leakage import VERSIONS, condition_share, version
from workbench.evaluation.probe import Probe, linear_probe
from workbench.evaluation.separability import Separability, separability
from workbench.evaluation.similarity import alignment, cknna, linear_cka, rank_me, uniformity
from workbench.evaluation.statistics import Share, t_interval
from workbench.features.grid import FeatureGrid
from workbench.files import append_jsonl, hold_lock, read_json, read_jsonl, write_json

_REVISION = 1  # version of the measures: cached records of other versions are ignored
_WORTH_A_PROCESS = 6  # number of cells that take as long as starting a process
_PATIENCE = 60.0  # seconds to wait for the lock; a line is written in a fraction of one

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

    def array(self, measure: str, version: str = "null") -> Float64[np.ndarray, "layers times scales"]:
        """Values of a measure; the last axis is `scales`, or has length 1 for a measure without scales.

        NaN where the value is None. Raises ValueError, listing the available measures, if it was not measured.
        """
        chosen = [r for r in self.records if (r["measure"], r["version"]) == (measure, version)]
        if not chosen:
            available = sorted({f"{r['measure']} of {r['version']}" for r in self.records})
            raise ValueError(f"{measure!r} of {version!r} was not measured; there are {', '.join(available)}")
        by_cell = {(r["layer"], r["t"], r["scale"]): r["value"] for r in chosen}
        # None (no scale) first, then the requested order; some measures of f_c only exist at scale 1.
        scales = [scale for scale in (None, *self.scales, 1.0) if any(key[2] == scale for key in by_cell)]
        values = [
            [[by_cell[layer, t, scale] for scale in dict.fromkeys(scales)] for t in self.times] for layer in self.layers
        ]
        return np.array(values, dtype=np.float64)

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
        features: Result of `wb.extract`.
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
    layers, times = list(features.layers), list(features.times)
    scales = list(dict.fromkeys(map(float, scales)))
    _check(features, scales, reference, again, processes)
    cells = Cells(features, neighbours, seed, reference, again)
    about = _about(cells)
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

    def measure(self, layer: int, t: float, scales: Iterable[float | None]) -> dict[float | None, list[Record]]:
        """Records of one layer and time at each guidance scale; those of None are the ones without a scale.

        ValueError naming the layer, the time, the scale and the version that cannot be measured.
        """
        cell = _Cell(self, layer, t)
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
            record = self._recorder(scale, name)
            with self._named(scale, name):
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
            record = self._recorder(scale, name)
            with self._named(scale, name):
                if scale == 0 and name in ("true", "wrong_by_true"):
                    yield from self._separate(self._null, record)  # f_u itself, by the same labels
                    continue
                rows, labels = version(features, name, self.layer, self.t, scale)
                found = separability(rows, labels, seed=self.of.seed, neighbours=self.of.neighbours)
                yield from self._separate(found, record)
                if name == "wrong_by_given":
                    shares = condition_share(rows, features.true, features.given)
                    record = self._recorder(scale, "wrong")
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

    def _recorder(self, scale: float | None, name: str) -> Callable[..., Record]:
        where = {"layer": self.layer, "t": self.t, "scale": scale, "version": name}
        count = len(self.of.features.rows)

        def record(measure: str, found: float | Share | Probe | None) -> Record:
            how: Mapping[str, Any] = {"value": found, "low": None, "high": None, "count": count}
            if isinstance(found, (Share, Probe)):
                how = {key: value for key, value in asdict(found).items() if key != "regularization"}
                how = {"value": how.pop("accuracy"), **how} if "accuracy" in how else how
            value = how["value"]
            # JSON has no infinity.
            finite = value if value is not None and np.isfinite(value) else None
            return {**where, "measure": measure, **how, "value": finite}

        return record

    @contextmanager
    def _named(self, scale: float | None, name: str) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            guided = "" if scale is None else f", scale {scale:g}"
            raise ValueError(f"layer {self.layer}, t = {self.t:g}{guided}, {name}: {error}") from error


def _compute(cells: Cells, missing: list[Part], processes: int | None) -> Iterator[dict[Part, list[Record]]]:
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


def _task(cells: Cells, task: tuple[tuple[int, float], list[float | None]]) -> dict[Part, list[Record]]:
    (layer, t), scales = task
    return {(layer, t, scale): records for scale, records in cells.measure(layer, t, scales).items()}


_of_this_process: list[Cells] = []


def _begin(cells: Cells) -> None:
    """Initialize a worker: one thread each, as two processes with a thread per core slow each other down."""
    torch.set_num_threads(1)
    threadpool_limits(1)
    _of_this_process.append(cells)


def _work(task: tuple[tuple[int, float], list[float | None]]) -> dict[Part, list[Record]]:
    return _task(_of_this_process[0], task)


def _known(file: Path) -> dict[Part, list[Record]]:
    return {(line["layer"], line["t"], line["scale"]): line["records"] for line in read_jsonl(file)}


def _about(cells: Cells) -> dict[str, Any]:
    features, reference = cells.features, cells.reference
    digest = (
        None if reference is None else hashlib.sha256(reference.detach().cpu().double().numpy().tobytes()).hexdigest()
    )
    return {
        "run": features.run,
        "step": features.step,
        "count": len(features.rows),
        "classes": len(features.true.unique()),
        "labels": sorted(features.labels),
        "pooling": "mean token",
        "splits": "50 % fit, 20 % choose, 30 % report",
        "neighbours": cells.neighbours,
        "seed": cells.seed,
        "against": f"layer {max(features.layers)}" if digest is None else f"reference {digest[:16]}",
        "again": None if cells.again is None else cells.again.folder.name,
        "revision": _REVISION,
    }


def _key(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def _check(
    features: FeatureGrid,
    scales: list[float],
    reference: Tensor | None,
    again: FeatureGrid | None,
    processes: int | None,
) -> None:
    if "null" not in features.labels:
        raise ValueError(f"the grid has label modes {', '.join(features.labels)}; all measures need null")
    if not scales or not np.isfinite(scales).all():
        raise ValueError(f"scales is {scales}; allowed are finite numbers, at least one")
    if processes is not None and processes < 1:
        raise ValueError(f"processes is {processes}; allowed are 1 and more")
    if reference is not None and len(reference) != len(features.rows):
        raise ValueError(f"the reference has {len(reference)} rows; the grid has {len(features.rows)} images")
    if again is not None and (again.rows != features.rows or again.folder == features.folder):
        raise ValueError("again must be features of the same images, extracted with another seed")
