"""Every measure of one cell of a feature grid, as flat records: the parts that `measures` computes, keeps and joins."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from workbench.evaluation.leakage import VERSIONS, condition_share, version
from workbench.evaluation.probe import Probe, linear_probe
from workbench.evaluation.separability import Separability, separability
from workbench.evaluation.similarity import alignment, cknna, linear_cka, rank_me, uniformity
from workbench.evaluation.statistics import Share, t_interval
from workbench.features.grid import FeatureGrid

Record = dict[str, Any]
# The label modes that each version takes.
_NEEDS = {
    "null": {"null"},
    "true": {"null", "true"},
    "wrong_by_true": {"null", "wrong"},
    "wrong_by_given": {"null", "wrong"},
    "label_only": {"noise-null", "noise-true"},
}


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
