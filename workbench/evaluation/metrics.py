"""The table of metrics: names, titles, which way each gets better, its interval, and the function that measures it.

A new score of images is one function of a `scores.Measurement` and one row of `METRICS`. From there it is measured,
compared with its direction known, and shown in tables and figures. Nothing heavy is imported here.
"""

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from workbench.config import refuse_unknown
from workbench.evaluation.names import DETECTORS

NEEDS = ("spatial", "logits", "held-out", "many", "classes")
_FID_NETWORK = "inception-2015"
_OF_IMAGES = "workbench.evaluation.scores"


@dataclass(frozen=True)
class Metric:
    """One row of the table of metrics.

    kind: its name without a detector's, "fd" of "fd-clf64". title: as figures and tables show it. better: "lower",
    "higher", or "" where neither is; then `ideal` says what a good value is. function: measures it, a callable or
    "module:function"; it takes a `scores.Measurement` and returns "value", with an interval "low" and "high", and
    further terms. None for a number that is not a score of images. interval: how the 95 % interval is found: "halves"
    (delete-half jackknife), "wilson", or "" for none. unit: "share" of a number in 0..1, "" of one without a unit.
    needs: what the images and the reference must have, of `NEEDS`. floor: whether the same of held-out real images
    stands beside it. fid_name, fid_title: its names by the network that FID is defined by. plain: the detector whose
    name is left out. detail: 1 for a metric in every table, 2 in reports, 3 in full lists only.

    ValueError for a value outside these.
    """

    kind: str
    title: str
    better: str
    function: str | Callable[[Any], dict[str, Any]] | None
    ideal: str = ""
    interval: str = ""
    unit: str = ""
    needs: tuple[str, ...] = ()
    floor: bool = True
    fid_name: str = ""
    fid_title: str = ""
    plain: str = _FID_NETWORK
    detail: int = 3

    def __post_init__(self):
        for name, allowed in (
            ("better", ("lower", "higher", "")),
            ("interval", ("halves", "wilson", "")),
            ("unit", ("share", "")),
            ("detail", (1, 2, 3)),
        ):
            if getattr(self, name) not in allowed:
                listed = ", ".join(map(repr, allowed))
                raise ValueError(f"metric {self.kind!r}: {name} is {getattr(self, name)!r}; allowed are {listed}")
        for need in self.needs:
            refuse_unknown(f"need of metric {self.kind!r}", need, NEEDS)
        if not self.better and not self.ideal:
            raise ValueError(f"metric {self.kind!r}: better is '' and ideal is empty; say what a good value is")

    @property
    def direction(self) -> str:
        """What a reader must know to read a value: "lower is better"."""
        return f"{self.better} is better" if self.better else self.ideal

    def load(self) -> Callable[[Any], dict[str, Any]]:
        """The function that measures it; ValueError if there is none."""
        if callable(self.function):
            return self.function
        module, _, name = (self.function or "").partition(":")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"metric {self.kind!r}: there is no function {self.function!r}: {error}") from error
        if not callable(found):
            raise ValueError(f"metric {self.kind!r}: {self.function!r} is no function")
        return found


# In the order in which tables show them.
METRICS: dict[str, Metric] = {
    metric.kind: metric
    for metric in (
        Metric(
            "fd",
            "FD",
            "lower",
            f"{_OF_IMAGES}:frechet",
            interval="halves",
            fid_name="fid",
            fid_title="FID",
            detail=1,
        ),
        Metric(
            "fd-inf",
            "FD at infinite N",
            "lower",
            f"{_OF_IMAGES}:frechet_at_infinity",
            needs=("many",),
            fid_name="fid-inf",
            fid_title="FID at infinite N",
        ),
        Metric(
            "sfd",
            "sFD",
            "lower",
            f"{_OF_IMAGES}:spatial_frechet",
            needs=("spatial",),
            fid_name="sfid",
            fid_title="sFID",
        ),
        Metric("kid", "KID", "lower", f"{_OF_IMAGES}:kernel_distance", detail=1),
        Metric("is", "IS", "higher", f"{_OF_IMAGES}:inception", interval="halves", needs=("logits",)),
        Metric(
            "precision", "precision", "higher", f"{_OF_IMAGES}:precision", interval="wilson", unit="share", detail=2
        ),
        Metric("recall", "recall", "higher", f"{_OF_IMAGES}:recall", interval="wilson", unit="share", detail=2),
        Metric("density", "density", "higher", f"{_OF_IMAGES}:density"),
        Metric("coverage", "coverage", "higher", f"{_OF_IMAGES}:coverage", interval="wilson", unit="share"),
        Metric(
            "memorisation",
            "memorisation",
            "",
            f"{_OF_IMAGES}:memorised",
            ideal="0.5 for new images, 1 for copies",
            unit="share",
            needs=("held-out",),
            floor=False,
            detail=2,
        ),
        Metric(
            "class-agreement",
            "class agreement",
            "higher",
            f"{_OF_IMAGES}:agreement",
            interval="wilson",
            unit="share",
            needs=("classes",),
            floor=False,
            plain="clf64",
            detail=1,
        ),
        Metric("probe", "probe accuracy", "higher", None, interval="wilson", unit="share", floor=False),
    )
}


def metric_name(detector: str, kind: str) -> str:
    """Under which name a score of `kind` by a detector is stored: "fd-clf64"; Inception's alone are "fid", "is", ...

    Class agreement is clf64's unless the name says otherwise. ValueError for an unknown detector or kind.
    """
    refuse_unknown("detector", detector, DETECTORS)
    refuse_unknown("kind of score", kind, [metric.kind for metric in METRICS.values() if metric.function])
    return _name(METRICS[kind], detector)


def find_metric(name: str) -> Metric | None:
    """The row of a stored name, "fd-clf64" or "fid"; None for one that is not in the table."""
    return (_named().get(name) or (None, ""))[0]


def get_metric(name: str) -> Metric:
    """The row of a stored name; ValueError for one that is not in the table, with the nearest."""
    refuse_unknown("metric", name, _named())
    return _named()[name][0]


def metric_title(name: str) -> str:
    """How a figure or table calls a stored name: "FD-clf64"; FID is Inception's alone. Unknown names stay."""
    metric, detector = _named().get(name, (None, ""))
    if metric is None:
        return name
    if detector == _FID_NETWORK and metric.plain == detector:
        return metric.fid_title or metric.title
    return metric.title if detector in ("", metric.plain) else f"{metric.title}-{detector}"


def in_order(names: Iterable[str], detail: int = 3) -> list[str]:
    """Stored names that the table shows at a level of detail, in its order, by detector; unknown ones come last."""
    rank = {name: place for place, name in enumerate(_named())}
    shown = {name for name in names if (metric := find_metric(name)) is None or metric.detail <= detail}
    return sorted((n for n in shown if n in rank or detail == 3), key=lambda n: (rank.get(n, len(rank)), n))


def _name(metric: Metric, detector: str) -> str:
    if detector == metric.plain:
        return metric.fid_name or metric.kind
    return f"{metric.kind}-{detector}"


def _named() -> dict[str, tuple[Metric, str]]:
    """Rows and detectors by the name that a score is stored under; a number that is no score of images has none."""
    return {
        _name(metric, detector) if detector else metric.kind: (metric, detector)
        for metric in METRICS.values()
        for detector in (DETECTORS if metric.function else ("",))
    }
