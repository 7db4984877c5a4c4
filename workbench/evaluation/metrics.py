"""The table of metrics: names, titles, better direction, interval, and the function that measures each.

A score of images is a file that defines a `Metric` as ``METRIC``: in `workbench/evaluation/scores`, in an installed
package that registers it (``workbench.scores``), or in a module named by the user. Scoring, comparisons, tables and
figures all use this table. Nothing heavy is imported here: the package's own scores are read from their source.
"""

import importlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from workbench import plugins
from workbench.config import check_plugin, load_plugin, refuse_unknown
from workbench.config.declared import arguments

if TYPE_CHECKING:
    from workbench.evaluation.scores.base import Measurement

NEEDS = ("spatial", "logits", "held-out", "many", "classes")
_FID_NETWORK = "inception-2015"
_TRAINED_ON = {"scenes": "clf64-scenes"}  # classifiers of a set of images
_OF_LAYER = " of layer "  # part of the name of a value of one layer
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "better": ("lower", "higher", ""),
    "interval": ("halves", "wilson", ""),
    "unit": ("share", ""),
    "detail": (1, 2, 3),
}


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One row of the table of metrics.

    Args:
        title: Title in figures and tables.
        better: "lower", "higher", or "" if neither is; then `ideal` describes a good value.
        measure: A function of a `scores.base.Measurement`. It returns a dictionary with "value", "low" and "high" if
            there is an interval, and further terms. None for a metric that is not a score of images.
        ideal: Description of a good value, if neither direction is better.
        interval: Method of the 95 % interval: "halves" (delete-half jackknife), "wilson", or "" for none.
        unit: "share" for a fraction in 0..1, "" for a value without a unit.
        needs: Requirements on the images and the reference, from `NEEDS`; without them the score is left out.
        floor: Whether held-out real images are scored too.
        fid_name: Name with the Inception network of FID.
        fid_title: Title with that network.
        plain: The detector whose name is omitted from the metric's name.
        detail: 1 for a metric in every table, 2 in reports, 3 in full lists only.
        order: Position in tables; smaller numbers come first.
        kind: Name without the detector: "fd" for "fd-clf64". Set by the table to the name of the file or entry point.

    Raises:
        ValueError: For a value that is not allowed.
    """

    title: str
    better: str
    measure: "Callable[[Measurement], Mapping[str, Any]] | None"
    ideal: str = ""
    interval: str = ""
    unit: str = ""
    needs: tuple[str, ...] = ()
    floor: bool = True
    fid_name: str = ""
    fid_title: str = ""
    plain: str = _FID_NETWORK
    detail: int = 1
    order: int = 1000
    kind: str = ""

    def __post_init__(self):
        what = f"metric {self.kind or self.title!r}"
        for name, allowed in _ALLOWED.items():
            if getattr(self, name) not in allowed:
                listed = ", ".join(map(repr, allowed))
                raise ValueError(f"{what}: {name} is {getattr(self, name)!r}; allowed are {listed}")
        for need in self.needs:
            refuse_unknown(f"need of {what}", need, NEEDS)
        if not self.better and not self.ideal:
            raise ValueError(f"{what}: better is '' and ideal is empty; describe a good value in ideal")
        if not isinstance(self.title, str) or not self.title:
            raise ValueError(f"{what}: title is {self.title!r}; it must be text")
        if self.measure is not None and not callable(self.measure):
            raise ValueError(f"{what}: measure is {self.measure!r}; it must be a function")

    @property
    def direction(self) -> str:
        """How to read a value: "lower is better", or `ideal`."""
        return f"{self.better} is better" if self.better else self.ideal


def metrics() -> dict[str, Metric]:
    """All metrics by kind, in the order of tables.

    Raises PluginError for a score of another package that cannot be used: it cannot be imported, is incomplete, or
    would be stored under a name that is taken.
    """
    return _ordered({**_own(), **_outside()})


def stored_names(detector: str) -> dict[str, str]:
    """The names under which the scores of a detector are stored, by kind.

    `detector` is a name or module path. Raises ValueError as `metrics`, for an unknown detector, and for one whose
    scores would be stored under names that are taken.
    """
    short = plugins.short_name("detector", detector)
    if short not in _detectors():
        check_plugin("detector", detector, option="detector")
    names = {kind: _name(metric, short) for kind, metric in metrics().items() if metric.measure}
    for kind, name in names.items():
        metric, other = _everything()[name]
        if (metric.kind, other) != (kind, short):
            raise plugins.PluginError(f"{kind} by detector {detector!r} would be stored as {name!r}, as by {other!r}")
    return names


def metric_name(detector: str, kind: str) -> str:
    """The name under which a score of a detector is stored: "fd-clf64"; with Inception "fid", "is", ...

    Class agreement without a detector's name is that of clf64. Raises ValueError for an unknown detector or kind.
    """
    names = stored_names(detector)
    refuse_unknown("kind of score", kind, names)
    return names[kind]


def default_detector(data: str) -> str:
    """The detector that scores a set of images (``data.name``) where none is chosen: a classifier of such images."""
    return _TRAINED_ON.get(data, "clf64")


def find_metric(name: str) -> Metric | None:
    """The metric with a stored name such as "fd-clf64" or "fid"; None if it is not in the table."""
    return (_named([name]).get(name) or (None, ""))[0]


def get_metric(name: str) -> Metric:
    """The metric with a stored name; ValueError, with the closest name, if it is not in the table."""
    named = _named([name])
    refuse_unknown("metric", name, named)
    return named[name][0]


def metric_title(name: str) -> str:
    """Title of a stored name in figures and tables, such as "FD-clf64"; an unknown name is returned unchanged."""
    metric, detector = _named([name]).get(name, (None, ""))
    if metric is None:
        return name
    if detector == _FID_NETWORK and metric.plain == detector:
        return metric.fid_title or metric.title
    return metric.title if detector in ("", metric.plain) else f"{metric.title}-{detector}"


def in_order(names: Iterable[str], detail: int = 3) -> list[str]:
    """Sort stored names as the table does, up to a level of detail; unknown names come last, at detail 3 only."""
    names = set(names)
    named = _named(names)
    rank = {name: position for position, name in enumerate(named)}
    shown = (n for n in names if (named[n][0].detail <= detail if n in named else detail == 3))
    return sorted(shown, key=lambda n: (rank.get(n, len(rank)), n))


def columns(names: Iterable[str]) -> list[str]:
    """The stored names that are columns of a table of runs: those of detail 1 in order, then unknown ones.

    Unknown names belong to a score or detector that is not installed; those of a known score with another detail are
    left out.
    """
    names = set(names)
    kinds = {f"{metric.kind}-": metric for metric, _ in _named(names).values() if metric.measure}
    unknown = sorted(name for name in names - _named(names).keys() if _OF_LAYER not in name)
    for_all = [n for n in unknown if all(m.detail == 1 for kind, m in kinds.items() if n.startswith(kind))]
    return [*in_order(names, detail=1), *for_all]


def _name(metric: Metric, detector: str) -> str:
    if detector == metric.plain:
        return metric.fid_name or metric.kind
    return f"{metric.kind}-{detector}"


def _ordered(table: Mapping[str, Metric]) -> dict[str, Metric]:
    return dict(sorted(table.items(), key=lambda item: (item[1].order, item[0])))


def _detectors() -> list[str]:
    """Names of the registered detectors and of the modules named by the user that may be detectors."""
    names = plugins.names("detector")
    for path in plugins.named("detector"):
        try:
            names.append(plugins.short_name("detector", path))
        except plugins.PluginError:  # the module is another kind of plug-in
            continue
    return list(dict.fromkeys(names))


def _stored(table: Iterable[Metric], detectors: Iterable[str]) -> Iterator[tuple[str, tuple[Metric, str]]]:
    """Stored names with their metric and detector, which is "" if the metric is not a score of images."""
    for metric in table:
        for detector in detectors if metric.measure else ("",):
            yield (_name(metric, detector) if detector else metric.kind), (metric, detector)


def _named(names: Iterable[str]) -> dict[str, tuple[Metric, str]]:
    """Metrics and detectors by stored name; outside scores are imported only if the package lacks one of `names`."""
    own = dict(_stored(_own().values(), _detectors()))
    return own if all(name in own for name in names) else _everything()


def _everything() -> dict[str, tuple[Metric, str]]:
    """Metrics and detectors by stored name, with outside scores; those that cannot be used give a warning."""
    scores = *plugins.names("score"), *plugins.named("score")
    return _everything_of(scores, tuple(_detectors()))


@cache
def _everything_of(scores: tuple[str, ...], detectors: tuple[str, ...]) -> dict[str, tuple[Metric, str]]:
    table = {**_own(), **_outside(lenient=True)}
    return dict(_stored(_ordered(table).values(), detectors))


@cache
def _own() -> dict[str, Metric]:
    """The package's own metrics, read from their source; a file is imported when it measures."""
    table = {}
    for name in plugins.names("score"):
        if module := plugins.own_module("score", name):
            facts = arguments(module, "METRIC", unread=("measure",))
            measure = None if facts.get("measure") == "None" else partial(_measure, module)
            table[name] = Metric(**{**facts, "measure": measure, "kind": name})
    return _ordered(table)


def _measure(module: str, of: "Measurement") -> Mapping[str, Any]:
    return importlib.import_module(module).METRIC.measure(of)


def _outside(lenient: bool = False) -> dict[str, Metric]:
    """Scores outside the package, by kind; modules named by the user are imported to see whether they are scores.

    Raises PluginError for one that cannot be used; if `lenient`, it is left out with a warning.
    """
    outside: dict[str, Metric] = {}
    for name in (*plugins.names("score"), *plugins.named("score")):
        if name in _own():
            continue
        try:
            if name in plugins.names("score") or plugins.exports("score", name):
                metric = _loaded(name)
                _refuse_taken(name, metric, {**_own(), **outside})
                outside[metric.kind] = metric
        except ValueError as error:
            if not lenient:
                raise
            warnings.warn(f"{error}", stacklevel=1)
    return outside


def _loaded(name: str) -> Metric:
    metric = load_plugin("score", name)
    if not isinstance(metric, Metric):
        raise plugins.PluginError(f"score {name!r} must be a workbench.evaluation.metrics.Metric")
    return replace(metric, kind=plugins.short_name("score", name))


def _refuse_taken(name: str, metric: Metric, table: Mapping[str, Metric]) -> None:
    """Raise PluginError if a score would be stored under a name that is taken."""
    if metric.kind in table:
        raise plugins.PluginError(f"score {name!r} is called {metric.kind!r}, as another; rename one of them")
    taken = dict(_stored(table.values(), _detectors()))
    for stored, (_, detector) in _stored([metric], _detectors()):
        if stored in taken:
            by = f" by detector {detector}" if detector else ""
            raise plugins.PluginError(f"score {name!r}{by} would be stored as {stored!r}, as {taken[stored][0].title}")
