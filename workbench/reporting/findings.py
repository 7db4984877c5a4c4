"""Compare the scores of a plain and a guided run, in sentences generated from the numbers."""

from collections.abc import Mapping

import numpy as np

from workbench import words
from workbench.evaluation.metrics import default_detector, get_metric, metric_name, metric_title
from workbench.reporting import figures
from workbench.reporting.figures import Record
from workbench.runs.store import Run

# Our convention: two to five times the spread of such scores between seeds at published scale.
MARGIN = 0.05


def findings(runs: Mapping[str, Run]) -> list[str]:
    """Sentences that compare the scores of the plain and the guided run, with a caveat about single seeds."""
    detector = default_detector(runs["plain"].config.data.name)
    fd, kid, agreement = (metric_name(detector, kind) for kind in ("fd", "kid", "class-agreement"))
    sentences = [
        *_equal_steps(runs, fd),
        *_equal_compute(runs, fd),
        *_equal_steps(runs, kid),
        *_equal_steps(runs, agreement),
        *_probes(runs),
    ]
    return [
        *(sentences or ["The plain and the guided run share no score of the same protocol, so nothing is compared."]),
        "Each method was trained with one seed. Between seeds, such scores differ by 1–2\u202f% or more at published "
        f"scale, and by more at this one, so a small gap is not evidence. Gaps under {percent(MARGIN)} count as no "
        "difference.",
    ]


def verdict(metric: str, guided: Record, plain: Record) -> str:
    """Guided compared with plain: "better", "worse" or "within" the noise, by margin, intervals and floor."""
    # Below the floor, differences are noise of the estimator.
    floored = all(r.get("floor") is not None and r["value"] <= r["floor"] for r in (guided, plain))
    if floored or _overlap(guided, plain) or _gap(guided, plain) < MARGIN:
        return "within"
    lower = guided["value"] < plain["value"]
    return "better" if lower == (get_metric(metric).better == "lower") else "worse"


def number(value: float | int) -> str:
    """A number with three significant digits, grouped thousands and a typographic minus sign."""
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return text.replace("-", "\u2212")


def percent(share: float) -> str:
    """A share as a percentage, with two significant digits."""
    return f"{100 * share:.0f}\u202f%" if share >= 0.0995 else f"{100 * share:.2g}\u202f%"


def duration(seconds: float | int) -> str:
    """A duration in words, with non-breaking spaces."""
    return words.duration(seconds).replace(" ", "\u202f")


def cell(record: Record) -> str:
    """A score with its interval, if it has one."""
    interval = f" [{number(record['low'])},\u00a0{number(record['high'])}]" if _has_interval(record) else ""
    return number(record["value"]) + interval


def _equal_steps(runs: Mapping[str, Run], metric: str) -> list[str]:
    scores = figures.series({k: runs[k] for k in ("plain", "guided")}, metric)
    plain, guided = ({r["step"]: r for r in scores.get(label, ())} for label in ("plain", "guided"))
    if not plain.keys() & guided.keys():
        return []
    step = max(plain.keys() & guided.keys())
    if get_metric(metric).better == "lower":
        return [_comparison(f"At equal steps ({step:,})", metric, guided[step], plain[step])]
    title = metric_title(metric)
    return [_intervals(f"{title[:1].upper()}{title[1:]} at step {step:,}", guided[step], plain[step])]


def _equal_compute(runs: Mapping[str, Run], metric: str) -> list[str]:
    scores = figures.series({k: runs[k] for k in ("plain", "guided")}, metric)
    if len(scores) < 2:
        return []
    plain, guided = scores["plain"], scores["guided"]
    spent = {k: figures.compute_seconds(runs, k, [r["step"] for r in scores[k]]) for k in scores}
    low, high = spent["plain"][0], spent["plain"][-1]
    inside = [i for i, seconds in enumerate(spent["guided"]) if low <= seconds <= high]
    if not inside:
        reach = f"{duration(spent['guided'][0])} to {duration(spent['guided'][-1])}"
        return [
            f"At equal total compute nothing can be compared: guided was scored after {reach} of training, its "
            f"teacher’s included, plain after {duration(low)} to {duration(high)}, and curves are not extrapolated."
        ]
    last = inside[-1]
    seconds = spent["guided"][last]
    value = float(np.interp(seconds, spent["plain"], [r["value"] for r in plain]))
    lead = f"At equal total compute ({duration(seconds)}, teacher included; the plain run’s curve interpolated)"
    sentence = _comparison(lead, metric, guided[last], {**plain[-1], "value": value, "low": None})
    beyond = f" Beyond {duration(high)} there is no plain score to compare with."
    return [sentence + (beyond if last < len(guided) - 1 else "")]


def _comparison(lead: str, metric: str, guided: Record, plain: Record) -> str:
    word, gap = verdict(metric, guided, plain), percent(_gap(guided, plain))
    within = "within the noise margin, so no difference is shown"
    words = within if word == "within" else f"{word} by {gap}, more than the noise margin"
    return (
        f"{lead}, {metric_title(metric)} is {cell(guided)} for guided and {cell(plain)} for plain: guided is {words}."
    )


def _probes(runs: Mapping[str, Run]) -> list[str]:
    best = {k: max(figures.last_probes(runs[k]), key=lambda r: r["value"], default=None) for k in ("plain", "guided")}
    plain, guided = best["plain"], best["guided"]
    if plain is None or guided is None or plain["step"] != guided["step"]:
        return []
    layers = f"best layer: {guided['layer']} of guided, {plain['layer']} of plain"
    return [_intervals(f"Linear probe accuracy at step {plain['step']:,} ({layers})", guided, plain)]


def _intervals(lead: str, guided: Record, plain: Record) -> str:
    scores = f"{lead} is {cell(guided)} for guided and {cell(plain)} for plain"
    if not (_has_interval(guided) and _has_interval(plain)):
        return f"{scores}, without intervals, so the gap cannot be assessed."
    if _overlap(guided, plain):
        return f"{scores}; the 95\u202f% intervals overlap, so no difference is shown."
    better = "guided" if guided["value"] > plain["value"] else "plain"
    small = f", though by less than {percent(MARGIN)}" if _gap(guided, plain) < MARGIN else ""
    return f"{scores}; the 95\u202f% intervals do not overlap, and {better} is higher{small}."


def _has_interval(record: Record) -> bool:
    return record.get("low") is not None and record.get("high") is not None


def _overlap(a: Record, b: Record) -> bool:
    """Whether the intervals overlap; a score without an interval counts as a point."""
    if not (_has_interval(a) or _has_interval(b)):
        return False
    ends = [(r["low"], r["high"]) if _has_interval(r) else (r["value"], r["value"]) for r in (a, b)]
    return ends[0][0] <= ends[1][1] and ends[1][0] <= ends[0][1]


def _gap(guided: Record, plain: Record) -> float:
    distance = abs(guided["value"] - plain["value"])
    return distance / abs(plain["value"]) if plain["value"] else float(distance > 0)
