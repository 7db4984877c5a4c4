"""The table of metrics: names, titles, which way each gets better, its interval, and the function that measures it.

A score of images is one file that gives a `Metric` as ``METRIC``: in `workbench/evaluation/scores`, in an installed
package that registers it (``workbench.scores``), or in a module that the user names. From there it is measured,
compared with its direction known, and shown in tables and figures. This table is the only place where its facts are
looked up. Nothing heavy is imported here: facts of the package's own scores are read from their source.
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
_OF_LAYER = " of layer "  # in the name of a number that belongs to one layer
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
        title: As figures and tables show it.
        better: "lower", "higher", or "" where neither is; then `ideal` says what a good value is.
        measure: A function of a `scores.base.Measurement`. It returns a dictionary with "value", with "low" and "high"
            where there is an interval, and with further terms. None for a number that is not a score of images.
        ideal: What a good value is, where neither direction is better.
        interval: How the 95 % interval is found: "halves" (delete-half jackknife), "wilson", or "" for none.
        unit: "share" of a number in 0..1, "" of one without a unit.
        needs: What the images and the reference must have, of `NEEDS`; else the score is left out.
        floor: Whether the same of held-out real images is measured too.
        fid_name: Its name by the network that FID is defined by.
        fid_title: Its title by that network.
        plain: The detector whose name is left out.
        detail: 1 for a metric in every table, 2 in reports, 3 in full lists only.
        order: Its place among others: tables show them from the smallest number on.
        kind: Its name without a detector's, "fd" of "fd-clf64". The table fills it in: the name of the file or entry
            point.

    Raises:
        ValueError: For a value outside these.
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
            raise ValueError(f"{what}: better is '' and ideal is empty; say what a good value is")
        if not isinstance(self.title, str) or not self.title:
            raise ValueError(f"{what}: title is {self.title!r}; it must be text")
        if self.measure is not None and not callable(self.measure):
            raise ValueError(f"{what}: measure is {self.measure!r}; it must be a function")

    @property
    def direction(self) -> str:
        """What a reader must know to read a value: "lower is better"."""
        return f"{self.better} is better" if self.better else self.ideal


def metrics() -> dict[str, Metric]:
    """The table by kind, in the order in which tables show it.

    PluginError for a score of another package that cannot be used: one that cannot be imported, lacks facts, or whose
    numbers would be stored under the name of others.
    """
    return _ordered({**_own(), **_outside()})


def stored_names(detector: str) -> dict[str, str]:
    """Under which name the scores of images by a detector are stored, by kind.

    `detector` is a name or module path. ValueError as `metrics`, for an unknown detector, and for one whose numbers
    would be stored under the name of others.
    """
    short = plugins.short_name("detector", detector)
    if short not in _detectors():
        check_plugin("detector", detector, option="detector")
    found = {kind: _name(metric, short) for kind, metric in metrics().items() if metric.measure}
    for kind, name in found.items():
        metric, other = _everything()[name]
        if (metric.kind, other) != (kind, short):
            raise plugins.PluginError(f"{kind} by detector {detector!r} would be stored as {name!r}, as by {other!r}")
    return found


def metric_name(detector: str, kind: str) -> str:
    """Under which name a score of `kind` by a detector is stored: "fd-clf64"; Inception's alone are "fid", "is", ...

    Class agreement is clf64's unless the name says otherwise. ValueError for an unknown detector or kind.
    """
    names = stored_names(detector)
    refuse_unknown("kind of score", kind, names)
    return names[kind]


def find_metric(name: str) -> Metric | None:
    """The row of a stored name, "fd-clf64" or "fid"; None for one that is not in the table."""
    return (_named([name]).get(name) or (None, ""))[0]


def get_metric(name: str) -> Metric:
    """The row of a stored name; ValueError for one that is not in the table, with the nearest."""
    named = _named([name])
    refuse_unknown("metric", name, named)
    return named[name][0]


def metric_title(name: str) -> str:
    """How a figure or table calls a stored name: "FD-clf64"; FID is Inception's alone. Unknown names stay."""
    metric, detector = _named([name]).get(name, (None, ""))
    if metric is None:
        return name
    if detector == _FID_NETWORK and metric.plain == detector:
        return metric.fid_title or metric.title
    return metric.title if detector in ("", metric.plain) else f"{metric.title}-{detector}"


def in_order(names: Iterable[str], detail: int = 3) -> list[str]:
    """Stored names that the table shows at a level of detail, in its order, by detector; unknown ones come last."""
    names = set(names)
    named = _named(names)
    rank = {name: place for place, name in enumerate(named)}
    shown = (n for n in names if (named[n][0].detail <= detail if n in named else detail == 3))
    return sorted(shown, key=lambda n: (rank.get(n, len(rank)), n))


def columns(names: Iterable[str]) -> list[str]:
    """Stored names that a table of runs has as columns: those of detail 1 in order, then those that are not known here.

    The latter are of a score or detector that is not installed. Of a known score they are left out as its others are.
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
    """Names of detectors: those that are known, and what the modules that the user named would be called as one."""
    found = plugins.names("detector")
    for path in plugins.named("detector"):
        try:
            found.append(plugins.short_name("detector", path))
        except plugins.PluginError:  # of a module that is something else
            continue
    return list(dict.fromkeys(found))


def _stored(table: Iterable[Metric], detectors: Iterable[str]) -> Iterator[tuple[str, tuple[Metric, str]]]:
    """Stored names with their row and detector; a number that is no score of images has none."""
    for metric in table:
        for detector in detectors if metric.measure else ("",):
            yield (_name(metric, detector) if detector else metric.kind), (metric, detector)


def _named(names: Iterable[str]) -> dict[str, tuple[Metric, str]]:
    """Rows and detectors by stored name; outside scores are imported only if `names` has others than the package's."""
    own = dict(_stored(_own().values(), _detectors()))
    return own if all(name in own for name in names) else _everything()


def _everything() -> dict[str, tuple[Metric, str]]:
    """Of all scores too; one that cannot be used is left out with a warning."""
    scores = *plugins.names("score"), *plugins.named("score")
    return _everything_of(scores, tuple(_detectors()))


@cache
def _everything_of(scores: tuple[str, ...], detectors: tuple[str, ...]) -> dict[str, tuple[Metric, str]]:
    table = {**_own(), **_outside(lenient=True)}
    return dict(_stored(_ordered(table).values(), detectors))


@cache
def _own() -> dict[str, Metric]:
    """The package's own rows, as their files say; a function is imported when it measures."""
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
    """Scores outside the package by kind; modules that the user named are imported, to see whether they are scores.

    PluginError for one that cannot be used; if `lenient` it is left out with a warning.
    """
    found: dict[str, Metric] = {}
    for name in (*plugins.names("score"), *plugins.named("score")):
        if name in _own():
            continue
        try:
            if name in plugins.names("score") or plugins.exports("score", name):
                metric = _loaded(name)
                _refuse_taken(name, metric, {**_own(), **found})
                found[metric.kind] = metric
        except ValueError as error:
            if not lenient:
                raise
            warnings.warn(f"{error}", stacklevel=1)
    return found


def _loaded(name: str) -> Metric:
    metric = load_plugin("score", name)
    if not isinstance(metric, Metric):
        raise plugins.PluginError(f"score {name!r} must be a workbench.evaluation.metrics.Metric")
    return replace(metric, kind=plugins.short_name("score", name))


def _refuse_taken(name: str, metric: Metric, table: Mapping[str, Metric]) -> None:
    """PluginError if the numbers of a score would be stored under the name of others."""
    if metric.kind in table:
        raise plugins.PluginError(f"score {name!r} is called {metric.kind!r}, as another; rename one of them")
    taken = dict(_stored(table.values(), _detectors()))
    for stored, (_, detector) in _stored([metric], _detectors()):
        if stored in taken:
            by = f" by detector {detector}" if detector else ""
            raise plugins.PluginError(f"score {name!r}{by} would be stored as {stored!r}, as {taken[stored][0].title}")
